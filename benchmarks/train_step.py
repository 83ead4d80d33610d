"""Compares the whole train step (forward, loss, backward, AdamW) with open_clip's on PyTorch: same model, same batch.

    python -m benchmarks.train_step                         # ViT-B/32, batch 32, float32
    python -m benchmarks.train_step --huge_pages --batch=4  # both libraries with malloc's huge pages, as in make train
    python -m benchmarks.train_step --no_torch              # clipjax and the matmul peak alone

Each library has a process of its own. The processes take turns, so that both see the same machine. A turn is two steps,
of which the second is timed: the first pays for memory that the other library used in between. The script prints
medians, their ratio, and the share of the matmul peak measured in the same run, which is the fastest of NumPy's, XLA's
and PyTorch's products. It writes benchmarks/results/train_step_batch_BATCH[_huge_pages].json. The medians leave out
rounds in which other programs used more than 15% of a core, if at least three rounds remain. PyTorch's side needs
`make parity`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.machine import command, machine

RESULTS = Path(__file__).parent / "results"
QUIET = 0.15  # of a core, used by others
SIDE, PRODUCTS = 2048, 20  # a turn times 20 products of 2048 x 2048 matrices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--huge_pages", action="store_true", help="GLIBC_TUNABLES=glibc.malloc.hugetlb=1")
    parser.add_argument("--no_torch", action="store_true")
    parser.add_argument("--worker", choices=[*STEPS, *MATMULS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker in STEPS:
        return serve(STEPS[args.worker](args.batch))
    if args.worker:
        return serve(repeated(MATMULS[args.worker]()))

    names = [name for name in [*STEPS, *MATMULS] if name not in NEED_TORCH or not args.no_torch]
    workers = {name: start_worker(name, args.batch, args.huge_pages) for name in names}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    for number in range(args.rounds):
        for name in workers if number % 2 == 0 else reversed(workers):
            worker = workers[name]
            samples[name].append(measured(lambda w=worker: ask(w), worker.pid))
        line = "  ".join(
            f"{name} {values[-1][0]:.3f} s ({values[-1][1]:.0%} others)" for name, values in samples.items()
        )
        print(f"round {number + 1}/{args.rounds}: {line}", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    result = report(args.batch, samples) | {"huge_pages": args.huge_pages}
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"train_step_batch_{args.batch}{'_huge_pages' if args.huge_pages else ''}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {out}")


def report(batch: int, samples: dict[str, list[tuple[float, float]]]) -> dict:
    """Prints the table and returns the result's JSON."""
    seconds = {name: median_of_quiet(values) for name, values in samples.items()}
    rates = {name: PRODUCTS * 2 * SIDE**3 / seconds[name] for name in MATMULS if name in seconds}
    peak = max(rates.values())
    flops = train_flops_per_image()
    result = {
        "model": "clip_vit_b32, float32",
        "batch": batch,
        "matmul_gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "train_gflops_per_image": flops / 1e9,
        "command": command("benchmarks.train_step"),
        "machine": machine(),
        "samples_seconds_and_others": samples,
    }
    for name in (name for name in STEPS if name in seconds):
        rate = batch / seconds[name]
        result[name] = {"images_per_second": rate, "share_of_peak": rate * flops / peak}
        print(f"{name:>10}  {rate:6.2f} images/s  {rate * flops / peak:6.1%} of the matmul peak")
    if "open_clip" in seconds:
        result["ratio"] = seconds["open_clip"] / seconds["clipjax"]
        print(f"clipjax / open_clip: {result['ratio']:.2f}")
    print("GFLOP/s of products:", ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items()))
    return result


def clipjax_step(batch: int):
    """Returns a function that runs one step of clipjax."""
    import jax

    from clipjax.config import ExperimentConfig, LossConfig, MeshConfig
    from clipjax.mesh import make_mesh
    from clipjax.models.presets import get_preset
    from clipjax.training.state import abstract_state, create_state
    from clipjax.training.step import make_train_step

    model = get_preset("clip_vit_b32")
    image, text = (replace(tower, scan_layers=False) for tower in (model.image, model.text))
    config = ExperimentConfig(
        global_batch_size=batch,
        model=replace(model, image=image, text=text),
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


def open_clip_step(batch: int):
    """Returns a function that runs the same step in PyTorch."""
    from benchmarks.pytorch import import_torch

    torch, open_clip = import_torch(), import_torch("open_clip")
    model = open_clip.create_model("ViT-B-32-quickgelu").train()
    loss_fn = open_clip.loss.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    image, text = torch.tensor(pixels(batch)).permute(0, 3, 1, 2).contiguous(), torch.tensor(tokens(batch)).long()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        image_embedding, text_embedding, scale = model((image / 255.0 - mean) / std, text)[:3]
        loss = loss_fn(image_embedding, text_embedding, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        float(loss)

    return run


def numpy_matmul():
    a = np.ones((SIDE, SIDE), np.float32)
    return lambda: a @ a


def xla_matmul():
    import jax

    product = jax.jit(lambda a: a @ a)
    a = jax.numpy.ones((SIDE, SIDE))
    return lambda: product(a).block_until_ready()


def torch_matmul():
    from benchmarks.pytorch import import_torch

    a = import_torch().ones((SIDE, SIDE))
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
    """The worker's side: one step to warm up, then one turn for each line of input."""
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        run()
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, flush=True)


def start_worker(name: str, batch: int, huge_pages: bool) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.train_step", f"--worker={name}", f"--batch={batch}"]
    # OPENBLAS_CORETYPE may choose another processor's kernels, whose peak is not this processor's.
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    env |= {"HF_HUB_OFFLINE": "1"} | ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {})
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
