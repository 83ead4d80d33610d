"""What a command sets for its own process before JAX is imported: environment variables, and how memory is kept.

Each function in SETTINGS looks at the command, the environment variables and the machine, and returns a Setting or
None. It changes nothing itself, imports no JAX, and says no to whatever the user has set. `prepare` is called first
thing by clipjax/__main__.py; `lines` are told by the first process of a run once it knows that it is the first.
"""

from __future__ import annotations

import ctypes
import glob
import os
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from clipjax.machine.gpu import MEMORY_FRACTION, gpu_environment, gpu_present

GIB = 1 << 30
LEAST_MEMORY = 4 * GIB  # below it, freed memory goes back to the system as glibc has it
HUGE_PAGE = 2 << 20
# malloc.h and sys/mman.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX, MADV_HUGEPAGE = -1, -4, -8, 14
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


class Setting(NamedTuple):
    """What one function of SETTINGS wants."""

    variables: Mapping[str, str] = {}  # environment variables to set
    line: str = ""  # told to the user in one line; "": nothing to tell
    act: Callable[[], object] | None = None  # called after the variables are set


_lines: list[str] = []
_command = ""


def prepare(command: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Applies what SETTINGS want for a command ("train"); called once, before JAX or NumPy is imported."""
    global _command
    _command = command
    for wanted in SETTINGS:
        if setting := wanted(command, environ):
            environ.update(setting.variables)
            if setting.act:
                setting.act()
            if setting.line:
                _lines.append(setting.line)


def command() -> str:
    """The command that prepare was called for; "" where a program calls clipjax's functions itself."""
    return _command


def lines() -> list[str]:
    """The lines that are still to be told; each is returned once."""
    told = list(_lines)
    _lines.clear()
    return told


def has_accelerator(environ: Mapping[str, str]) -> bool:
    """Whether JAX may run on something else than the CPU, as far as the device files and JAX_PLATFORMS tell."""
    platforms = environ.get("JAX_PLATFORMS") or environ.get("JAX_PLATFORM_NAME")
    return platforms.lower() != "cpu" if platforms else any(glob.glob(pattern) for pattern in ACCELERATORS)


def kept_memory(command: str, environ: Mapping[str, str]) -> Setting | None:
    """On CPU, where XLA allocates a step's buffers with malloc and frees them each time: freed memory stays ours.

    glibc returns large blocks to the system at once, and the next step pays a page fault for every 4 KiB of them. This
    tells glibc's malloc to keep them, in one arena, and the kernel to use huge pages for them where it may. What is
    given up: memory no longer falls after its peak, and the peak may be a quarter higher (docs/startup.md).
    """
    if command != "train" or has_accelerator(environ) or not _has_glibc():
        return None
    if any(name.startswith(("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD")) and environ[name] for name in environ):
        return None  # the user has chosen how memory is allocated
    if environ.get("CLIPJAX_KEEP_MEMORY", "1").lower() in ("0", "false", "off", "no"):
        return None
    limit = memory_limit()
    if limit < LEAST_MEMORY:
        return Setting(
            line=f"Memory: freed memory goes back to the system after each step, which is slower, because there are "
            f"only {limit / GIB:.1f} GiB."
        )
    return Setting(
        line="Memory: this process keeps what it frees, for faster steps (CLIPJAX_KEEP_MEMORY=0 turns it off).",
        act=lambda: keep_memory(limit // 2),
    )


def more_gpu_memory(command: str, environ: Mapping[str, str]) -> Setting | None:
    """On a GPU: the share of its memory that JAX takes, for a command that trains; see clipjax/machine/gpu.py."""
    variables = gpu_environment(environ, present=command == "train" and gpu_present(environ))
    if not variables:
        return None
    return Setting(
        variables,
        f"GPU: JAX takes {float(MEMORY_FRACTION):.0%} of the memory (XLA_PYTHON_CLIENT_MEM_FRACTION changes it).",
    )


def keep_memory(reserve: int) -> bool:
    """Tells glibc's malloc to keep freed memory; False where it refuses. reserve: bytes of address space for it.

    The same as GLIBC_TUNABLES=glibc.malloc.hugetlb=1:mmap_max=0:trim_threshold=...:arena_max=1 (each with its
    "glibc.malloc."), which would need a new start of the process.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        # -1: never; any other threshold below the reserve would give all of it back at the first free.
        options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
        if not all(libc.mallopt(option, value) for option, value in options):
            return False
        # Address space at the heap's end, which takes no memory until it is used, in huge pages if the system lets us.
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if block := libc.malloc(reserve):
            start = -(-block // HUGE_PAGE) * HUGE_PAGE
            libc.madvise(start, (block + reserve - start) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
            libc.free(block)
        return True
    return False


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or less where its control group has a limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError):
        own = Path("/proc/self/cgroup").read_text().split("::")[-1].strip().lstrip("/")
        groups = [Path("/sys/fs/cgroup", own), *Path("/sys/fs/cgroup", own).parents]
        files = [group / "memory.max" for group in groups if group.is_relative_to("/sys/fs/cgroup")]
        for file in [*files, Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]:
            with suppress(OSError, ValueError):
                limits.append(int(file.read_text()))
    return min(limits)


def _has_glibc() -> bool:
    with suppress(AttributeError, ValueError, OSError):
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False


# In the order in which they are told.
SETTINGS: tuple[Callable[[str, Mapping[str, str]], Setting | None], ...] = (kept_memory, more_gpu_memory)
