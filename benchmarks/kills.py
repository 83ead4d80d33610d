"""Kills runs of one or several processes at random moments, many times, and compares each with one left alone.

    python -m benchmarks.kills --workdir=runs/kills --processes=1 --kills=500
    python -m benchmarks.kills --workdir=runs/kills --processes=2 --kills=300
    python -m benchmarks.kills --workdir=runs/kills --processes=4 --kills=200
    python -m benchmarks.kills --workdir=runs/kills --bucket=gs://bucket/kills --kills=100 --out=kills_gcs.json

WORKDIR gets its own data (scenes, some of them damaged) and a run left alone. A second run is killed in every life: two
times in three with SIGKILL, else with SIGTERM; in a phase drawn for the life (PHASES), or at a moment counted from its
start. It is started again until it reaches its last step; then its state must equal the first run's in every bit, its
curve in every number and bad_records.jsonl in every byte, and the next run begins, until all kills are used. Of several
processes one is killed and the others a moment later, as when all machines are taken away; in a few lives they are
left to notice. Exits with 1 at the first difference, or when a life ends in any other way than killed, saved or
finished.

Adds what it did to benchmarks/results/kills_N_processes.json, or to --out, after each run: a thousand kills may be made
in several sittings, each with another --seed, and a sitting that is interrupted keeps its finished runs.
`benchmarks.kills_results` adds files to one another.

With --bucket, the runs are kept there, and WORKDIR has the data and the run left alone; every second life has another
user's cache, as on another machine.

The processes are forked from one that has imported JAX and clipjax and used neither: what a kill during imports would
leave behind is nothing, and a life is four seconds shorter.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# JAX reads these when it is imported.
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

import matplotlib.figure  # noqa: F401  what a run imports late is imported here, too
import orbax.checkpoint  # noqa: F401

import clipjax.__main__
import clipjax.commands.train
from benchmarks import kills_results
from benchmarks.kills_experiment import build_data
from benchmarks.machine import command, machine
from benchmarks.soak import ROOT, curve
from clipjax import storage
from clipjax.runs.sweep import saved_step

# The frame that the main thread is in, if no later one is listed: (end of the file's name, function or "") -> phase.
FRAMES = {
    ("commands/train.py", "locked_run"): "start",
    ("training/step.py", "compile_step"): "compile",
    ("runs/resume.py", ""): "restore",
    ("inference/evaluate.py", "numbers_of_state"): "evaluation",
    ("training/loop.py", ""): "step",
    ("runs/checkpoint.py", ""): "checkpoint",
    ("report/summary.py", "finish"): "report",
}
WRITES = "_background_wait_for_commit_futures"  # the function of Orbax in which a thread writes a checkpoint
# How long the phase lasts at most where a kill is to come: the kill follows its beginning by a share of these seconds.
PHASES = {"compile": 2.0, "restore": 0.5, "evaluation": 0.5, "step": 2.0, "checkpoint": 0.1, "report": 1.0}
FIGURES_EVERY = 10  # every tenth run draws snapshots and a report, and may be killed while it does
LONGEST_START = 8.0  # seconds from a start to a kill that waits for no phase
NOTICE_SHARE = 0.02  # of the lives of several processes: only one is killed, and the others must end by themselves
NOTICE_SECONDS = 120  # in which they do
LONGEST_LIFE = 900

_lives = itertools.count()
bucket = ""  # where the killed runs are kept; "": in --workdir


class Kill(NamedTuple):
    """What ends a life: `signal` to process `index`, `seconds` after `phase` has begun ("": after the start)."""

    number: signal.Signals
    index: int
    phase: str
    seconds: float
    spare_others: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--bucket", default="", help="gs://... or s3://...: where the killed runs are kept")
    parser.add_argument("--minutes", type=float, default=0.0, help="the last run begins before they end; 0: no limit")
    parser.add_argument("--seed", type=int, help="default: one more than the largest in --out")
    parser.add_argument("--out", type=Path, help="JSON to add to; default benchmarks/results/kills_N_processes.json")
    args = parser.parse_args()
    global bucket
    bucket = args.bucket
    name = f"kills_{args.processes}_process{'es' if args.processes > 1 else ''}.json"
    out = args.out or ROOT / "benchmarks" / "results" / name
    try:
        before = [kills_results.read(out)] if out.exists() else []
        if before and before[0]["processes"] != args.processes:
            raise ValueError(f"{out} is of runs of {before[0]['processes']} processes")
        seeds = [sitting["seed"] for document in before for sitting in kills_results.sittings_of(document)]
        if args.seed in seeds:
            raise ValueError(f"{out} has the kills of --seed={args.seed} already; take another seed")
    except ValueError as error:
        sys.exit(str(error))
    seed = max(seeds, default=-1) + 1 if args.seed is None else args.seed
    about = {"command": command("benchmarks.kills"), "machine": machine(), "commit": kills_results.commit()}

    def add(document: dict[str, Any]) -> None:
        kills_results.write(out, kills_results.merged([*before, about | document]))

    document = kill_runs(args.workdir.absolute(), args.processes, args.kills, args.minutes * 60, seed, add)
    print(json.dumps(document, indent=1))
    print(f"added to {out}")


def kill_runs(
    workdir: Path,
    processes: int,
    kills: int,
    seconds: float = 0,
    seed: int = 0,
    after_run: Callable[[dict[str, Any]], None] = lambda document: None,
) -> dict[str, Any]:
    """Kills runs of `processes` processes `kills` times; returns what the JSON holds. Exits with 1 at a difference.

    after_run is called with the same after each run that ended like the one left alone.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    in_a_fork(build_data, workdir / "data")
    rng = random.Random(f"{seed} {processes}")
    whole, killed = workdir / f"whole_{processes}", workdir / f"killed_{processes}"
    shutil.rmtree(whole, ignore_errors=True)
    started = time.monotonic()
    end = live(workdir, whole, processes, None)
    if not end.finished:
        raise SystemExit(f"The run left alone did not finish: {end}; see {whole}/output.log")
    expected = result(whole)
    ended: list[tuple[Kill, str]] = []  # each kill, and the phase in which it came
    runs = lives = 0
    over = False
    while not over:
        shutil.rmtree(killed, ignore_errors=True)
        in_a_fork(remove, killed)
        figures, finished = runs % FIGURES_EVERY == 0, False
        while not finished:
            kill = draw_kill(rng, processes, figures) if len(ended) < kills else None
            end = live(workdir, killed, processes, kill, figures)
            lives += 1
            if end.wrong:
                raise SystemExit(f"Life {lives} ended wrongly: {end.wrong}; {kill}; see {killed}/output.log")
            if end.phase is not None:
                ended.append((kill, end.phase))
                print(f"run {runs + 1} life {lives} kill {len(ended)}: {kill.number.name} in {end.phase}", flush=True)
            finished = end.finished
        runs += 1
        differences = compare(expected, result(killed))
        if differences:
            raise SystemExit(f"Run {runs} of seed {seed} differs after {len(ended)} kills: {differences}; see {killed}")
        over = len(ended) >= kills or 0 < seconds < time.monotonic() - started
        document = summary(processes, seed, ended, runs, lives, expected, time.monotonic() - started)
        after_run(document)
    return document


def summary(
    processes: int,
    seed: int,
    ended: list[tuple[Kill, str]],
    runs: int,
    lives: int,
    expected: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """What the JSON holds of a sitting. ended: each kill, and the phase in which it came."""
    return {
        "processes": processes,
        "seed": seed,
        "kills": len(ended),
        "runs": runs,
        "lives": lives,
        "by_signal": collections.Counter(kill.number.name for kill, _ in ended),
        "by_phase": dict(collections.Counter(phase for _, phase in ended).most_common()),
        "others_left_to_notice": sum(kill.spare_others and kill.number == signal.SIGKILL for kill, _ in ended),
        "arrays": len(expected["state"]),
        "steps": max(line["step"] for line in expected["curve"]),
        "bad_records": len(expected["bad_records"].splitlines()),
        "equal": True,  # or this would not have been reached
        "seconds": round(seconds),
    }


def draw_kill(rng: random.Random, processes: int, figures: bool) -> Kill:
    number = signal.SIGTERM if rng.random() < 1 / 3 else signal.SIGKILL
    phase = rng.choice(["", *(phase for phase in PHASES if figures or phase != "report")])
    spare = number == signal.SIGTERM or (processes > 1 and rng.random() < NOTICE_SHARE)
    return Kill(number, rng.randrange(processes), phase, rng.random() * PHASES.get(phase, LONGEST_START), spare)


class End(NamedTuple):
    """How a life ended."""

    finished: bool  # it reached its last step
    phase: str | None  # in which the signal was sent; None: none was
    wrong: str  # what must not happen; ""


def workdir_of(run_folder: Path) -> Any:
    """Where a run is kept: the folder itself, or the killed ones in the bucket."""
    return storage.as_path(f"{bucket}/{run_folder.name}") if bucket and "killed" in run_folder.name else run_folder


def remove(run_folder: Path) -> None:
    """Removes what a bucket has of a run."""
    if bucket:
        workdir_of(run_folder).rmtree(missing_ok=True)


def live(workdir: Path, run_folder: Path, processes: int, kill: Kill | None, figures: bool = False) -> End:
    """Runs all processes of a life to its end, or to `kill`."""
    run_folder.mkdir(parents=True, exist_ok=True)
    note = run_folder / "killed_in"
    note.unlink(missing_ok=True)
    cluster = (
        [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={processes}"] if processes > 1 else []
    )
    pids, number = [], next(_lives)
    for index in range(processes):
        pid = os.fork()
        if pid == 0:
            argv = [*arguments(workdir, run_folder, figures), *cluster, *([f"--process_id={index}"] if cluster else [])]
            cache = workdir / f"cache_{processes}"
            own = kill if kill and kill.index == index else None
            child(argv, cache, run_folder, f"machine_{number // 2}", own, note)
        pids.append(pid)
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + LONGEST_LIFE
    told = False
    while len(statuses) < processes:
        for index, pid in enumerate(pids):
            if index not in statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    statuses[index] = os.waitstatus_to_exitcode(status)
        if kill and not told and statuses.get(kill.index) == -signal.SIGKILL:
            told = True
            deadline = time.monotonic() + NOTICE_SECONDS
            if not kill.spare_others:
                time.sleep(kill.seconds * 0.1)
                for index, pid in enumerate(pids):
                    if index not in statuses:
                        os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            for index, pid in enumerate(pids):
                if index not in statuses:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            return End(False, None, f"still running: all but {statuses}")
        time.sleep(0.01)
    return judge(
        run_folder, list(map(statuses.get, range(processes))), kill, note.read_text() if note.exists() else None
    )


def judge(run_folder: Path, statuses: list[int], kill: Kill | None, phase: str | None) -> End:
    """What exit statuses mean. After SIGKILL, the others may have any.

    After SIGTERM all must be 0 (saved). Before the first step, its process has 143, and with nothing left to save 0;
    the others cannot go on alone, and end with 1 or by JAX's service.
    """
    if phase is not None and kill.number == signal.SIGKILL:
        if statuses[kill.index] != -signal.SIGKILL:
            return End(False, phase, f"exit statuses {statuses}")
        if kill.spare_others and 0 in statuses and not finished(run_folder):
            return End(False, phase, f"a process said that all was well: exit statuses {statuses}")
        return End(False, phase, "")
    stopped = 128 + signal.SIGTERM
    own = None if phase is None else statuses[kill.index]
    alone = own == stopped or (own == 0 and finished(run_folder))
    if any(status not in ((0, 1, stopped, -signal.SIGABRT) if alone else (0,)) for status in statuses):
        return End(False, phase, f"exit statuses {statuses}")
    return End(not any(statuses) and finished(run_folder), phase, "")


def finished(run_folder: Path) -> bool:
    """Whether the newest line of the run's log is of its last step, and the checkpoint is there."""
    return in_a_fork(is_finished, run_folder) if bucket else is_finished(run_folder)


def is_finished(run_folder: Path) -> bool:
    try:
        config = json.loads((workdir_of(run_folder) / "config.json").read_text())
    except FileNotFoundError:
        return False
    return saved_step(workdir_of(run_folder)) == config["total_steps"]


def child(argv: list[str], cache: Path, run_folder: Path, machine_name: str, kill: Kill | None, note: Path) -> None:
    """A forked process: `clipjax *argv`, which sends itself the signal. Never returns.

    machine_name: of the folder in which it finds the files of the user's cache, if the run is in a bucket.
    """
    status = 1
    try:
        log = os.open(run_folder / "output.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if bucket:
            os.environ["XDG_CACHE_HOME"] = str(run_folder / machine_name)
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
        import jax

        jax.config.update("jax_compilation_cache_dir", str(cache))
        if kill:
            threading.Thread(target=send, args=(kill, run_folder, note), daemon=True).start()
        sys.argv = ["clipjax", *argv]
        clipjax.__main__.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    finish(status)


def finish(status: int) -> None:
    """Ends a forked process as the interpreter would: its exit handlers first (JAX's leave the cluster)."""
    import atexit

    atexit._run_exitfuncs()
    os._exit(status)


def arguments(workdir: Path, run_folder: Path, figures: bool) -> list[str]:
    config = f"--config={ROOT / 'benchmarks' / 'kills_experiment.py'}:{workdir / 'data'}"
    return ["train", config, f"--workdir={workdir_of(run_folder)}", f"--config.log.figures={str(figures).lower()}"]


def send(kill: Kill, run_folder: Path, note: Path) -> None:
    """Waits for the phase, then for the seconds; notes the phase of that moment and sends the signal."""
    while kill.phase and phase_of(run_folder) != kill.phase:
        time.sleep(0.002)
    time.sleep(kill.seconds)
    note.write_text(phase_of(run_folder))
    os.kill(os.getpid(), kill.number)


def phase_of(run_folder: Path) -> str:
    """What the main thread is doing; "checkpoint" as well while another thread writes one."""
    folder, frames = run_folder / "checkpoints", sys._current_frames()
    if folder.is_dir() and any("tmp" in name for name in os.listdir(folder)):
        return "checkpoint"
    if bucket and any(code.co_name == WRITES for each in frames.values() for code in codes(each)):
        return "checkpoint"
    for code in codes(frames.get(threading.main_thread().ident)):
        for (file, function), phase in FRAMES.items():
            if code.co_filename.endswith(f"clipjax/{file}") and function in ("", code.co_name):
                return phase
    return "before and after"


def codes(frame: types.FrameType | None) -> Iterator[types.CodeType]:
    """The functions that a frame is inside of, the innermost first."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def result(run_folder: Path) -> dict[str, Any]:
    """What must be equal: every array of the last training state as bytes, the curve, and the bad records."""
    return in_a_fork(result_of, run_folder)


def result_of(run_folder: Path) -> dict[str, Any]:
    workdir = workdir_of(run_folder)
    bad = workdir / "bad_records.jsonl"
    return {
        "state": state_of(workdir),
        "curve": curve(workdir),
        "bad_records": bad.read_text() if bad.exists() else "",
    }


def state_of(run_folder: Path) -> dict[str, str]:
    """{path of an array: sha256 of its bytes}."""
    from benchmarks.soak import final_state

    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in final_state(run_folder).items()}


def in_a_fork(function: Callable[[Path], Any], path: Path) -> Any:
    """function(path), as JSON keeps it. JAX and others start threads, after which this process could not fork."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            with os.fdopen(writer, "w") as pipe:
                json.dump(function(path), pipe)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit(f"{function.__name__} of {path} failed; see above")
    return json.loads(text)


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    names = expected["state"].keys() | found["state"].keys()
    differing = [name for name in sorted(names) if expected["state"].get(name) != found["state"].get(name)]
    return differing + [name for name in ("curve", "bad_records") if expected[name] != found[name]]


if __name__ == "__main__":
    main()
