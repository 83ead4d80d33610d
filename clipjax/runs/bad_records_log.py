"""bad_records.jsonl: every record that a run could not use, once, in step with its checkpoints.

A line is {"file", "position", "key", "cause", "error", "step"}; step is the first step that would have used the record.
Process 0 writes bad_records.jsonl, process p bad_records-p.jsonl; read_bad_records joins them. The data state
(TrainIterator) counts how often each cause occurred; metrics.jsonl has the counts as bad_records/<cause>.
"""

from __future__ import annotations

import collections
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipjax.data.bad_records import BadRecord
from clipjax.files import naming, write_text
from clipjax.json_files import read_json_lines
from clipjax.storage import as_path

MAX_ENTRIES = 10_000  # per process, about 3 MB; further records are only counted


class BadRecordsLog:
    """Appends the bad records of the batches that were trained on.

    met: TrainIterator.met, which a reading thread fills. Records that were read ahead are written once their step is
    done. resume_step: lines beyond it are dropped, as in MetricsLog.
    """

    def __init__(
        self,
        workdir: str | Path,
        met: collections.deque[tuple[int, list[BadRecord]]],
        *,
        resume_step: int,
        process_index: int = 0,
    ):
        self.path = Path(workdir) / _name(process_index)
        kept = [line for line in _read(self.path) if line["step"] <= resume_step]
        self.known = {_identity(line) for line in read_bad_records(workdir) if line["step"] <= resume_step}
        self.entries = len(kept)
        self.met = met
        if self.path.exists():
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    @contextlib.contextmanager
    def kept_on(self, error: type[Exception]) -> Iterator[None]:
        """Wraps the steps: if the data stop the run with `error`, records that were read ahead are written too."""
        try:
            yield
        except error:
            self.write(sys.maxsize)
            raise

    def write(self, step: int) -> None:
        """Appends the bad records of the batches up to `step`; they are in the file when this returns."""
        lines = []
        while self.met and self.met[0][0] <= step:
            number, records = self.met.popleft()
            for record in records:
                line = {**record._asdict(), "step": number}
                if _identity(line) not in self.known and self.entries < MAX_ENTRIES:
                    self.known.add(_identity(line))
                    self.entries += 1
                    lines.append(json.dumps(line) + "\n")
        if lines:
            with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(lines))


def read_bad_records(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of all processes, ordered by step, each record once; [] without any. Torn lines are left out."""
    paths = sorted(as_path(workdir).glob("bad_records*.jsonl"))
    lines = sorted((line for path in paths for line in _read(path)), key=lambda line: line["step"])
    return list({_identity(line): line for line in reversed(lines)}.values())[::-1]


def describe_bad_records(workdir: str | Path, causes: Mapping[str, int]) -> str:
    """The line at the end of a run; "" without bad records. causes: how often each occurred, over all processes."""
    if not causes:
        return ""
    entries = read_bad_records(workdir)
    files = collections.Counter(entry["file"] for entry in entries)
    worst = ", ".join(f"{file} ({count})" for file, count in files.most_common(3))
    return (
        f"Bad records: {sum(causes.values())} replaced ("
        + ", ".join(f"{cause} {count}" for cause, count in sorted(causes.items()))
        + f"), {len(entries)} different ones in {len(files)} files, most in {worst}; {workdir}/{_name(0)} lists them."
    )


def add_causes(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several processes' counts."""
    return dict(sum((collections.Counter(causes) for causes in counts), collections.Counter()))


def _name(process_index: int) -> str:
    return f"bad_records-{process_index}.jsonl" if process_index else "bad_records.jsonl"


def _identity(line: Mapping[str, Any]) -> tuple:
    return line["file"], line["position"], line["cause"]


def _read(path: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(path, ("file", "position", "cause", "step"))
    plain = (str, int)  # a list or an object in their place cannot identify a record
    return [line for line in lines if type(line["step"]) is int and all(isinstance(x, plain) for x in _identity(line))]
