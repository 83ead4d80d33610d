"""Kills a run again and again and compares it with the same run left alone: parameters, curve, memory.

    python -m benchmarks.soak --config=experiments/quickstart.py --workdir=runs/soak --kills=100
    python -m benchmarks.soak --config=experiments/emoji.py --workdir=runs/soak --minutes=30 -- --config.total_steps=500

The two runs go on at the same time, each on a core of its own where there are two. WORKDIR/whole is left alone.
WORKDIR/killed gets SIGKILL or SIGTERM (two to one) at a random moment, counted from its start or, one life in two, from
its first step. It is started again until the kills or the minutes are used up; then it runs to its end. The script
writes benchmarks/results/soak_NAME.json and docs/images/soak_NAME.png. It exits with 1 when the two runs differ
anywhere or when the one left alone gained more memory than MAX_GAIN.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import command, machine
from clipjax.runs.metrics_log import read_metrics

ROOT = Path(__file__).parent.parent
# Differ between any two runs.
TIMES = (
    "images_per_second", "seconds_per_step", "data_wait", "model_flops_per_second", "mfu", "goodput",
    "peak_device_bytes", "peak_host_bytes",
)  # fmt: skip
SAMPLE_SECONDS = 2.0
MAX_SAMPLES = 40  # memory samples of each life kept in the JSON
MAX_GAIN = 5.0  # MB of resident memory in 1000 steps
WARM_UP_SHARE = 0.3  # share of a life left out of its memory's slope, while caches and buffers fill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--name", default="soak", help="of the JSON and the picture")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument(
        "--longest", type=float, default=20.0, help="seconds from start or first step to a kill, at most"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("extra", nargs="*", help="flags of clipjax train, after --")
    args = parser.parse_args()
    flags = [f"--config={args.config}", *args.extra]
    whole = Run(args.workdir / "whole", flags, core=0)
    thread = threading.Thread(target=whole.to_the_end)
    thread.start()
    killed = Run(args.workdir / "killed", flags, core=1)
    kill_again_and_again(killed, args.kills, args.minutes * 60, args.longest, random.Random(args.seed))
    thread.join()
    document = {
        "config": args.config,
        "flags": args.extra,
        "seed": args.seed,
        "longest_seconds": args.longest,
        "command": command("benchmarks.soak"),
        "machine": machine(),
        **compare(whole, killed),
    }
    out = ROOT / "benchmarks" / "results" / f"soak_{args.name}.json"
    out.write_text(to_json(document))
    draw(ROOT / "docs" / "images" / f"soak_{args.name}.png", whole, killed, document)
    print(json.dumps({name: value for name, value in document.items() if name != "lives"}, indent=1))
    sys.exit(0 if document["equal"] and whole.slope <= MAX_GAIN else 1)


class Run:
    """The processes of one run, one after the other, each with samples of (seconds, resident MB, step)."""

    def __init__(self, workdir: Path, flags: list[str], core: int):
        self.workdir, self.flags, self.core = workdir, flags, core
        self.lives: list[dict[str, Any]] = []
        self.started = time.monotonic()

    def to_the_end(self) -> None:
        self.live(None, None)

    def live(self, seconds: float | None, number: signal.Signals | None, *, from_first_step: bool = False) -> int:
        """Runs one process to its end, or sends it signal `number` `seconds` after its start or its first step.

        Returns the exit status.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(self.workdir.parent / "jax-cache")}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        # One heap for all threads: memory that one thread frees is reused by the others, so resident memory is in use.
        env["MALLOC_ARENA_MAX"] = "1"
        core = self.core % os.cpu_count()
        with open(self.workdir / "output.log", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "clipjax", "train", f"--workdir={self.workdir}", *self.flags],
                env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )  # fmt: skip
            started = time.monotonic()
            log_start, moment = log.tell(), None if from_first_step or seconds is None else started + seconds
            samples: list[tuple[float, float, int]] = []
            next_sample, sent = 0.0, ""
            while process.poll() is None:
                age = time.monotonic() - started
                if age >= next_sample:
                    next_sample = age + SAMPLE_SECONDS
                    samples.append((round(age, 1), resident_mb(process.pid), last_step(self.workdir)))
                if from_first_step and moment is None and b"\nstep" in self.output(log_start):
                    moment = time.monotonic() + seconds
                if moment is not None and time.monotonic() >= moment:
                    process.send_signal(number)
                    process.wait()
                    sent = number.name
                    break
                time.sleep(0.05)
        self.lives.append(
            {
                "seconds": round(time.monotonic() - started, 2),
                "steps_seen": b"\nstep" in self.output(log_start),
                "signal": sent,
                "status": process.returncode,
                "last_step": last_step(self.workdir),
                "samples": samples,
            }
        )
        return process.returncode

    def output(self, start: int) -> bytes:
        with open(self.workdir / "output.log", "rb") as file:
            file.seek(start)
            return file.read()

    @property
    def slope(self) -> float:
        """MB of resident memory gained in 1000 steps: least squares over the longest life, without its warm-up."""
        samples = max((life["samples"] for life in self.lives), key=len)
        samples = samples[int(WARM_UP_SHARE * len(samples)) :]
        _, memory, steps = np.array(samples, float).T
        return float(np.polyfit(steps, memory, 1)[0] * 1000)


def kill_again_and_again(run: Run, kills: int, seconds: float, longest: float, rng: random.Random) -> None:
    """Kills until both bounds are reached, then lets the run end. Exits when a process fails by itself."""
    started = time.monotonic()
    while len(run.lives) < kills or time.monotonic() - started < seconds:
        number = signal.SIGTERM if rng.random() < 1 / 3 else signal.SIGKILL
        status = run.live(rng.uniform(0, longest), number, from_first_step=rng.random() < 1 / 2)
        life = run.lives[-1]
        what = life["signal"] or "end"
        print(f"life {len(run.lives)}: {life['seconds']} s, {what}, step {life['last_step']}", flush=True)
        if status not in (0, -number, 128 + number):  # 128 + SIGTERM: before its first step
            raise SystemExit(f"The run ended with {status}; see {run.workdir}/output.log")
        if not life["signal"]:
            return  # it had reached its last step: --config.total_steps is too small for more kills
    if run.live(None, None) != 0:
        raise SystemExit(f"The run did not end well; see {run.workdir}/output.log")


def compare(whole: Run, killed: Run) -> dict[str, Any]:
    curves = [curve(run.workdir) for run in (whole, killed)]
    states = [final_state(run.workdir) for run in (whole, killed)]
    differing = [name for name in states[0] if states[0][name].tobytes() != states[1][name].tobytes()]
    ledgers = [(run.workdir / "bad_records.jsonl") for run in (whole, killed)]
    ledgers = [path.read_text() if path.exists() else "" for path in ledgers]
    signals = [life["signal"] for life in killed.lives]
    return {
        "equal": curves[0] == curves[1] and not differing and ledgers[0] == ledgers[1],
        "curves_equal": curves[0] == curves[1],
        "arrays": len(states[0]),  # parameters, optimizer, step, counters
        "arrays_that_differ": differing,
        "bad_records_equal": ledgers[0] == ledgers[1],
        "bad_records": len(ledgers[0].splitlines()),
        "steps": max(line["step"] for line in curves[0]),
        "final_loss": [next(line["loss"] for line in reversed(c) if "loss" in line) for c in curves],
        "kills": {name: signals.count(name) for name in ("SIGKILL", "SIGTERM")},
        "kills_after_the_first_step_of_a_life": sum(
            life["signal"] != "" and life["steps_seen"] for life in killed.lives
        ),
        "seconds": {"whole": sum(x["seconds"] for x in whole.lives), "killed": sum(x["seconds"] for x in killed.lives)},
        "memory_mb_per_1000_steps": {"whole": whole.slope, "killed": killed.slope},
        "lives": {"whole": whole.lives, "killed": killed.lives},
    }


def to_json(document: dict[str, Any]) -> str:
    """One line for each entry and each life, with at most MAX_SAMPLES samples of a life."""

    def line(life: dict[str, Any]) -> str:
        samples = life["samples"]
        return json.dumps({**life, "samples": samples[:: -(-len(samples) // MAX_SAMPLES) or 1]})

    entries = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items() if name != "lives"]
    lives = [
        f"{json.dumps(name)}: [\n" + ",\n".join(map(line, lives)) + "\n]" for name, lives in document["lives"].items()
    ]
    return "{\n" + ",\n".join([*entries, '"lives": {\n' + ",\n".join(lives) + "\n}"]) + "\n}\n"


def curve(workdir: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without the times."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(workdir)]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint's training state, by its path."""
    import jax

    from clipjax.config import MeshConfig
    from clipjax.mesh import make_mesh, path_name
    from clipjax.runs import open_run

    with open_run(workdir) as run:
        state = run.state(make_mesh(MeshConfig(), jax.devices()[:1]))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def last_step(workdir: Path) -> int:
    return max((line["step"] for line in read_metrics(workdir)), default=0)


def resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # the process has just ended
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def draw(path: Path, whole: Run, killed: Run, document: dict[str, Any]) -> None:
    """Draws both loss curves with the kills, and the memory of every process, over the steps."""
    from matplotlib.figure import Figure

    blue, orange, grey = "#2b6cb0", "#c05621", "#a0aec0"
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[1.4, 1])
    lines = (whole, "#90cdf4", 5, "left alone"), (killed, orange, 1.2, "killed and restarted")
    for run, color, width, label in lines:
        points = [(line["step"], line["loss"]) for line in curve(run.workdir) if "loss" in line]
        above.plot(*np.array(points, float).T, color=color, linewidth=width, label=label)
    steps = [life["last_step"] for life in killed.lives if life["signal"]]
    bottom = above.get_ylim()[0]
    above.plot(steps, [bottom] * len(steps), "|", color=grey, markersize=12, label=f"{len(steps)} kills", clip_on=False)
    same = "equal in every number" if document["curves_equal"] else "NOT equal"
    above.set(title=f"Training loss: the two curves are {same}", xlabel="step", ylabel="loss")
    above.legend(frameon=False)
    for run, color, label in ((killed, orange, "killed and restarted"), (whole, blue, "left alone")):
        for i, life in enumerate(run.lives):
            begun = [s for s in life["samples"] if s[1] > 0 and s[2] != life["samples"][0][2]]  # without start-up
            samples = np.array(begun, float).reshape(-1, 3)
            below.plot(samples[:, 2], samples[:, 1], color=color, linewidth=1, label=label if i == 0 else None)
    slope = document["memory_mb_per_1000_steps"]["whole"]
    below.set(title=f"Resident memory; left alone it gains {slope:.1f} MB in 1000 steps", xlabel="step", ylabel="MB")
    below.set_ylim(bottom=0)
    below.legend(frameon=False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
