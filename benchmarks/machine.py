"""What a benchmark's JSON records about the machine, the versions and the command that gave its numbers."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
PACKAGES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("numpy", "torch", "transformers", "open_clip_torch", "webdataset", "tensorflow-cpu"),
)


def machine() -> dict[str, Any]:
    """Day, cores, processor, Python, and the version of each of PACKAGES that is installed."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def processor() -> str:
    """The processor's model name, as Linux reports it.

    On a virtual machine it may lack a model number ("AMD EPYC"), so that different processors share it. Family and
    model are then appended: "AMD EPYC (family 25, model 17)".
    """
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE))
    name = fields.get("model name") or platform.processor()
    if not re.search(r"\d", name) and {"cpu family", "model"} <= fields.keys():
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def bfloat16_units() -> list[str]:
    """Which of amx_bf16, avx512_bf16 and Arm's bf16, instructions that multiply bfloat16, the processor has."""
    lines = CPUINFO.read_text(encoding="utf-8").split("\n") if CPUINFO.exists() else []
    flags = next((line.split(":", 1)[1] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return [name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags.split()]


def versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def command(module: str) -> str:
    """The command line of this process, for a script started with `python -m module`."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])
