"""Reads a million damaged and hostile files with clipjax's readers: each gives a right value, or one clean line.

    python -m benchmarks.fuzz                                  # a million inputs; an hour or two on one core
    python -m benchmarks.fuzz --count=20000 --readers=images,tars --workers=2
    python -m benchmarks.fuzz --input=tars/3/117               # one input again, with its traceback

Inputs are small valid files of each format, changed: bits, bytes, lengths, pieces, and values inside what the format is
made of (benchmarks/fuzzing). Readers are called in worker processes, as the commands call them. A fault is an error
that is not clipjax's, a message that is no clean text, a wrong value, more than SECONDS or MEMORY, or the end of the
process; its files and the command that repeats it are kept under --out. Input n of a reader is the same for a seed on
every machine. Work is done in shards, whose results are kept too: started again, the script goes on.

Prints a table by reader and writes benchmarks/results/fuzz.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.machine import command, machine

SHARD = 2000  # inputs
SECONDS, MEMORY = 10, 1 << 30  # of one input: processor time, as machines are busy; memory of the whole process
PATIENCE = 300  # seconds by the clock after which a process is killed that waits, or answers no signal
LONGEST_MESSAGE = 6000  # characters
RESULTS = Path(__file__).parent / "results" / "fuzz.json"


class TooLongError(BaseException):
    """An input took more than SECONDS."""


def read_input(reader: str, cases: list, seed: int, shard: int, index: int, root: Path) -> tuple[Any, str, Path]:
    """Writes one input below root. Returns (its case, the file that was changed, the folder)."""
    rng = random.Random(f"{seed}/{reader}/{shard}/{index}")
    number = rng.randrange(len(cases))
    case, folder = cases[number], root / str(number)
    if not folder.exists():
        for name, data in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    target = rng.choice(sorted(case.changes))
    name = target.strip()
    (folder / name).write_bytes(case.changes[target](case.files[name], rng))
    return case, name, folder


def judge(case: Any, folder: Path) -> tuple[str, str, str]:
    """Reads an input. Returns ("value" or "refused", the error's type, "") or ("fault", its kind, what happened)."""
    from clipjax.files import message_text

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        case.read(folder)
        return "value", "", ""
    except TooLongError:
        return "fault", "time", f"more than {SECONDS} s\n{traceback.format_exc(limit=-4)}"
    except OSError as error:
        if error.filename and not type(error).__module__.startswith("clipjax."):
            return "refused", type(error).__name__, ""
        found = error
    except BaseException as error:
        found = error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    kind, message = type(found).__name__, message_text(found)
    if not type(found).__module__.startswith("clipjax."):
        return "fault", kind, "".join(traceback.format_exception(found, limit=-6))[-4000:]
    if not message.strip() or len(message) > LONGEST_MESSAGE:
        return "fault", "message", f"{kind}: {len(message)} characters: {message[:300]!r}"
    if "\x1b" in message:
        return "fault", "message", f"{kind}: {message[:300]!r}"
    return "refused", kind, ""


def work(tasks: list[tuple[str, int, int, int]], seed: int, out: str, state: Any) -> None:
    """A worker: reads inputs `first` to `last` of each (reader, shard, first, last), and writes down what came of them.

    state: of the task and input at work, for the parent: [task, index, time it began, highest memory].
    """
    from benchmarks.fuzzing.readers import READERS

    logging.disable(logging.CRITICAL)
    os.environ["PYTHONWARNINGS"] = "ignore"
    import warnings

    warnings.simplefilter("ignore")
    log = os.open(Path(out) / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    signal.signal(signal.SIGPROF, _too_long)
    known: dict[str, list] = {}
    for number, (reader, shard, first, last) in enumerate(tasks):
        if reader not in known:
            known[reader] = READERS[reader][0]()
        _reset_memory()
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
            counts = _work_shard(
                reader, known[reader], seed, shard, (first, last), Path(root), Path(out), number, state
            )
        _add(Path(out), reader, shard, counts)


def _work_shard(
    reader: str,
    cases: list,
    seed: int,
    shard: int,
    span: tuple[int, int],
    root: Path,
    out: Path,
    number: int,
    state: Any,
) -> dict[str, Any]:
    counts: dict[str, Any] = {"value": 0, "refused": 0, "fault": 0, "errors": {}, "slowest": 0.0, "memory": 0}
    began = time.process_time()
    for index in range(*span):
        if index % 100 == 0 and index > span[0]:
            _add(out, reader, shard, counts, until=index)
            counts = {"value": 0, "refused": 0, "fault": 0, "errors": {}, "slowest": 0.0, "memory": 0}
        state[0], state[1], state[2] = number, index, time.time()
        case, name, folder = read_input(reader, cases, seed, shard, index, root)
        start = time.process_time()
        outcome, kind, what = judge(case, folder)
        seconds, memory = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if memory > MEMORY and outcome != "fault":
            outcome, kind, what = "fault", "memory", f"{memory >> 20} MB"
        counts[outcome] += 1
        counts["slowest"], counts["memory"] = max(counts["slowest"], seconds), max(counts["memory"], memory)
        if kind:
            counts["errors"][kind] = counts["errors"].get(kind, 0) + 1
        if outcome == "fault":
            keep(out, reader, seed, shard, index, kind, what, case, folder)
            if memory > MEMORY:
                _reset_memory()
        (folder / name).write_bytes(case.files[name])
    counts["seconds"] = time.process_time() - began
    return counts


def _add(out: Path, reader: str, shard: int, counts: dict[str, Any], until: int = SHARD) -> None:
    """Adds counts to a shard's file; until: how far the shard has been read."""
    path = out / "shards" / f"{reader}-{shard:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_text()) if path.exists() else {"errors": {}}
    new = {name: old.get(name, 0) + counts.get(name, 0) for name in ("value", "refused", "fault", "seconds")}
    new |= {name: max(old.get(name, 0), counts.get(name, 0)) for name in ("slowest", "memory")}
    kinds = old["errors"].keys() | counts.get("errors", {}).keys()
    new["errors"] = {kind: old["errors"].get(kind, 0) + counts.get("errors", {}).get(kind, 0) for kind in kinds}
    new |= {"until": until, "commit": commit()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(new))
    temporary.replace(path)


def again_command(seed: int, reader: str, shard: int, index: int) -> str:
    """The command that reads one input again."""
    return f"python -m benchmarks.fuzz --seed={seed} --input={reader}/{shard}/{index}"


def keep(
    out: Path,
    reader: str,
    seed: int,
    shard: int,
    index: int,
    kind: str,
    what: str,
    case: Any = None,
    folder: Any = None,
) -> None:
    """Keeps the files of a fault, and the command that repeats it."""
    place = out / "faults" / f"{reader}-{kind}-{shard}-{index}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if folder is not None:
        shutil.copytree(folder, place / "files", symlinks=True)
    again = again_command(seed, reader, shard, index)
    label = case.label if case is not None else ""
    (place / "fault.json").write_text(json.dumps({"kind": kind, "case": label, "again": again, "what": what}, indent=1))


def run(tasks: list[tuple[str, int, int, int]], seed: int, out: Path, workers: int, until: float) -> None:
    """Divides tasks among workers, and starts one again that died or hangs, after the input that it was at."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the workers, too
    context = multiprocessing.get_context("spawn")
    shares = [tasks[number::workers] for number in range(workers)]
    processes: list[Any] = [None] * workers
    states = [context.Array("d", 4, lock=False) for _ in range(workers)]
    while any(shares) and time.time() < until:
        for number, share in enumerate(shares):
            process, state = processes[number], states[number]
            if not share:
                continue
            if process is None:
                folder = out / f"worker-{number}"
                folder.mkdir(parents=True, exist_ok=True)
                state[0], state[1], state[2] = 0, share[0][2], time.time() + 600  # it imports everything first
                process = processes[number] = context.Process(
                    target=work, args=(share, seed, str(out), state), daemon=True
                )
                process.start()
            reader, shard, first, last = share[int(state[0])]
            stuck = time.time() - state[2] > PATIENCE or _memory(process.pid) > 4 * MEMORY
            if process.is_alive() and not stuck:
                continue
            process.kill() if stuck else None
            process.join()
            processes[number] = None
            if process.exitcode == 0:
                shares[number] = []
                continue
            index = int(state[1])
            kind = "hang or memory" if stuck else f"exit {process.exitcode}"
            keep(out, reader, seed, shard, index, kind, f"the process ended at this input: {kind}")
            saved = out / "shards" / f"{reader}-{shard:05d}.json"
            done = json.loads(saved.read_text())["until"] if saved.exists() else first
            _add(out, reader, shard, {"fault": 1, "errors": {kind: 1}}, until=index + 1)
            if done < index:  # inputs that were read, but not yet written down
                _add(out, reader, shard, {"refused": 0}, until=index + 1)
            shares[number] = [(reader, shard, index + 1, last), *share[int(state[0]) + 1 :]]
        time.sleep(0.2)
    for process in processes:
        if process is not None and process.is_alive():
            process.terminate()
            process.join()


def plan(readers: list[str], count: int, out: Path) -> list[tuple[str, int, int, int]]:
    """(reader, shard, first, last) of what is left to read, the readers in turn."""
    from benchmarks.fuzzing.readers import READERS

    total = sum(READERS[reader][1] for reader in readers)
    tasks = []
    for reader in readers:
        wanted = -(-count * READERS[reader][1] // total)
        for shard in range(-(-wanted // SHARD)):
            saved = out / "shards" / f"{reader}-{shard:05d}.json"
            first = json.loads(saved.read_text())["until"] if saved.exists() else 0
            last = min(SHARD, wanted - shard * SHARD)
            if first < last:
                tasks.append((shard / max(1, wanted), (reader, shard, first, last)))
    return [task for _, task in sorted(tasks)]


def summary(out: Path) -> dict[str, Any]:
    """{reader: its counts} of all shards."""
    table: dict[str, Any] = {}
    for path in sorted((out / "shards").glob("*.json")):
        shard = json.loads(path.read_text())
        row = table.setdefault(path.stem.rpartition("-")[0], {"errors": {}, "commits": []})
        for name in ("value", "refused", "fault", "seconds"):
            row[name] = row.get(name, 0) + shard[name]
        for name in ("slowest", "memory"):
            row[name] = max(row.get(name, 0), shard[name])
        for kind, number in shard["errors"].items():
            row["errors"][kind] = row["errors"].get(kind, 0) + number
        row["commits"] = sorted({*row["commits"], shard["commit"]})
    return table


def show(table: dict[str, Any]) -> str:
    """The table that the script prints."""
    lines = [f"{'reader':20}{'inputs':>10}{'values':>10}{'refused':>10}{'faults':>8}{'slowest, s':>12}{'MB':>7}"]
    for reader, row in table.items():
        inputs = row["value"] + row["refused"] + row["fault"]
        lines.append(
            f"{reader:20}{inputs:>10,}{row['value']:>10,}{row['refused']:>10,}{row['fault']:>8,}"
            f"{row['slowest']:>12.2f}{row['memory'] >> 20:>7,}"
        )
    return "\n".join(lines)


def again(reader: str, shard: int, index: int, seed: int) -> str:
    """Reads one input in this process; returns what came of it."""
    from benchmarks.fuzzing.readers import READERS

    signal.signal(signal.SIGPROF, _too_long)
    with tempfile.TemporaryDirectory() as root:
        case, name, folder = read_input(reader, READERS[reader][0](), seed, shard, index, Path(root))
        outcome, kind, what = judge(case, folder)
        message = ""
        with contextlib.suppress(BaseException):
            try:
                case.read(folder)
            except Exception as error:
                message = str(error)
                raise
    return f"{reader} {case.label}, {name}: {outcome} {kind}\n{what or message}"


def commit() -> str:
    """The commit whose readers are tried, with "+" for changes since."""
    if not _COMMIT:
        changed = _git("status", "--porcelain", "--", "../clipjax")
        _COMMIT.append(_git("rev-parse", "--short", "HEAD") + ("+" if changed else ""))
    return _COMMIT[0]


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


_COMMIT: list[str] = []


def _too_long(*_: Any) -> None:
    raise TooLongError


def _reset_memory() -> None:
    """Makes the highest memory of this process that of now, where Linux can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs in all")
    parser.add_argument("--readers", default="", help="joined by commas; all by default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long; the next start goes on")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="shards that are finished, and faults")
    parser.add_argument("--input", default="", help="READER/SHARD/INDEX: read one input again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.input:
        reader, shard, index = args.input.split("/")
        print(again(reader, int(shard), int(index), args.seed))
        return
    from benchmarks.fuzzing.readers import READERS

    readers = args.readers.split(",") if args.readers else list(READERS)
    if unknown := set(readers) - READERS.keys():
        sys.exit(f"error: unknown readers {', '.join(sorted(unknown))}. Known: {', '.join(READERS)}.")
    out = args.out / f"seed-{args.seed}"
    began = time.time()
    run(plan(readers, args.count, out), args.seed, out, args.workers, began + args.seconds)
    table = summary(out)
    print(show(table))
    document = {"command": command("benchmarks.fuzz"), "machine": machine(), "seed": args.seed, "commit": commit()}
    document |= {"limits": {"seconds": SECONDS, "memory": MEMORY}, "readers": table}
    document["inputs"] = sum(row["value"] + row["refused"] + row["fault"] for row in table.values())
    document["faults"] = sum(row["fault"] for row in table.values())
    args.results.write_text(json.dumps(document, indent=1) + "\n")
    if document["faults"]:
        print(f"{document['faults']} faults; their files and commands: {shlex.quote(str(out / 'faults'))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
