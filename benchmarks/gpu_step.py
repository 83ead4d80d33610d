"""Measures the whole train step of CLIP on this machine's GPU, beside open_clip and transformers on PyTorch.

    python -m benchmarks.gpu_step                  # B/32, B/16 and L/14, softmax and sigmoid: under ten minutes
    python -m benchmarks.gpu_step --quick          # B/16 with softmax alone: about three minutes
    python -m benchmarks.gpu_step --models=l14 --losses=sigmoid --contenders=clipjax,transformers
    python -m benchmarks.gpu_step --toy            # toy models on the CPU: whether the script works

The step is forward, loss, backward and AdamW, in bfloat16 with float32 parameters, of one batch that lies on the card.
All contenders get the same batch. PyTorch's models are compiled with torch.compile, attend with
scaled_dot_product_attention and run under bfloat16 autocast with a fused AdamW. What is not installed is left out; a
part that fails or takes too long is skipped; the output names both.

First all contenders compile side by side, each in its own process, and wait. Then each is measured alone, one after the
other: warm-up, four windows of steps, a profile of two steps. The script prints images/s, MFU, peak memory, the kernels
that take longest and, for clipjax, the time that `clipjax plan` estimates; after each measurement it writes
benchmarks/results/gpu_step_CARD.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_models import MODELS, VARIANTS, Cell
from benchmarks.gpu_workers import CONTENDERS, Worker, prepare_all, work, worker_environment
from benchmarks.machine import command, machine
from benchmarks.tables.overview import gpu_ratios

RESULTS = Path(__file__).parent / "results"
LOSSES = ("softmax", "sigmoid")
# Dense bfloat16 FLOP/s by name of the card, from NVIDIA's data sheets; the first that matches counts.
PEAKS = (
    ("GB200", 2500e12), ("B200", 2250e12), ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989.4e12),
    ("H200", 989.4e12), ("GH200", 989.4e12), ("A100", 312e12), ("A10G", 70e12), ("A10", 125e12), ("L40S", 362e12),
    ("L4", 121e12), ("4090", 165e12), ("V100", 125e12),
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="b16,b32,l14", help=f"among {', '.join(MODELS)}")
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument(
        "--variants", default="", help=f"of clipjax, beside it: among {', '.join(filter(None, VARIANTS))}"
    )
    parser.add_argument("--quick", action="store_true", help="b16 with softmax")
    parser.add_argument("--toy", action="store_true", help="a toy model on the CPU, without torch.compile")
    parser.add_argument("--batch", type=int, default=0, help="pairs a step; 0: each model's own")
    parser.add_argument("--minutes", type=float, default=9.5, help="stop after this long")
    parser.add_argument("--cell_seconds", type=float, default=150, help="the longest that one measurement may take")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return work(Cell(**json.loads(args.worker)))
    models = ["toy"] if args.toy else ["b16"] if args.quick else chosen(args.models, MODELS, "models")
    losses = ["softmax"] if args.quick else chosen(args.losses, LOSSES, "losses")
    contenders = chosen(args.contenders, CONTENDERS, "contenders")
    variants = chosen(args.variants, VARIANTS, "variants") if args.variants else []
    deadline = time.monotonic() + 60 * args.minutes

    card = describe_card()
    print(json.dumps({"card": card, "machine": machine(), "contenders": installed(contenders)}, indent=1), flush=True)
    if card is None and not args.toy:
        print("No NVIDIA GPU: nvidia-smi finds none here. --toy tries the script on the CPU.", file=sys.stderr)
        return 2
    for name in [name for name in contenders if not installed([name])[name]]:
        print(f"{name} is not installed: left out.", flush=True)
        contenders.remove(name)
    cells = [
        Cell(name, model, loss, args.batch or MODELS[model].batch, args.toy, variant)
        for model in models
        for loss in losses
        for name in contenders
        for variant in ["", *(variants if name == "clipjax" else [])]
    ]
    out = args.out or RESULTS / f"gpu_step_{slug(card['name'] if card else 'cpu_toy')}.json"
    run_all(cells, card, out, deadline, args.cell_seconds)
    return 0


def run_all(cells: list[Cell], card: dict[str, str] | None, out: Path, deadline: float, cell_seconds: float) -> None:
    """Prepares and measures every cell, and writes `out` after each."""
    document = {
        "card": card,
        "peak_flops": peak_of(card["name"]) if card else None,
        "command": command("benchmarks.gpu_step"),
        "machine": machine(),
        "cells": [],
    }
    caches, started = Path(tempfile.mkdtemp(prefix="gpu_step_")), time.monotonic()
    workers = [Worker(cell) for cell in cells]
    try:
        found = prepare_all(workers, worker_environment(caches), max(15.0, (deadline - started) * 0.68))
        print(f"Compiled all in {time.monotonic() - started:.0f} s", flush=True)
        for worker, prepared in zip(workers, found, strict=True):
            left = deadline - time.monotonic()
            if "error" in prepared:
                result = prepared
            elif left < 5:
                result = {"error": "skipped: the time was up"}
                worker.stop()
            else:
                result = prepared | worker.measure(min(left, cell_seconds))
            document["cells"].append(vars(worker.cell) | with_mfu(result, document["peak_flops"]))
            print(describe(document["cells"][-1]), flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document, indent=1) + "\n")
    finally:
        for worker in workers:
            worker.stop()
        shutil.rmtree(caches, ignore_errors=True)
    print(summary(document["cells"]))
    print(f"Wrote {out}")


def with_mfu(result: dict[str, Any], peak: float | None) -> dict[str, Any]:
    if "images_per_second" in result and peak and result.get("flops_per_pair"):
        result["mfu"] = result["images_per_second"] * result["flops_per_pair"] / peak
    return result


def describe(cell: dict[str, Any]) -> str:
    """Several lines about one measurement."""
    variant = f" ({cell['variant']})" if cell.get("variant") else ""
    title = f"{cell['model']} {cell['loss']} batch {cell['batch']} {cell['contender']}{variant}"
    if "error" in cell:
        return f"{title}: FAILED: {cell['error']}"
    mfu = f", MFU {cell['mfu']:.1%}" if "mfu" in cell else ""
    lines = [
        f"{title}: {cell['images_per_second']:,.0f} images/s ({cell['milliseconds']:.1f} ms a step{mfu}), "
        f"peak {(cell['peak_memory_bytes'] or 0) / 2**30:.1f} GiB, compiled in {cell['seconds_to_prepare']:.0f} s"
    ]
    if estimate := cell.get("planned_milliseconds"):
        lines.append(f"  planned: {estimate:.1f} ms; measured / planned = {cell['milliseconds'] / estimate:.2f}")
    for one in cell["kernels"][:12]:
        lines.append(f"  {one['share']:6.1%} {one['milliseconds']:8.3f} ms {one['count']:5} x {one['name']}")
    return "\n".join(lines)


def summary(cells: list[dict[str, Any]]) -> str:
    """One line for each model and loss: clipjax over the fastest other."""
    ratios = gpu_ratios(cells).items()
    lines = [f"{model} {loss}: clipjax / {other} = {ratio:.2f}" for (model, loss), (other, ratio) in ratios]
    return "\n".join(lines) or "No two contenders were measured on the same model and loss."


def describe_card() -> dict[str, str] | None:
    """The first card's name, driver, memory, power limit and clock by nvidia-smi; None where there is none."""
    fields = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        line = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in line.split(",")]
    return dict(zip(fields, values, strict=False)) if values[0] else None


def peak_of(card: str) -> float | None:
    """Dense bfloat16 FLOP/s of a card; None for one that PEAKS has not."""
    return next((peak for name, peak in PEAKS if name.lower() in card.lower()), None)


def installed(contenders: list[str]) -> dict[str, bool]:
    packages = {"clipjax": ("jax",), "open_clip": ("torch", "open_clip"), "transformers": ("torch", "transformers")}
    return {name: all(importlib.util.find_spec(p) is not None for p in packages[name]) for name in contenders}


def chosen(names: str, known: Any, what: str) -> list[str]:
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        sys.exit(f"--{what}: {', '.join(unknown)} is not among {', '.join(known)}.")
    return names.split(",")


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("nvidia", "")).strip("_")


if __name__ == "__main__":
    sys.exit(main())
