"""What benchmarks.kills writes, and how the results of several sittings become one.

    python -m benchmarks.kills_results --out=benchmarks/results/kills_2_processes.json sitting_1.json sitting_2.json

adds the files' kills to OUT, which may exist. All must be of runs with the same number of processes. A sitting that
OUT has already is refused, so that no kill counts twice. `benchmarks.kills --out=OUT` adds its own in the same way.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipjax.files import TextFileError, read_text, write_text

ROOT = Path(__file__).parent.parent
SUMS = ("kills", "runs", "lives", "others_left_to_notice", "seconds")
COUNTS = ("by_signal", "by_phase")
SITTING = ("seed", "commit", "kills", "runs", "lives", "seconds")  # what tells one sitting from another


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON of benchmarks.kills, of one or several sittings")
    parser.add_argument("--out", required=True, type=Path, help="JSON to add them to; made if it does not exist")
    args = parser.parse_args()
    try:
        documents = [read(path) for path in ([args.out] if args.out.exists() else []) + args.files]
        document = merged(documents)
    except (ValueError, TextFileError, OSError) as error:
        sys.exit(f"Nothing was added: {error}")
    write(args.out, document)
    print(f"{args.out}: {document['kills']:,} kills in {len(document['sittings'])} sittings")


def read(path: Path) -> dict[str, Any]:
    """A result. Raises ValueError, with the file's name, when the file is none."""
    try:
        document = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    names = ("processes", "equal", "arrays", *SUMS, *COUNTS)
    missing = [name for name in names if not isinstance(document, dict) or name not in document]
    if missing:
        raise ValueError(f"{path} is not a result of benchmarks.kills: it has no {', '.join(missing)}")
    return document


def write(path: Path, document: dict[str, Any]) -> None:
    write_text(path, json.dumps(document, indent=1) + "\n")


def merged(documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One result of several: sums, counts, and the list of sittings; all else is the last one's.

    Paths of the machine are left out: the command names runs/kills. Raises ValueError when the numbers of processes
    differ, when a sitting is there twice, or when one found a difference (its kills would be hidden in the sum).
    """
    documents = list(documents)
    processes = {document["processes"] for document in documents}
    if len(processes) != 1:
        raise ValueError(
            f"the results are of runs of {', '.join(map(str, sorted(processes)))} processes; merge each alone"
        )
    if not all(document["equal"] for document in documents):
        raise ValueError("one of the results says that a run differed")
    sittings = [sitting for document in documents for sitting in sittings_of(document)]
    twice = next((sitting for index, sitting in enumerate(sittings) if sitting in sittings[:index]), None)
    if twice:
        raise ValueError(f"the sitting {json.dumps(twice)} is there twice")
    last = documents[-1]
    whole = {name: value for name, value in last.items() if name not in ("seed", "commit")}
    whole |= {name: sum(document[name] for document in documents) for name in SUMS}
    for name in COUNTS:
        total: collections.Counter[str] = collections.Counter()
        for document in documents:
            total.update(document[name])
        whole[name] = dict(total.most_common())
    (count,) = processes
    whole["command"] = f"python -m benchmarks.kills --workdir=runs/kills --processes={count} --kills={whole['kills']}"
    machines = [m for d in documents for m in [*d.get("earlier_machines", []), d.get("machine", {})]]
    machines = [
        {name: value for name, value in m.items() if name != "date"} for m in [*machines, last.get("machine", {})]
    ]
    earlier = [m for index, m in enumerate(machines) if m and m != machines[-1] and m not in machines[:index]]
    if earlier:
        whole["earlier_machines"] = earlier
    whole["sittings"] = sittings
    return whole


def sittings_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The sittings of a result; a result that lists none is one, of a commit that it does not know."""
    day = document.get("machine", {}).get("date")
    return document.get("sittings") or [{name: document.get(name) for name in SITTING} | {"date": day}]


def commit() -> str | None:
    """The commit that runs, with "-dirty" where files differ from it; None outside a Git checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


if __name__ == "__main__":
    main()
