"""Compiled programs are kept on disk, so that a command that starts again compiles nothing.

JAX keeps them (its persistent compilation cache); here it gets a folder, and what may go wrong with a folder never
stops or floods a run. Where the user has set JAX_COMPILATION_CACHE_DIR, that folder is used as it is.
JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from clipjax.files import printable
from clipjax.processes import MEETING_SECONDS, store
from clipjax.storage.data_cache import cache_root

MOST = 4 << 30  # bytes in a folder; the programs used longest ago go first
OFF = "JAX_ENABLE_COMPILATION_CACHE=0 turns it off"
_FAILURE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL)


def open_cache(environ: Mapping[str, str] = os.environ) -> str:
    """Turns the cache on for this process; all processes of a run call it together. Returns the line that tells of it.

    The folder is not used where process 0 cannot write to it, or where another process does not see what process 0
    writes: on GPUs, a process that compiles waits for measurements of one that has loaded its program instead.
    """
    if not jax.config.jax_enable_compilation_cache:
        return ""
    # Else a program for several CPU devices has another key at every start: models/on_cpu.py has a custom_partitioning,
    # and JAX's keys contain the address of its functions.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    own = environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        folder = Path(own) if own else default_folder(environ)
    except RuntimeError:  # no home
        jax.config.update("jax_enable_compilation_cache", False)
        return "Compiled programs are not kept: there is no home directory. JAX_COMPILATION_CACHE_DIR names a folder."
    if own and "://" in own:
        return f"Compiled programs are kept in {own}."
    kept, reason = "", ""
    with contextlib.ExitStack() as stack:
        attempt = folder / f".{secrets.token_hex(4)}"
        if jax.process_index() == 0:
            try:
                kept = stack.enter_context(_prepared(folder, attempt, bounded=not own))
            except OSError as error:
                reason = error.strerror or str(error)
        if jax.process_count() > 1:
            reason, name = json.loads(exchange("compilation cache", json.dumps([reason, attempt.name]))[0])
            if not reason and not all(exchange("compilation cache seen", str((folder / name).exists() or ""))):
                reason = "not all processes of the run see this folder"
    if reason:
        jax.config.update("jax_enable_compilation_cache", False)
        return f"Compiled programs are not kept: {folder}: {reason}. JAX_COMPILATION_CACHE_DIR names another folder."
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a start has a hundred small programs
    return f"Compiled programs: {kept} in {folder} ({OFF})."


def default_folder(environ: Mapping[str, str]) -> Path:
    """~/.cache/clipjax/compiled/PROCESSOR, or below XDG_CACHE_HOME.

    A home may be shared by machines whose processors differ, and a program compiled for one can stop another.
    """
    return cache_root(environ) / "compiled" / processor()[1]


def processor() -> tuple[str, str]:
    """(its name as the maker writes it, a key of 12 letters and digits for its name and instruction sets)."""
    name, text = platform.processor() or platform.machine(), platform.machine()
    with contextlib.suppress(OSError):
        cpu, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        fields = dict(re.findall(r"^(.*?)\s*:[ \t]*(.*)$", cpu, re.MULTILINE))
        name = fields.get("model name", name)
        # flags are x86's, Features and CPU part are ARM's
        text += "\n".join(fields.get(field, "") for field in ("model name", "flags", "Features", "CPU part"))
    return name, hashlib.sha256(text.encode()).hexdigest()[:12]


def prune(folder: Path, most: int) -> int:
    """Removes the programs used longest ago until the rest has at most `most` bytes; returns how many are left.

    JAX's own jax_compilation_cache_max_size locks the folder for every program, and fails on an entry that a killed
    process has left half written.
    """
    entries = []
    for file in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another run has removed it
            stat = file.stat()
            entries.append((max(stat.st_atime, stat.st_mtime), stat.st_size, file))
    total, left = sum(size for _, size, _ in entries), len(entries)
    for _, size, file in sorted(entries, key=lambda entry: entry[0]):
        if total <= most:
            break
        with contextlib.suppress(OSError):
            file.unlink()
        total, left = total - size, left - 1
    return left


def exchange(what: str, text: str) -> list[str]:
    """Every process's text, on every process, in process order; all call it together, each `what` once.

    Through JAX's coordination service, not a collective, so that nothing is compiled for it.
    """
    if (count := jax.process_count()) == 1:
        return [text]
    client, folder = store(), f"clipjax/exchange/{what}"
    client.key_value_set(f"{folder}/{jax.process_index()}", text)
    client.wait_at_barrier(folder, int(MEETING_SECONDS * 1000))
    found = {int(name.rpartition("/")[2]): value for name, value in client.key_value_dir_get(folder)}
    return [found[index] for index in range(count)]


@contextlib.contextmanager
def _prepared(folder: Path, attempt: Path, bounded: bool) -> Iterator[str]:
    """Makes the folder and the file `attempt` in it for as long as the block lasts; yields in words what is in it.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        attempt.write_bytes(bytes(1 << 20))  # a full disk often has room for an empty file
        count = prune(folder, MOST) if bounded else sum(1 for _ in folder.glob("*-cache"))
        yield f"{count:,} kept" if count else "kept from now on"
    finally:
        with contextlib.suppress(OSError):
            attempt.unlink()


@contextlib.contextmanager
def quiet_failures() -> Iterator[None]:
    """JAX warns of every program that it cannot read or write; here the first failure to write becomes one line.

    The entry is removed: JAX compiles a program that it cannot read, but does not replace a file that exists, and a
    program that it could not write leaves half a file.
    """
    show, told = warnings.showwarning, False

    def shown(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        nonlocal told
        failure = _FAILURE.match(str(message))
        if not failure:
            return show(message, category, *args, **kwargs)
        action, program, reason = failure.groups()
        folder = Path(jax.config.jax_compilation_cache_dir or ".")
        forget(folder, program, newest=action == "writing")
        if action == "writing" and not told:
            told = True
            print(printable(f"Compiled programs are no longer kept in {folder}: {reason}", lines=False), flush=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="Error (reading|writing) persistent compilation cache entry")
        warnings.showwarning = shown
        yield


def forget(folder: Path, program: str, *, newest: bool) -> None:
    """Removes the entries of a program ("jit_train_step"), or only the one written last."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob(f"{glob.escape(program)}-*-cache"), key=lambda file: file.stat().st_mtime)
        for file in files[-1:] if newest else files:
            file.unlink()
