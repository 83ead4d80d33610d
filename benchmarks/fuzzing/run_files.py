"""Seeds and readers of what a run keeps: checksums and metadata of checkpoints, configurations, logs, results."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fuzzing import mutations as m
from clipjax.commands.flags import read_config
from clipjax.config import ExperimentConfig, from_json_dict, to_json_dict
from clipjax.json_files import read_json, read_json_object
from clipjax.report.run_data import read_run
from clipjax.runs.bad_records_log import read_bad_records
from clipjax.runs.fingerprint import check_fingerprint
from clipjax.runs.integrity import FILE, ORBAX_METADATA, checksum_of_items, damage_of, write_checksums
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.record import read_records
from clipjax.runs.sweep import read_sweep, trained_config

EXPERIMENT = """
from clipjax.config import default_config

def get_config():
    return default_config()
"""
ITEMS = ("params", "meta")


def checkpoints() -> list[tuple]:
    """A checkpoint's list of checksums and its files: what is damaged is told; a run's configuration is read."""
    content = {f"{item}/{name}": f"{item} {name}".encode() * 9 for item in ITEMS for name in ("_METADATA", "d/0", "a")}
    content[ORBAX_METADATA] = json.dumps({"item_handlers": {"params": "x"}, "init_timestamp_nsecs": 1}).encode()
    with tempfile.TemporaryDirectory() as folder:
        for name, data in content.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(data)
        write_checksums(Path(folder), leave_out=(ORBAX_METADATA,))
        content[FILE] = (Path(folder) / FILE).read_bytes()

    def read(folder: Path) -> None:
        lines = damage_of(folder)
        same = all((folder / name).read_bytes() == data for name, data in content.items() if name.startswith(ITEMS))
        assert same or lines, "damage was not seen"
        assert all(isinstance(line, str) for line in lines)
        if not lines:
            checksum_of_items(folder, ITEMS)

    def read_configuration(folder: Path) -> None:
        read_run_config(folder)
        stored = read_json_object(folder / "fingerprint.json")
        check_fingerprint(stored, json.loads(prints), where=str(folder))

    def read_run_config(folder: Path) -> ExperimentConfig | None:
        return trained_config(folder)

    prints = json.dumps({"tokenizer.sha256": "ab", "image.width": 768, "pixels.mean": [0.5, 0.5, 0.5]})
    config = json.dumps(to_json_dict(ExperimentConfig())).encode()
    return [
        ("checksums", content, {FILE: m.of_json, ORBAX_METADATA: m.of_json, "params/d/0": m.mutate_bytes}, read),
        (
            "config",
            {"config.json": config, "fingerprint.json": prints.encode()},
            {"config.json": m.of_json, "config.json ": m.of_json, "fingerprint.json": m.of_json},
            read_configuration,
        ),
    ]


def experiments() -> list[tuple]:
    """Fields of an experiment set to nonsense on the command line, and read from JSON."""
    config = json.dumps(to_json_dict(ExperimentConfig()))
    names = sorted(_names(json.loads(config)))

    def of_flags(data: bytes, rng: random.Random) -> bytes:
        lines = []
        for _ in range(rng.choice((1, 1, 2))):
            value = rng.choice(
                (rng.choice(m.VALUES), rng.choice(m.NUMBERS), rng.choice(m.TOKENS).decode("utf-8", "replace"))
            )
            name = (
                rng.choice(names)
                if rng.random() < 0.9
                else m.mutate_bytes(rng.choice(names).encode(), rng).decode("latin-1")
            )
            lines.append(f"--config.{name}={str(value)[:4000]}".replace("\n", " "))
        return "\n".join(lines).encode("utf-8", "replace")

    def read(folder: Path) -> None:
        arguments = (folder / "flags").read_text(encoding="utf-8").split("\n")
        read_config([f"--config={folder / 'x.py'}", *arguments])

    def read_document(folder: Path) -> None:
        from_json_dict(_object(read_config_json(folder)))

    def read_config_json(folder: Path) -> Any:
        try:
            return read_json(folder / "c.json")
        except ValueError:
            return {}

    return [
        ("flags", {"x.py": EXPERIMENT.encode(), "flags": b"--config.total_steps=3"}, {"flags": of_flags}, read),
        ("json", {"c.json": config.encode()}, {"c.json": m.of_json}, read_document),
    ]


def logs() -> list[tuple]:
    """metrics.jsonl, bad_records.jsonl, results.json, sweep.json: torn lines are left out, the rest is read."""
    lines = [{"step": step, "loss": 1.0 / step, "images_per_second": 10.5, "v/top1": None} for step in (1, 2, 3)]
    bad = [
        {"file": "a.tar", "position": n, "key": "k", "cause": "corrupt image", "error": "x", "step": n} for n in (1, 2)
    ]
    cell = {
        "workdir": "a",
        "path": "a",
        "values": {"loss.name": "softmax"},
        "seed": 0,
        "overrides": ["--config.seed=0"],
    }
    sweep = {"config": "x.py", "overrides": [], "fields": ["loss.name"], "cells": [cell]}
    files = {
        "metrics.jsonl": "\n".join(map(json.dumps, lines)).encode(),
        "bad_records.jsonl": "\n".join(map(json.dumps, bad)).encode(),
        "config.json": json.dumps(to_json_dict(ExperimentConfig())).encode(),
        "results.json": json.dumps({"step": 3, "results": {"v": {"top1": 0.5, "chance": 0.1}}}).encode(),
    }

    def read(folder: Path) -> None:
        assert all(isinstance(line, dict) for line in read_metrics(folder))
        read_bad_records(folder)

    return [
        ("metrics", files, {"metrics.jsonl": m.of_json_lines, "bad_records.jsonl": m.of_json_lines}, read),
        ("run", files, {name: m.of_json if name.endswith("json") else m.of_json_lines for name in files}, read_run),
        ("table", files, {"metrics.jsonl": m.of_json_lines}, _read_table),
        ("sweep", {"sweep.json": json.dumps(sweep).encode()}, {"sweep.json": m.of_json}, read_sweep),
    ]


def _read_table(folder: Path) -> None:
    records, _ = read_records([str(folder)])
    for record in records:
        assert record.step >= 0
        record.evaluations()
        record.training_seconds(record.step)


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _names(tree: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += _names(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return found
