"""Measures the ratios that matter in under four minutes and says what moved since this processor's baseline.

    make bench-quick                                  # compares with the baseline of this processor and jaxlib
    python -m benchmarks.quick --write                # writes the baseline; --add widens it by another run
    python -m benchmarks.quick --only=train,softmax   # the ratios whose names contain one of these words

Each ratio is that of two pieces of work which take turns in the same rounds, so that both see the same machine. A ratio
moved when all of this run's rounds lie on one side of all of the baseline's, and the medians differ by more than 5%
(counts of bytes: 0.5%). Baselines of several processors lie side by side, as benchmarks/results/quick_*.json.

Exit code: 0, nothing got worse; 1, something got worse; 2, a bad option, or a process that ended early; 3, there is no
baseline for this processor and jaxlib. docs/bench_quick.md has more.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import quick_work
from benchmarks.kills_results import commit
from benchmarks.machine import bfloat16_units, command, machine, processor
from clipjax.files import TextFileError, read_text, write_text

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
FLOOR = {"time": 0.05, "count": 0.005}  # relative differences of medians that are never called a move
FEWEST = 3  # rounds, below which nothing is said to have moved
SECONDS = 200.0  # no round begins that would end later than this after the start
QUIET = 0.15  # cores, used by other programs
WORSE, WRONG, NO_BASELINE = 1, 2, 3


class Ratio(NamedTuple):
    """over / under, two contenders; the larger the better. parts: those of quick_work.WORK that make them."""

    over: str
    under: str
    parts: tuple[str, ...] = ()
    kind: str = "time"


RATIOS = {
    "train step float32, speed beside open_clip": Ratio(
        "open_clip step float32", "step float32", ("train steps", "open_clip steps")
    ),
    "train step bfloat16, speed beside open_clip": Ratio(
        "open_clip step bfloat16", "step bfloat16", ("train steps", "open_clip steps")
    ),
    "train step, speed of bfloat16 beside float32": Ratio("step float32", "step bfloat16", ("train steps",)),
    "softmax loss, speed beside dense": Ratio("softmax dense", "softmax tiled", ("losses",)),
    "sigmoid loss, speed beside dense": Ratio("sigmoid dense", "sigmoid tiled", ("losses",)),
    "softmax loss, memory of dense over its own": Ratio(
        "softmax dense bytes", "softmax tiled bytes", ("losses",), "count"
    ),
    "sigmoid loss, memory of dense over its own": Ratio(
        "sigmoid dense bytes", "sigmoid tiled bytes", ("losses",), "count"
    ),
    "compilation, speed of scanned layers beside unrolled": Ratio(
        "compile unrolled", "compile scanned", ("compilations",)
    ),
    "quickstart step, speed in matrix products": Ratio("matrix products", "quickstart step", ("quickstart",)),
    "LiT step, speed with stored embeddings": Ratio(
        "LiT step, tower run", "LiT step, embeddings stored", ("frozen tower",)
    ),
    "training input, speed beside Pillow": Ratio("Pillow", "input", ("input",)),
    "reading array_record, speed beside tarfile": Ratio("tarfile", "array_record", ("readers",)),
    "reading webdataset, speed beside tarfile": Ratio("tarfile", "webdataset", ("readers",)),
    "reading parquet, speed beside tarfile": Ratio("tarfile", "parquet", ("readers",)),
    "reading a folder with a table, speed beside tarfile": Ratio("tarfile", "folder, table", ("readers",)),
    "clipjax --help, speed beside importing JAX": Ratio("import jax", "clipjax --help"),
}


def main() -> None:
    args = options()
    ratios = chosen(args.only)
    try:
        old = read_baseline(args.baseline) if args.baseline else find_baseline(args.results, key(args.size))
    except (ValueError, TextFileError, OSError) as error:
        stop(f"{error}")
    if args.add and not old:
        stop(f"There is no baseline to add to for {words(key(args.size))}; write one first, with --write.")
    document = measure(args.size, ratios, args.rounds, args.no_torch)
    print()
    if args.write or args.add:
        path = args.results / file_name(document["key"])
        write_text(path, json.dumps(joined(old, document) if args.add else document, indent=1) + "\n")
        print(f"{'Added to' if args.add else 'Wrote'} {path}; commit it, and run: python -m benchmarks.tables")
        return
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    if not old:
        print("\n".join(without_baseline(document, args.results)))
        sys.exit(NO_BASELINE)
    lines, worse = compare(old, document)
    print("\n".join(lines))
    sys.exit(WORSE if worse else 0)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, help=f"fewer if {SECONDS:.0f} s are over before, but at least {FEWEST}"
    )
    parser.add_argument("--only", default="", help="words separated by commas; ratios whose names contain one of them")
    parser.add_argument("--no_torch", action="store_true", help="without open_clip, even where it is installed")
    parser.add_argument("--write", action="store_true", help="write this processor's baseline instead of comparing")
    parser.add_argument("--add", action="store_true", help="add this run's rounds to the baseline")
    parser.add_argument("--baseline", type=Path, help="JSON to compare with, also of another processor or jaxlib")
    parser.add_argument("--out", type=Path, help="JSON for this run's figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the baselines")
    parser.add_argument("--size", choices=quick_work.SIZES, default="standard", help="toy: only to try the script")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if (args.write or args.add) and (args.only or args.baseline or args.out or args.write == args.add):
        parser.error("--write and --add measure all ratios for this processor's baseline: give one of them alone")
    return args


def chosen(only: str) -> dict[str, Ratio]:
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    ratios = {name: ratio for name, ratio in RATIOS.items() if not words or any(word in name.lower() for word in words)}
    return ratios or stop(f"No ratio's name contains {only!r}. They are:\n  " + "\n  ".join(RATIOS))


def measure(size: str, ratios: dict[str, Ratio], rounds: int, no_torch: bool) -> dict[str, Any]:
    """Runs the rounds; returns the JSON, with all samples of each ratio."""
    started = time.monotonic()
    parts = {part for ratio in ratios.values() for part in ratio.parts}
    work = {kind: [part for part in made if part in parts] for kind, made in quick_work.WORK.items()}
    if no_torch or not installed("open_clip"):
        del work["torch"]
    workers = [Worker(kind, size, made) for kind, made in work.items() if made]
    try:
        turns: dict[str, Callable[[], float]] = quick_work.start_up(quick_work.SIZES[size], ROOT)
        for worker in workers:
            turns |= {name: lambda w=worker, n=name: w.ask(n) for name in worker.hear()}
        needed = {name for ratio in ratios.values() for name in (ratio.over, ratio.under)}
        turns = {name: turn for name, turn in turns.items() if name in needed}
        print(f"ready after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        samples, others = take_turns(turns, rounds, started, [worker.process.pid for worker in workers])
    finally:
        for worker in workers:
            worker.end()
    found = {}
    for name, ratio in ratios.items():
        if ratio.over in samples and ratio.under in samples:  # else open_clip is not installed
            values = [over / under for over, under in zip(samples[ratio.over], samples[ratio.under], strict=True)]
            found[name] = {"kind": ratio.kind, "samples": [round(value, 4) for value in values]}
    return {
        "key": key(size),
        "machine": machine(),
        "command": command("benchmarks.quick"),
        "commit": commit(),
        "runs": 1,
        "cores_used_by_others": round(others, 2),
        "ratios": found,
        "seconds": {name: [float(f"{value:.4g}") for value in values] for name, values in samples.items()},
    }


def take_turns(
    turns: dict[str, Callable[[], float]], rounds: int, started: float, pids: Iterable[int]
) -> tuple[dict[str, list[float]], float]:
    """Lets each contender work once a round, in alternating order. Returns its seconds and the cores others used."""
    samples: dict[str, list[float]] = {name: [] for name in turns}
    busy, own, begun, longest = busy_seconds(), own_seconds(pids), time.monotonic(), 0.0
    for number in range(rounds):
        now = time.monotonic()
        if number >= FEWEST and now - started + longest > SECONDS:
            break
        print(f"round {number + 1}/{rounds} ...", file=sys.stderr, flush=True)
        for name in turns if number % 2 == 0 else reversed(turns):
            samples[name].append(turns[name]())
        longest = max(longest, time.monotonic() - now)
    used = busy_seconds() - busy - (own_seconds(pids) - own)
    return samples, max(0.0, used / max(1e-9, time.monotonic() - begun))


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], bool]:
    """Lines that say what moved from the baseline `old` to `new`, and whether something got worse."""
    lines = [f"{'ratio':52} {'baseline':>22} {'this run':>22}"]
    moved: dict[str, list[str]] = {"worse": [], "better": []}
    for name in [*old["ratios"], *(name for name in new["ratios"] if name not in old["ratios"])]:
        before, after = (document["ratios"].get(name) for document in (old, new))
        said = verdict(before, after)
        lines.append(f"{name:52} {spread(before):>22} {spread(after):>22}  {said}".rstrip())
        for direction, names in moved.items():
            if said.startswith(direction):
                names.append(name)
    lines.append("")
    for document, called in ((old, "The baseline was measured"), (new, "This run was measured")):
        others = document.get("cores_used_by_others", 0.0)
        if others > QUIET:
            lines.append(f"{called} while other programs used {others:.1f} cores: repeat it on an idle machine.")
    if old["key"] != new["key"]:
        lines.append(
            f"The baseline is of another machine or version: {words(old['key'])}. This one: {words(new['key'])}."
        )
    for direction, names in moved.items():
        if names:
            lines.append(f"{direction.capitalize()}, beyond noise: {'; '.join(names)}.")
    if not any(moved.values()):
        lines.append("Nothing moved beyond noise.")
    elif not moved["worse"]:
        lines.append(
            "Nothing got worse. If the change is meant, make it the baseline: python -m benchmarks.quick --write"
        )
    return lines, bool(moved["worse"])


def verdict(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """ "": the same up to noise; else what happened to a ratio.

    It moved when every round lies beyond every round of the baseline, and the medians are further apart than FLOOR.
    """
    if after is None:
        return "not measured"
    if before is None:
        return "new: not in the baseline"
    old, new = before["samples"], after["samples"]
    if min(len(old), len(new)) < FEWEST:
        return "too few rounds to tell"
    change = statistics.median(new) / statistics.median(old) - 1
    if abs(change) <= FLOOR[after["kind"]] or not (max(new) < min(old) or min(new) > max(old)):
        return ""
    return f"{'better' if change > 0 else 'worse'} ({change:+.1%})"


def spread(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return "-"
    low, high = min(ratio["samples"]), max(ratio["samples"])
    middle = f"{statistics.median(ratio['samples']):.3g}"
    return middle if low == high else f"{middle} ({low:.3g} to {high:.3g})"


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A baseline with the rounds of both: its spread has what differs from run to run."""
    ratios = {
        name: ratio | {"samples": old["ratios"].get(name, {"samples": []})["samples"] + ratio["samples"]}
        for name, ratio in new["ratios"].items()
    }
    kept = {name: ratio for name, ratio in old["ratios"].items() if name not in ratios}
    others = max(document.get("cores_used_by_others", 0.0) for document in (old, new))
    return new | {"runs": old.get("runs", 1) + 1, "cores_used_by_others": others, "ratios": ratios | kept}


def key(size: str) -> dict[str, Any]:
    """What a baseline holds for. Clouds name processors with and without bfloat16 units alike; their flags differ."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "bfloat16": " and ".join(bfloat16_units()) or "no bfloat16 units",
        "jaxlib": importlib.metadata.version("jaxlib"),
        "size": size,
    }


def words(key: dict[str, Any]) -> str:
    size = "" if key["size"] == "standard" else f", {key['size']} size"
    return f"{key['processor']}, {key['cores']} cores, {key['bfloat16']}, jaxlib {key['jaxlib']}{size}"


def file_name(key: dict[str, Any]) -> str:
    name = re.sub(r"\((r|tm)\)", "", words(key).lower())
    return f"quick_{re.sub(r'[^a-z0-9.]+', '_', name).strip('_')}.json"


def find_baseline(results: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The baseline of this processor, whatever its file is called; None where there is none."""
    return next((found for found in map(read_baseline, baselines(results)) if found["key"] == key), None)


def baselines(results: Path) -> list[Path]:
    return sorted(results.glob("quick_*.json"))


def read_baseline(path: Path) -> dict[str, Any]:
    """Raises ValueError with the file's name when it is none."""
    try:
        document = json.loads(read_text(path))
        for ratio in document["ratios"].values():
            statistics.median(map(float, ratio["samples"]))
            FLOOR[ratio["kind"]]
        words(document["key"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a baseline of benchmarks.quick ({type(error).__name__}: {error})") from None
    return document


def without_baseline(document: dict[str, Any], results: Path) -> list[str]:
    """This run's figures, that there is nothing to compare them with, and how to make a baseline."""
    lines = [f"{name:52} {spread(ratio):>22}" for name, ratio in document["ratios"].items()]
    lines += ["", f"There is no baseline for this processor: {words(document['key'])}."]
    there = [f"  {words(read_baseline(path)['key'])} (--baseline={path})" for path in baselines(results)]
    lines += ["There are baselines for:", *there] if there else []
    return [*lines, "To make one, on an idle machine, before the change: python -m benchmarks.quick --write"]


class Worker:
    """A process of quick_work, which makes these parts."""

    def __init__(self, kind: str, size: str, parts: list[str]):
        # No compilation may come from a cache. OPENBLAS_CORETYPE may choose another processor's kernels.
        env = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "HF_HUB_OFFLINE": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
        self.kind, self.errors = kind, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.quick_work", kind, size, *parts],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env,
        )  # fmt: skip

    def hear(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            stop(f"{self.errors.read()}\nThe {self.kind} worker ended early; see above.")
        return json.loads(line)

    def ask(self, name: str) -> float:
        try:
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended; hear() says so
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def busy_seconds() -> float:
    """Core seconds used by all processes so far, the hypervisor's other machines (steal) included; 0 but on Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds(pids: Iterable[int]) -> float:
    """Core seconds of this process, its ended children and the workers."""
    seconds = sum(os.times()[:4])
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists():
            fields = stat.read_text().rsplit(")", 1)[1].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def stop(message: str) -> Any:
    print(message, file=sys.stderr)
    sys.exit(WRONG)


if __name__ == "__main__":
    main()
