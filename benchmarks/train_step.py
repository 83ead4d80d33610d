"""Compares the whole train step (forward, loss, backward, AdamW) with open_clip's on PyTorch: same model, same batch.

    python -m benchmarks.train_step                       # ViT-B/32, batch 32, float32 and bfloat16
    python -m benchmarks.train_step --batch=4 --dtype=float32
    python -m benchmarks.train_step --no_torch            # clipjax and the matmul peak alone

bfloat16 is clipjax's `model.dtype`, and PyTorch's `autocast`. The precisions are measured one after the other, so that
only two step processes are in memory at a time, one of each library. The two take turns, and so do the processes that
multiply matrices, so that all see the same machine. A turn is one step, or as many as take two seconds. All processes
have the same memory setting (--memory): `kept` keeps freed memory, as `clipjax train` does on a CPU, so that no step
waits for the kernel to clear pages; `huge_pages` only uses larger pages; `plain` is malloc's default.

The script names the processor and its bfloat16 units. It prints medians, their ratios, and the share of the matmul peak
measured in the same run, which is the fastest of the libraries' products in the same precision. It writes
benchmarks/results/train_step_PROCESSOR_batch_BATCH.json. The medians leave out rounds in which other programs used more
than 15% of a core, if at least three rounds remain. PyTorch's side needs `make parity`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.machine import bfloat16_units, command, machine, processor

RESULTS = Path(__file__).parent / "results"
QUIET = 0.15  # of a core, used by others
TURN = 2.0  # seconds that a turn lasts at least
SIDE, PRODUCTS = 2048, 20  # a turn of products is 20 of 2048 x 2048 matrices
DTYPES = ("float32", "bfloat16")
KEPT = ":".join(
    f"glibc.malloc.{name}" for name in ("hugetlb=1", "mmap_max=0", "trim_threshold=100000000000", "arena_max=1")
)
MEMORY = {"kept": KEPT, "huge_pages": "glibc.malloc.hugetlb=1", "plain": ""}  # GLIBC_TUNABLES
Samples = dict[str, list[tuple[float, float]]]  # of each contender: seconds, cores that others used meanwhile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=DTYPES, help="measure this precision alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=MEMORY, default="kept")
    parser.add_argument("--no_torch", action="store_true")
    parser.add_argument("--depth", type=int, default=12, help="layers of each tower; nothing is written unless 12")
    parser.add_argument("--worker", choices=[*STEPS, *MATMULS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker in STEPS:
        return serve(STEPS[args.worker](args.batch, args.dtype, args.depth))
    if args.worker:
        return serve(repeated(MATMULS[args.worker](args.dtype)))

    units = bfloat16_units()
    print(f"{processor()}, {os.cpu_count()} cores, bfloat16 units: {', '.join(units) or 'none'}", flush=True)
    rows, samples = [], {}
    for dtype in [args.dtype] if args.dtype else DTYPES:
        samples[dtype] = measure(args, dtype)
        rows.append(report(args, dtype, samples[dtype]))
    if args.depth != 12:
        return
    result = {
        "model": "clip_vit_b32",
        "train_gflops_per_image": train_flops_per_image() / 1e9,
        "command": command("benchmarks.train_step"),
        "machine": machine() | {"bfloat16_units": units},
        "rows": rows,
        "samples_seconds_and_others": samples,
    }
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"train_step_{short(processor(), units)}_batch_{args.batch}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Wrote {out}")


def measure(args: argparse.Namespace, dtype: str) -> Samples:
    """Starts the processes of one precision and asks each of them in turn."""
    names = [name for name in [*STEPS, *MATMULS] if name not in NEED_TORCH or not args.no_torch]
    names = [name for name in names if name != "numpy" or dtype == "float32"]
    workers = {name: start_worker(name, args, dtype) for name in names}
    samples: Samples = {name: [] for name in workers}
    for number in range(args.rounds):
        for name in workers if number % 2 == 0 else reversed(workers):
            worker = workers[name]
            samples[name].append(measured(lambda w=worker: ask(w), worker.pid))
        line = "  ".join(f"{name} {turns[-1][0]:.3f} s ({turns[-1][1]:.0%} others)" for name, turns in samples.items())
        print(f"{dtype}, round {number + 1}/{args.rounds}: {line}", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return samples


def report(args: argparse.Namespace, dtype: str, samples: Samples) -> dict:
    """Prints one precision's table and returns its row of the JSON."""
    seconds = {name: median_of_quiet(turns) for name, turns in samples.items()}
    rates = {name: PRODUCTS * 2 * SIDE**3 / seconds[name] for name in MATMULS if name in seconds}
    peak = max(rates.values())
    flops = train_flops_per_image()
    row = {
        "batch": args.batch,
        "dtype": dtype,
        "memory": args.memory,
        "huge_pages": args.memory != "plain",
        "matmul_gflops": {name: rate / 1e9 for name, rate in rates.items()},
    }
    for name in (name for name in STEPS if name in seconds):
        rate = args.batch / seconds[name]
        row[name] = {"images_per_second": rate, "share_of_peak": rate * flops / peak}
        share = f"  {rate * flops / peak:6.1%} of the matmul peak" if args.depth == 12 else ""
        print(f"{dtype:>9}  {name:>9}  {rate:6.2f} images/s{share}")
    if "open_clip" in seconds:
        row["ratio"] = seconds["open_clip"] / seconds["clipjax"]
        print(f"{dtype:>9}  clipjax / open_clip: {row['ratio']:.2f}")
    print(f"{dtype:>9}  GFLOP/s of products: " + ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items()))
    return row


def short(name: str, units: list[str]) -> str:
    """A processor's name in a file name: "Intel(R) Xeon(R) Processor @ 2.50GHz" -> "intel_xeon_2_50ghz_no_bf16"."""
    words = re.sub(r"\((r|tm)\)|\b(processor|cpu)\b", " ", name.lower())
    return "_".join(re.findall(r"[a-z0-9]+", words)[:6] + [units[0] if units else "no_bf16"])


def clipjax_step(batch: int, dtype: str, depth: int):
    """Returns a function that runs one step of clipjax."""
    import jax

    from clipjax.config import ExperimentConfig, LossConfig, MeshConfig
    from clipjax.mesh import make_mesh
    from clipjax.models.presets import get_preset
    from clipjax.training.state import abstract_state, create_state
    from clipjax.training.step import make_train_step

    model = get_preset("clip_vit_b32")
    image, text = (replace(tower, scan_layers=False, depth=depth) for tower in (model.image, model.text))
    config = ExperimentConfig(
        global_batch_size=batch,
        model=replace(model, image=image, text=text, dtype=dtype),
        loss=LossConfig("softmax"),
        mesh=MeshConfig(),
    )
    mesh = make_mesh(config.mesh)
    step = make_train_step(config, mesh, abstract_state(config, mesh))
    data = {"image": pixels(batch), "text": tokens(batch)}
    state = create_state(config, mesh)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, data)
        jax.block_until_ready((state, metrics))

    return run


def open_clip_step(batch: int, dtype: str, depth: int):
    """Returns a function that runs the same step in PyTorch."""
    from benchmarks.pytorch import import_torch

    torch, open_clip = import_torch(), import_torch("open_clip")
    model = open_clip.create_model("ViT-B-32-quickgelu").train()
    for blocks in (model.visual.transformer.resblocks, model.transformer.resblocks):
        del blocks[depth:]
    loss_fn = open_clip.loss.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    image, text = torch.tensor(pixels(batch)).permute(0, 3, 1, 2).contiguous(), torch.tensor(tokens(batch)).long()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            image_embedding, text_embedding, scale = model((image / 255.0 - mean) / std, text)[:3]
            loss = loss_fn(image_embedding, text_embedding, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        loss.item()

    return run


def numpy_matmul(dtype: str):
    a = np.ones((SIDE, SIDE), dtype)
    return lambda: a @ a


def xla_matmul(dtype: str):
    import jax

    product = jax.jit(lambda a: jax.numpy.matmul(a, a, preferred_element_type="float32"))
    a = jax.numpy.ones((SIDE, SIDE), dtype)
    return lambda: product(a).block_until_ready()


def torch_matmul(dtype: str):
    from benchmarks.pytorch import import_torch

    torch = import_torch()
    a = torch.ones((SIDE, SIDE), dtype=getattr(torch, dtype))
    return lambda: a @ a


def repeated(product):
    """Returns a function that runs enough products to time."""

    def run() -> None:
        for _ in range(PRODUCTS):
            product()

    return run


STEPS = {"clipjax": clipjax_step, "open_clip": open_clip_step}
MATMULS = {"numpy": numpy_matmul, "xla": xla_matmul, "torch": torch_matmul}
NEED_TORCH = ("open_clip", "torch")


def pixels(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)


def tokens(batch: int) -> np.ndarray:
    """Returns [batch, 77] int32: captions of 5 to 39 tokens between start and end, padded with zeros."""
    rng = np.random.default_rng(0)
    text = np.zeros((batch, 77), np.int32)
    for row in text:
        length = rng.integers(5, 40)
        row[: length + 2] = [49406, *rng.integers(300, 40_000, length), 49407]
    return text


def train_flops_per_image() -> float:
    """FLOPs of the matrix products, forward and backward (three times forward)."""
    layers, tokens, width, text_width, length = 12, 50, 768, 512, 77
    image = layers * (24 * tokens * width**2 + 4 * tokens**2 * width) + 2 * 49 * 3072 * width + 2 * width * 512
    text = layers * (24 * length * text_width**2 + 4 * length**2 * text_width) + 2 * text_width * 512
    return 3.0 * (image + text)


def serve(run) -> None:
    """The worker's side: two runs to warm up, then one turn for each line of input, and its seconds per run."""
    run()
    started = time.perf_counter()
    run()
    count = max(1, round(TURN / (time.perf_counter() - started)))
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(count):
            run()
        print((time.perf_counter() - started) / count, flush=True)


def start_worker(name: str, args: argparse.Namespace, dtype: str) -> subprocess.Popen:
    options = {"worker": name, "batch": args.batch, "dtype": dtype, "depth": args.depth}
    command = [sys.executable, "-m", "benchmarks.train_step", *(f"--{key}={value}" for key, value in options.items())]
    # OPENBLAS_CORETYPE may choose another processor's kernels, whose peak is not this processor's.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OPENBLAS_", "GLIBC_TUNABLES"))}
    env |= {"HF_HUB_OFFLINE": "1"} | ({"GLIBC_TUNABLES": MEMORY[args.memory]} if MEMORY[args.memory] else {})
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    for line in worker.stdout:
        if line.strip() == "ready":
            return worker
    sys.exit(f"The {name} worker ended before its first step; is it installed? (make parity)")


def ask(worker: subprocess.Popen) -> float:
    worker.stdin.write("\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def measured(run, pid: int) -> tuple[float, float]:
    """Returns the seconds that run() reports and how many cores processes other than pid used meanwhile."""
    busy, own, started = busy_seconds(), process_seconds(pid), time.perf_counter()
    seconds = run()
    elapsed = time.perf_counter() - started
    others = (busy_seconds() - busy - (process_seconds(pid) - own)) / elapsed
    return seconds, max(0.0, others)


def median_of_quiet(values: list[tuple[float, float]]) -> float:
    quiet = [seconds for seconds, others in values if others <= QUIET]
    return statistics.median(quiet if len(quiet) >= 3 else [seconds for seconds, _ in values])


def busy_seconds() -> float:
    """Core seconds used by all processes, including those a hypervisor gave to other machines (steal)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
