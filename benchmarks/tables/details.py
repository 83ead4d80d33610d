"""benchmarks/details.md: all figures, in sections."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from benchmarks.tables.data import bucket_data, emoji, frozen_tower, input_pipeline, readers
from benchmarks.tables.gpu_step import gpu_step
from benchmarks.tables.plans import plans, scaling
from benchmarks.tables.reliability import fuzz, kills, soak
from benchmarks.tables.training import losses, memory, quick, start, text_buckets, train_step

HEAD = """\
# Benchmarks in detail

`python -m benchmarks.tables` writes this page, and the table of [all benchmarks](README.md), from the JSON files in
[results](results); edit the script, not the page. Each section gives the command, the machine that its JSON records, and
how to read the table. "Not recorded" means that the JSON was written before the scripts recorded processor and versions.
If a section names a source, its numbers were copied into the JSON by hand."""

# {prefixes of the names of JSON files: {name of the JSON: its content} -> Markdown}; the first that fits takes a file.
SECTIONS = {
    ("quick_",): quick,
    ("startup_",): start,
    ("kept_memory",): memory,
    ("text_buckets",): text_buckets,
    ("train_step",): train_step,
    ("input_pipeline",): input_pipeline,
    ("frozen_tower",): frozen_tower,
    ("readers",): readers,
    ("bucket_data",): bucket_data,
    ("loss_memory",): losses,
    ("plan_", "remat_"): plans,
    ("scaling_plan",): scaling,
    ("gpu_step",): gpu_step,
    ("soak_",): soak,
    ("kills_",): kills,
    ("fuzz",): fuzz,
    ("emoji",): emoji,
}


def make_details(documents: dict[str, Any]) -> str:
    """Returns the page of all sections. documents: {name of the JSON: its content}."""
    left = dict(documents)
    parts = [HEAD]
    for prefixes, section in SECTIONS.items():
        mine = {name: left.pop(name) for name in documents if name in left and name.startswith(prefixes)}
        parts.append(section(mine))
    if left:
        raise ValueError(f"No section of benchmarks/tables/details.py shows {', '.join(left)}.")
    return "\n\n".join(filter(None, parts)) + "\n"
