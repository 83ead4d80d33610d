"""What keeping freed memory does to a train step on CPU: time, page faults, and the memory that the process holds.

    python -m benchmarks.kept_memory                                 # the quickstart's step
    python -m benchmarks.kept_memory --config=experiments/emoji.py --batch=64

Each form is a process of its own: malloc as glibc has it ("plain"), with huge pages (what GLIBC_TUNABLES=
glibc.malloc.hugetlb=1 does), with all that clipjax keeps set by GLIBC_TUNABLES ("tunables"), set by clipjax in its own
process ("kept", what `clipjax train` does), and the same without its one arena ("arenas"). They take turns; the script
prints medians and writes benchmarks/results/kept_memory_PROCESSOR.json. Linux with glibc 2.35 or newer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import bfloat16_units, command, machine, processor
from benchmarks.train_step import short

HUGE = "glibc.malloc.hugetlb=1"
TUNABLES = f"{HUGE}:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.arena_max=1"
FORMS = {"plain": "", "huge pages": HUGE, "tunables": TUNABLES, "kept": "", "arenas": TUNABLES.rpartition(":")[0]}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="experiments/quickstart.py")
    parser.add_argument("--batch", type=int, default=0, help="0: the experiment's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="a turn")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--worker", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(args.worker, args.config, args.batch)
    workers = {name: start_worker(name) for name in args.forms.split(",")}
    for worker in workers.values():
        ask(worker, 2)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for number in range(args.rounds):
        for name in workers if number % 2 == 0 else reversed(workers):
            turns[name].append(ask(workers[name], args.steps))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    medians = {name: summary(values) for name, values in turns.items()}
    print(table(medians))
    result = {"config": args.config, "command": command("benchmarks.kept_memory"), "machine": machine()}
    result |= {"medians": medians, "turns": turns}
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"kept_memory_{short(processor(), bfloat16_units())}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {out}")


def serve(form: str, config_file: str, batch: int) -> None:
    """A worker: runs as many steps as each line of its input says, and prints what they took as JSON."""
    from clipjax.machine.environment import keep_memory, memory_limit

    if form == "kept":
        keep_memory(memory_limit() // 2)
    import jax
    import numpy as np

    from clipjax.commands.flags import read_config
    from clipjax.mesh import make_mesh
    from clipjax.training.state import abstract_state, create_state
    from clipjax.training.step import batch_shapes, make_train_step

    config = read_config([f"--config={config_file}"])
    config = replace(config, global_batch_size=batch or config.global_batch_size)
    mesh, rng = make_mesh(config.mesh), np.random.default_rng(0)
    step = make_train_step(config, mesh, abstract_state(config, mesh))
    data = {name: rng.integers(1, 200, shape).astype(dtype) for name, (shape, dtype) in batch_shapes(config).items()}
    state = create_state(config, mesh)
    for line in sys.stdin:
        before, seconds = resource.getrusage(resource.RUSAGE_SELF), []
        for _ in range(int(line)):
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(step(state, data))
            seconds.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_SELF)
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        turn = {
            "seconds": seconds,
            "images": config.global_batch_size,
            "user": after.ru_utime - before.ru_utime,
            "system": after.ru_stime - before.ru_stime,
            "faults": after.ru_minflt - before.ru_minflt,
            "held_mb": int(status["VmRSS"].split()[0]) >> 10,
            "peak_mb": int(status["VmHWM"].split()[0]) >> 10,
        }
        print(json.dumps(turn), flush=True)


def start_worker(form: str) -> subprocess.Popen:
    """The process of a form."""
    env = os.environ | ({"GLIBC_TUNABLES": FORMS[form]} if FORMS[form] else {})
    program = [sys.executable, "-m", "benchmarks.kept_memory", *sys.argv[1:], f"--worker={form}"]
    return subprocess.Popen(program, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen, steps: int) -> dict[str, Any]:
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def table(medians: dict[str, dict[str, Any]]) -> str:
    """A row for each form, as Markdown."""
    lines = ["| malloc | step, ms | images/s | in the kernel | page faults a step | memory held, MB | its peak, MB |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name, one in medians.items():
        lines.append(
            f"| {name} | {one['milliseconds']:.0f} | {one['images_per_second']:.0f} | {one['system_share']:.0%} "
            f"| {one['faults']:,.0f} | {one['held_mb']:,} | {one['peak_mb']:,} |"
        )
    return "\n".join(lines)


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """A form's row of the table."""
    seconds = [second for turn in turns for second in turn["seconds"]]
    system, user = (sum(turn[name] for turn in turns) for name in ("system", "user"))
    return {
        "milliseconds": statistics.median(seconds) * 1000,
        "images_per_second": turns[0]["images"] / statistics.median(seconds),
        "system_share": system / (system + user),
        "faults": sum(turn["faults"] for turn in turns) / len(seconds),
        "held_mb": turns[-1]["held_mb"],
        "peak_mb": turns[-1]["peak_mb"],
    }


if __name__ == "__main__":
    main()
