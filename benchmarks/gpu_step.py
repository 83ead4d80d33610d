"""Measures the whole train step of CLIP on this machine's GPU, beside open_clip and transformers on PyTorch.

    python -m benchmarks.gpu_step                  # B/32, B/16 and L/14, softmax and sigmoid: under ten minutes
    python -m benchmarks.gpu_step --quick          # B/16 with softmax alone: about three minutes
    python -m benchmarks.gpu_step --models=l14 --losses=sigmoid --contenders=clipjax,transformers
    python -m benchmarks.gpu_step --toy            # toy models on the CPU: whether the script works

The step is forward, loss, backward and AdamW, in bfloat16 with float32 parameters, of one batch that lies on the card.
All contenders get the same batch. PyTorch's models are compiled with torch.compile, attend with
scaled_dot_product_attention and run under bfloat16 autocast with a fused AdamW. What is not installed is left out; a
part that fails or takes too long is skipped; both are said.

First all contenders compile side by side, into caches. Then each is measured alone, one after the other: warm-up, four
windows of steps, a profile of two steps. The script prints images/s, MFU, peak memory, the kernels that take longest
and, for clipjax, the time that `clipjax plan` estimates; after each measurement it writes
benchmarks/results/gpu_step_CARD.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_models import CONTENDERS, MODELS, Cell
from benchmarks.machine import command, machine

RESULTS = Path(__file__).parent / "results"
LOSSES = ("softmax", "sigmoid")
MARK = "RESULT "  # begins a worker's line of JSON
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
    parser.add_argument("--quick", action="store_true", help="b16 with softmax")
    parser.add_argument("--toy", action="store_true", help="a toy model on the CPU, without torch.compile")
    parser.add_argument("--batch", type=int, default=0, help="pairs a step; 0: each model's own")
    parser.add_argument("--minutes", type=float, default=9.5, help="stop after this long")
    parser.add_argument("--cell_seconds", type=float, default=150, help="the longest that one measurement may take")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--worker", choices=("prepare", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return work(args.worker, Cell(**json.loads(args.cell)))
    models = ["toy"] if args.toy else ["b16"] if args.quick else chosen(args.models, MODELS, "models")
    losses = ["softmax"] if args.quick else chosen(args.losses, LOSSES, "losses")
    contenders = chosen(args.contenders, CONTENDERS, "contenders")
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
        Cell(name, model, loss, args.batch or MODELS[model].batch, args.toy)
        for model in models
        for loss in losses
        for name in contenders
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
    caches = Path(tempfile.mkdtemp(prefix="gpu_step_"))
    environment = worker_environment(caches)
    try:
        prepare(cells, environment, deadline, cell_seconds)
        for cell in cells:
            left = deadline - time.monotonic()
            if left < 15:
                print(f"{cell.title}: skipped, because the time is up", flush=True)
                document["cells"].append(vars(cell) | {"error": "skipped: the time was up"})
                continue
            result = start("measure", cell, environment, min(left, cell_seconds))
            document["cells"].append(vars(cell) | with_mfu(result, document["peak_flops"]))
            print(describe(document["cells"][-1]), flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document, indent=1) + "\n")
    finally:
        shutil.rmtree(caches, ignore_errors=True)
    print(summary(document["cells"]))
    print(f"Wrote {out}")


def prepare(cells: list[Cell], environment: dict[str, str], deadline: float, cell_seconds: float) -> None:
    """Compiles all cells into the caches, several at a time; one that fails here will compile when it is measured."""
    if cells and cells[0].toy:
        return
    started = time.monotonic()
    workers = max(1, min(6, (os.cpu_count() or 1) // 3))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        seconds = max(15.0, min(cell_seconds * 1.5, (deadline - started) * 0.45))
        futures = {cell.title: pool.submit(start, "prepare", cell, environment, seconds) for cell in cells}
        for title, future in futures.items():
            if error := future.result().get("error"):
                print(f"{title}: not compiled ahead: {error}", flush=True)
    print(f"Compiled ahead in {time.monotonic() - started:.0f} s", flush=True)


def start(task: str, cell: Cell, environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """Runs a worker for at most `seconds`; its result, or {"error": why there is none}."""
    arguments = [sys.executable, "-m", "benchmarks.gpu_step", f"--worker={task}", f"--cell={json.dumps(vars(cell))}"]
    environment = environment | ({"JAX_PLATFORMS": "cpu"} if cell.toy else {})
    # Its output goes to a file, so that processes which a compiler leaves behind cannot keep a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        worker = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            worker.wait(seconds)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            return {"error": f"stopped after {seconds:.0f} s"}
        output.seek(0)
        text = output.read()
    lines = text.splitlines()
    results = [line[len(MARK) :] for line in lines if line.startswith(MARK)]
    if worker.returncode or not results:
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        return {"error": f"exit {worker.returncode}: {last.strip()[:300]}", "output": text[-3000:]}
    return json.loads(results[-1])


def work(task: str, cell: Cell) -> int:
    """A worker's side: prepares or measures one cell and prints its result."""
    contender = CONTENDERS[cell.contender](cell)
    result = contender.prepare() if task == "prepare" else contender.measure()
    print(MARK + json.dumps(result), flush=True)
    return 0


def worker_environment(caches: Path) -> dict[str, str]:
    """The environment of all workers: caches that they share, and JAX's memory taken as it is needed."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def with_mfu(result: dict[str, Any], peak: float | None) -> dict[str, Any]:
    if "images_per_second" in result and peak and result.get("flops_per_pair"):
        result["mfu"] = result["images_per_second"] * result["flops_per_pair"] / peak
    return result


def describe(cell: dict[str, Any]) -> str:
    """Several lines about one measurement."""
    title = f"{cell['model']} {cell['loss']} batch {cell['batch']} {cell['contender']}"
    if "error" in cell:
        return f"{title}: FAILED: {cell['error']}"
    mfu = f", MFU {cell['mfu']:.1%}" if "mfu" in cell else ""
    lines = [
        f"{title}: {cell['images_per_second']:,.0f} images/s ({cell['milliseconds']:.1f} ms a step{mfu}), "
        f"peak {(cell['peak_memory_bytes'] or 0) / 2**30:.1f} GiB, ready in {cell['seconds_to_first_step']:.0f} s"
    ]
    if estimate := cell.get("planned_milliseconds"):
        lines.append(f"  planned: {estimate:.1f} ms; measured / planned = {cell['milliseconds'] / estimate:.2f}")
    for one in cell["kernels"][:12]:
        lines.append(f"  {one['share']:6.1%} {one['milliseconds']:8.3f} ms {one['count']:5} x {one['name']}")
    return "\n".join(lines)


def summary(cells: list[dict[str, Any]]) -> str:
    """One line for each model and loss: clipjax over the fastest other."""
    lines = []
    for model, loss in dict.fromkeys((cell["model"], cell["loss"]) for cell in cells):
        rates = {
            cell["contender"]: cell["images_per_second"]
            for cell in cells
            if (cell["model"], cell["loss"]) == (model, loss) and "error" not in cell
        }
        others = {name: rate for name, rate in rates.items() if name != "clipjax"}
        if "clipjax" in rates and others:
            fastest = max(others, key=others.get)
            lines.append(f"{model} {loss}: clipjax / {fastest} = {rates['clipjax'] / others[fastest]:.2f}")
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
