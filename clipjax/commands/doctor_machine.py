"""What `clipjax doctor` looks at on this host: driver, memory, folders, the bucket."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from clipjax import storage
from clipjax.commands.doctor_findings import ERROR, OK, PROBE, WARNING, Doctor, Finding, existing
from clipjax.machine.environment import GIB, memory_limit
from clipjax.machine.gpu import gpu_present
from clipjax.machine.host import has_tpu
from clipjax.machine.installed import DRIVERS, driver_too_old, nvidia_driver, version_of

LOCK = Path("/tmp/libtpu_lockfile")


def driver(doctor: Doctor) -> list[Finding]:
    """NVIDIA's driver, where there is a GPU, and whether it is new enough for the plugin."""
    if not gpu_present():
        return []
    found = nvidia_driver()
    if not found:
        with suppress(OSError, subprocess.SubprocessError):
            asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=0.5 * doctor.seconds)
            found = answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout else ""
    if not found:
        return [
            Finding("driver", WARNING, "the GPU's driver does not tell its version", "see whether nvidia-smi answers")
        ]
    if problem := driver_too_old(found):
        return [
            Finding("driver", ERROR, f"NVIDIA {found}; {problem}", "update the driver, or install another jax[cuda..]")
        ]
    findings = [Finding("driver", OK, f"NVIDIA {found}")]
    if any(version_of(name) for name in DRIVERS) and "cuda" in os.environ.get("LD_LIBRARY_PATH", "").lower():
        findings.append(
            Finding("driver", WARNING, "LD_LIBRARY_PATH names a CUDA of its own, which JAX may load in place of the one"
                    " that was installed with it", "unset LD_LIBRARY_PATH")
        )  # fmt: skip
    return findings


def huge_pages(doctor: Doctor, file: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> list[Finding]:
    """Transparent huge pages, which TPU hosts want."""
    try:
        found = re.search(r"\[(\w+)\]", file.read_text())
    except OSError:
        return []
    mode = found[1] if found else "unknown"
    if mode != "always" and has_tpu():
        cure = f"sudo sh -c 'echo always > {file}'"
        return [Finding("huge pages", WARNING, f"{mode}; a TPU v5e or newer starts and stops slowly", cure)]
    if mode == "never":
        return [
            Finding("huge pages", WARNING, "never; training on the CPU is slower", f"echo madvise > {file}, as root")
        ]
    return [Finding("huge pages", OK, mode)]


def memory(doctor: Doctor) -> list[Finding]:
    """Memory, processors, shared memory and open files that this process may have."""
    limit = memory_limit()
    cores = len(os.sched_getaffinity(0))
    text = f"{limit / GIB:.1f} GiB, {cores} of {os.cpu_count()} processors"
    few = limit < 4 * GIB
    findings = [Finding("memory", WARNING if few else OK, text, "give the container 4 GiB or more" if few else "")]
    with suppress(OSError):
        shared = shutil.disk_usage("/dev/shm")
        if gpu_present() and shared.total < GIB:
            cure = "docker run --shm-size=8g; in Kubernetes, an emptyDir of medium Memory at /dev/shm"
            text = f"/dev/shm has {shared.total / (1 << 20):.0f} MiB, too little for NCCL between GPUs"
            findings.append(Finding("memory", WARNING, text, cure))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 1024:
        findings.append(Finding("memory", WARNING, f"only {soft} files may be open", f"ulimit -n {min(hard, 65536)}"))
    return findings


def workdir(doctor: Doctor) -> list[Finding]:
    """Whether a run could write to --workdir, and how much room there is."""
    if not doctor.workdir:
        return []
    try:
        path = storage.as_path(doctor.workdir)
        if storage.is_remote(path):
            started = time.monotonic()
            storage.check_writable(path)
            text = f"{doctor.workdir} can be written to and read, in {time.monotonic() - started:.1f} s"
            return [Finding("workdir", OK, text)]
    except OSError as error:
        return [Finding("workdir", ERROR, str(error), "" if len(str(error)) > 80 else "correct --workdir")]
    return _room("workdir", Path(doctor.workdir), 10 * GIB, "checkpoints are many times the size of the model")


def cache(doctor: Doctor) -> list[Finding]:
    """The folder of compiled programs."""
    # It imports JAX, which does not look for devices yet.
    from clipjax.machine.compilation_cache import default_folder

    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false"):
        return [Finding("compiled programs", WARNING, "not kept (JAX_ENABLE_COMPILATION_CACHE)", "unset it")]
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if "://" in own:
        return [Finding("compiled programs", OK, f"kept in {own}")]
    try:
        folder = Path(own) if own else default_folder(os.environ)
    except RuntimeError:
        return [Finding("compiled programs", WARNING, "not kept: there is no home", "set JAX_COMPILATION_CACHE_DIR")]
    return [
        Finding(of.check, WARNING if of.status == ERROR else of.status, of.found, of.do)  # a run starts without it
        for of in _room("compiled programs", folder, GIB, "JAX_COMPILATION_CACHE_DIR names another folder")
    ]


def _room(check: str, path: Path, few: int, why: str) -> list[Finding]:
    """Whether a local folder can be made or written to, and has room."""
    folder = existing(path)
    if not folder.is_dir():
        return [Finding(check, ERROR, f"{path} cannot be made, because {folder} is no folder", "name another folder")]
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=PROBE) as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [Finding(check, ERROR, f"{path} cannot be written to: {error.strerror}", "name another, or make room")]
    text = f"{path}, {free / GIB:.1f} GiB free" + ("" if path == folder else f" in {folder}, where it is made")
    short = free < few
    return [Finding(check, WARNING if short else OK, text, f"make room: {why}" if short else "")]


def leftovers(doctor: Doctor) -> list[Finding]:
    """What TPU processes that were killed leave behind, which the next one would wait for."""
    if not LOCK.exists() or not has_tpu():
        return []
    found = f"{LOCK} is there: a process uses the TPU, or one was killed"
    return [Finding("devices", WARNING, found, f"if none uses it: rm {LOCK}")]
