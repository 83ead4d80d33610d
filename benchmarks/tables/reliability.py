"""Sections about runs that are killed, disturbed and fuzzed."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from benchmarks.tables.words import origin, table


def soak(documents: dict[str, Any]) -> str:
    rows = []
    for name, document in documents.items():
        data, kills = name.split("_")[1], document["kills"]
        after_step = document.get("kills_after_the_first_step_of_a_life")
        if after_step is None:
            after_step = sum(kills.values()) - document["killed_before_the_first_step_of_that_life"]
        memory = document["memory_mb_per_1000_steps"]["whole"]
        same = "equal" if document["equal"] else "NOT equal"
        rows.append(
            [
                f"{data} ([JSON](results/{name}.json), [picture](../docs/images/{name}.png))",
                f"{sum(kills.values())} ({kills['SIGKILL']} SIGKILL, {kills['SIGTERM']} SIGTERM)",
                after_step,
                f"{document['steps']:,}",
                document["bad_records"],
                f"{same}, all {document['arrays']} arrays" if document["equal"] else same,
                f"{memory:.1f}",
                f"{document['seconds']['killed'] / 60:.0f}",
            ]
        )
    header = [
        "Data", "Kills", "After the life's first step", "Steps", "Damaged records", "Curves, states, bad records",
        "MB gained in 1,000 steps", "Minutes",
    ]  # fmt: skip
    command = "python -m benchmarks.soak --config=benchmarks/soak_DATA.py:data --workdir=runs/soak --name=NAME"
    return f"""\
## Killed and restarted

{origin(documents, f"{command} --kills=100 (or --minutes=30) -- --config.total_steps=STEPS", files=False)}

Two runs of each experiment ran side by side, each on one core. One was left alone; the other was killed at random moments
and started again. The last states must be equal in every bit, the curves in every number, and `bad_records.jsonl` in every
byte.

{table(header, rows)}

"After the life's first step" counts the kills that came after the restarted process had completed a step. Memory is that
of the run left alone. scenes and emoji were measured before the soak set `MALLOC_ARENA_MAX=1`; most of their gain is memory
that glibc keeps for each thread. [docs/reliability.md](../docs/reliability.md) says where the rest goes."""


def kills(documents: dict[str, Any]) -> str:
    rows = []
    for name, document in sorted(documents.items(), key=lambda item: item[1]["processes"]):
        signals, phases = document["by_signal"], document["by_phase"]
        rows.append(
            [
                f"{document['processes']} ([JSON](results/{name}.json))",
                f"{document['kills']} ({signals.get('SIGKILL', 0)} SIGKILL, {signals.get('SIGTERM', 0)} SIGTERM)",
                ", ".join(f"{phase} {count}" for phase, count in phases.items()),
                document["runs"],
                f"equal, all {document['arrays']} arrays" if document["equal"] else "NOT equal",
                f"{document['seconds'] / 60:.0f}",
            ]
        )
    header = ["Processes", "Kills", "In", "Runs", "Curves, states, bad records", "Minutes"]
    return f"""\
## Killed in every phase

{origin(documents, "python -m benchmarks.kills --workdir=runs/kills --processes=N --kills=KILLS", files=False)}

Runs of a tiny model on data with damaged records, killed in each of their lives and started again until they reach their
last step. Every run must end like one left alone: the state in every bit, the curve in every number, `bad_records.jsonl` in
every byte; and a life must end killed, saved, or finished.

{table(header, rows)}

"In" is what the process was doing when the signal came; "checkpoint" includes a checkpoint that a thread was writing while
the run went on. SIGTERM goes to one process, which saves together with the others. SIGKILL to one of several is followed by
SIGKILL to the others; in two lives of a hundred the others are left to notice."""


def fuzz(documents: dict[str, Any]) -> str:
    document = documents["fuzz"]
    rows = [
        [
            reader, f"{row['value'] + row['refused'] + row['fault']:,}", f"{row['value']:,}", f"{row['refused']:,}",
            row["fault"], f"{row['slowest']:.1f}", f"{row['memory'] / 2**20:,.0f}",
        ]
        for reader, row in sorted(document["readers"].items())
    ]  # fmt: skip
    limits = document["limits"]
    return f"""\
## Damaged and hostile files

{origin(documents, document["command"])}

{document["inputs"]:,} small files of every format, changed in bits, lengths, pieces, and in what the format is made of, with
seed {document["seed"]}. "Value": the reader gave one, of the type and within the bounds that it promises. "Refused": one of
clipjax's errors, in clean text. All else is a fault: another exception, the end of the process, more than
{limits["seconds"]} s of processor time or {limits["memory"] >> 20:,} MB for the whole process. The slowest input and the
highest memory, most of which Python and its libraries take before the first input, are in the last columns.

{table(["Reader", "Inputs", "Value", "Refused", "Faults", "Slowest, s", "MB"], rows)}

Native libraries bound what Python cannot: a crash in one would end a command without a clean line. The script found one in
Arrow 25, whose statistics of a damaged Parquet file end the process, and clipjax no longer asks for them."""
