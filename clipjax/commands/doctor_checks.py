"""What `clipjax doctor` looks at first: versions, the other processes, devices and the mesh."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

from clipjax import storage
from clipjax.commands.doctor_findings import ERROR, OK, PROBE, WARNING, Doctor, Finding, existing
from clipjax.config import ConfigError
from clipjax.machine import joining
from clipjax.machine.clusters import JOINED
from clipjax.machine.environment import GIB
from clipjax.machine.gpu import gpu_present
from clipjax.machine.host import StartError, has_tpu
from clipjax.machine.installed import DRIVERS, SHOWN, misfits, version_of
from clipjax.machine.placement import find_placement

SKEW_SECONDS = 10.0

# JAX may hang or end its process where a driver or another process is in its way, so it is asked in a child.
ASK_JAX = """
import collections, json, time
started = time.monotonic()
import jax, jax.numpy as jnp
local = jax.local_devices()
total = float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((128, 128), jnp.float32)))
stats = local[0].memory_stats() or {}
kinds = collections.Counter(device.device_kind for device in jax.devices())
print("\\nfound " + json.dumps({
    "platform": local[0].platform, "kinds": dict(kinds), "local": len(local), "all": jax.device_count(),
    "processes": jax.process_count(), "memory": stats.get("bytes_limit", 0), "right": total == 128.0 ** 3,
    "slices": len({getattr(device, "slice_index", None) for device in jax.devices()}),
    "seconds": time.monotonic() - started,
}), flush=True)
"""


def versions(doctor: Doctor) -> list[Finding]:
    """Python's and the packages', and whether they fit each other."""
    shown = {name: version_of(name) for name in SHOWN}
    found = f"Python {platform.python_version()}, " + ", ".join(f"{name} {of}" for name, of in shown.items() if of)
    wrong = list(misfits())
    if all(version_of(name) for name in DRIVERS):
        wrong.append(f"{' and '.join(DRIVERS)} are both installed")
    if wrong:
        return [Finding("versions", ERROR, f"{found}; {'; '.join(wrong)}", "install what fits: pip install -U clipjax"
                        " with the extra of this machine, [gpu] or [tpu]")]  # fmt: skip
    return [Finding("versions", OK, f"{found}; they fit each other")]


def processes(doctor: Doctor) -> list[Finding]:
    """Which process of how many this is, and how that was found."""
    try:
        doctor.place = place = find_placement(doctor.host, *doctor.flags)
    except (StartError, ConfigError) as error:
        return [Finding("processes", ERROR, str(error), "correct the variables or the flags")]
    notes = [Finding("processes", WARNING, note) for note in place.notes]
    return [Finding("processes", OK, place.describe()), *notes]


def meeting(doctor: Doctor) -> list[Finding]:
    """Whether the other processes can be met, and are like this one."""
    place = doctor.place
    if place is None or place.count == 1 or place.coordinator == JOINED:
        return []
    lines: list[str] = []
    probe = _leave_probe(doctor.workdir)
    try:
        facts = joining.meet(place, doctor.start_timeout, lambda line: None, probe=probe.name if probe else "")
        away = [line.removeprefix("warning: ") for line in joining.elsewhere(place)]
        if place.index:
            _await_removal(probe)
            return [Finding("coordinator", OK, f"all {place.count} processes met at {place.coordinator}")]
        lines += joining.different(facts)
        lines += _skewed(facts)
        lines += _unseen(doctor.workdir, facts)
    except StartError as error:
        cure = "run it on all hosts at once; --num_processes=1 looks at this host alone"
        return [Finding("coordinator", ERROR, str(error), cure)]
    finally:
        if probe:
            probe.unlink(missing_ok=True)
    met = Finding("coordinator", OK, f"all {place.count} processes met at {place.coordinator}")
    warnings = [Finding("coordinator", WARNING, line) for line in away]
    return [met, *warnings, *(Finding("coordinator", ERROR, line) for line in lines)]


def _skewed(facts: list[joining.Facts]) -> list[str]:
    """Clocks that differ, as process 0 heard them."""
    offsets = [float(of.get("offset", 0.0)) for of in facts]
    wide = max(offsets) - min(offsets)
    return [f"the clocks of the hosts are {wide:.0f} s apart: synchronise them (NTP)."] if wide > SKEW_SECONDS else []


def _leave_probe(workdir: str) -> Path | None:
    """A file that another host should see."""
    if not workdir or storage.is_remote(workdir):
        return None
    with suppress(OSError):
        folder = existing(Path(workdir))
        probe = folder / f"{PROBE}{uuid.uuid4().hex}"
        probe.write_text(str(folder))
        return probe
    return None


def _await_removal(probe: Path | None) -> None:
    """Until process 0 has seen and removed the file, or a few seconds, which slow folders need."""
    deadline = time.monotonic() + 5.0
    while probe and probe.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def _unseen(workdir: str, facts: list[joining.Facts]) -> list[str]:
    """A line where process 0 does not see files that others have made in the workdir."""
    names = {index: str(of.get("probe") or "") for index, of in enumerate(facts) if index}
    unseen = []
    for index, name in names.items():
        if re.fullmatch(rf"{re.escape(PROBE)}[0-9a-f]{{32}}", name):
            seen = existing(Path(workdir)) / name if workdir else None
            if seen is None or not seen.exists():
                unseen.append(index)
            else:
                seen.unlink(missing_ok=True)
    if not unseen:
        return []
    told = ", ".join(map(str, unseen[:20]))
    return [f"process 0 does not see what process {told} writes to {workdir}: it must be one folder for all hosts, "
            "such as NFS or a bucket."]  # fmt: skip


def devices(doctor: Doctor) -> list[Finding]:
    """What JAX sees, asked in a child process, which is ended when it takes too long."""
    environ = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    try:
        child = subprocess.run(
            [sys.executable, "-c", ASK_JAX],
            env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=0.9 * doctor.seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        several = doctor.place is not None and doctor.place.count > 1
        cure = "the devices of a TPU pod appear when all hosts look at once: run it on all hosts" if several else (
            "end other processes that use the devices, and see whether the driver answers (nvidia-smi, lsof /dev/accel*"
            " /dev/vfio/*)"
        )  # fmt: skip
        return [Finding("devices", ERROR, f"JAX found none within {0.9 * doctor.seconds:.0f} s", cure)]
    answer = re.search(r"^found (\{.*\})$", child.stdout, re.MULTILINE)
    if child.returncode or not answer:
        lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), "")
        reason = reason or (lines[-1] if lines else f"exit code {child.returncode}")
        if reason == "AssertionError":  # all that JAX says where a plugin finds no device
            reason = f"no device for the requested backend (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')})"
        return [Finding("devices", ERROR, f"JAX cannot start: {reason[:500]}", _device_cure(reason))]
    doctor.devices = found = json.loads(answer[1])
    kinds = ", ".join(f"{count} x {kind}" for kind, count in found["kinds"].items())
    text = f"{kinds} ({found['platform']})"
    text += f", {found['memory'] / GIB:.1f} GiB each" if found["memory"] else ""
    text += f", {found['local']} of them on this host" if found["local"] != found["all"] else ""
    text += f", {found['slices']} slices" if found["slices"] > 1 else ""
    findings = [Finding("devices", OK, f"{text}; JAX started in {found['seconds']:.1f} s")]
    if not found["right"]:
        findings.append(Finding("devices", ERROR, "a small product came out wrong", "replace this device"))
    return findings + _unused(found["platform"])


def _device_cure(reason: str) -> str:
    if "in use" in reason or "lockfile" in reason.lower():
        return "end the process that has the devices (lsof /dev/accel* /dev/vfio/*), or remove /tmp/libtpu_lockfile"
    if "requested backend" in reason or "Unable to initialize backend" in reason:
        return "correct JAX_PLATFORMS, or install the extra that it names, clipjax[gpu] or clipjax[tpu]"
    return "correct what it names, and try: python -c 'import jax; print(jax.devices())'"


def _unused(found: str) -> list[Finding]:
    """A device that is there while JAX runs on the CPU."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if found != "cpu" or asked.strip().lower() == "cpu":
        return []
    if gpu_present():
        return [
            Finding("devices", ERROR, "an NVIDIA GPU is here, but JAX runs on the CPU", "pip install 'clipjax[gpu]'")
        ]
    if has_tpu():
        return [Finding("devices", ERROR, "a TPU is here, but JAX runs on the CPU", "pip install 'clipjax[tpu]'")]
    return []


def mesh(doctor: Doctor) -> list[Finding]:
    """Whether the experiment fits the devices of all processes."""
    if doctor.config is None or doctor.devices is None or doctor.place is None:
        return []
    from clipjax.mesh import mesh_shape
    from clipjax.training.check import check

    count = doctor.place.count
    # JAX sees a TPU slice whole without having joined the others; elsewhere only this process's devices.
    whole = doctor.devices["processes"] > 1 or count == 1
    own = len(doctor.place.local_devices or ()) or doctor.devices["local"]
    total = doctor.devices["all"] if whole else own * count
    try:
        check(doctor.config, num_devices=total, process_count=count)
        data, fsdp, tensor = mesh_shape(doctor.config.mesh, total)
    except ConfigError as error:
        return [Finding("mesh", ERROR, str(error), "change the experiment, or run it on other devices")]
    batch = doctor.config.global_batch_size
    share = f"{batch // (data * fsdp)} of {batch} pairs of a batch for each part of the data"
    return [Finding("mesh", OK, f"data={data}, fsdp={fsdp}, tensor={tensor} over {total} device(s); {share}")]
