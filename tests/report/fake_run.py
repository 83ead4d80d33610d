"""A workdir with everything a report reads, without a model: a few pairs that come together over three evaluations."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from clipjax.config import EvalConfig, ExperimentConfig, SourceConfig, to_json_dict
from clipjax.eval import RetrievalConfig, ZeroShotConfig
from clipjax.report.pictures import thumbnail
from clipjax.report.predictions import Gallery, classification, retrieval
from clipjax.runs.snapshots import PAIRS, PREDICTIONS, Snapshot, write_document, write_snapshot

NASTY = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "\"quotes\" & 'apostrophes' <b>bold</b> %{x} ${1+1} {{ 7 * 7 }}",
    "שלום עולם، مرحبا بالعالم",
    "👩‍🚀🎨 emoji",
]
MEMORY = {"host": 3 << 30, "device": 60 << 30, "device_limit": 96 << 30}
STEPS = (0, 20, 40)


def picture(number: int) -> str:
    """The thumbnail of a plain image, each of another colour."""
    file = io.BytesIO()
    Image.new("RGB", (120, 80), (37 * number % 256, 91 * number % 256, 200)).save(file, "PNG")
    return thumbnail(file.getvalue())


def pairs_at(step: int, n: int) -> Snapshot:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, n, 8)).astype(np.float32)
    text += image * step / 10
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    return Snapshot(step, unit(image), unit(text), 10.0 + step)


def fake_run(folder: Path, n: int = 20, *, total_steps: int = 40, seed: int = 0, captions: list[str] = NASTY) -> Path:
    """Fills folder as a finished run of total_steps would, and returns it."""
    folder.mkdir(parents=True)
    captions = [captions[i] if i < len(captions) else f"caption {i}" for i in range(n)]
    source = SourceConfig(path="data/<zoo>", split="test")
    evaluators = {"zoo": ZeroShotConfig(source=source, templates=("a {}",)), "pairs": RetrievalConfig(source=source)}
    config = ExperimentConfig(seed=seed, total_steps=total_steps, eval=EvalConfig(evaluators=evaluators))
    (folder / "config.json").write_text(json.dumps(to_json_dict(config)))
    lines = [{"step": 0, "zoo/top1": 0.1, "pairs/text_to_image_r1": 0.0}]
    for step in range(1, 41):
        lines.append({"step": step, "loss": None if step == 7 else 9.0 / step, "learning_rate": 1e-3 * step})
        lines[-1] |= {"images_per_second": 100.0, "logit_scale": 10.0 + step, "bad_records/truncated": 2.0}
        if step in STEPS:
            lines.append({"step": step, "zoo/top1": step / 50, "zoo/top1_low": 0.0, "zoo/top1_high": 0.9})
            lines[-1] |= {"zoo/chance": 0.2, "pairs/text_to_image_r1": 0.5, "pairs/examples": 20.0}
    accounts = [{"start": 1, "time": 1000.0, "step": 0}]
    seconds = {"start": 20.0, "compile": 40.0, "step": 600.0, "data_wait": 6.0, "evaluation": 30.0, "checkpoint": 4.0}
    accounts.append({"start": 1, "time": 1700.0, "step": 25, "steps": 25, "seconds": seconds})
    accounts.append({"start": 1, "time": 1760.0, "step": 28, "steps": 3, "seconds": {"step": 60.0}})
    accounts.append({"start": 2, "time": 1900.0, "step": 25})
    seconds = {"restore": 15.0, "step": 380.0, "other": 5.0}
    accounts.append({"start": 2, "time": 2300.0, "step": 40, "steps": 15, "seconds": seconds, "memory": MEMORY})
    (folder / "goodput.jsonl").write_text("".join(json.dumps(line) + "\n" for line in accounts))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bad = {"file": "a<b>.tar", "position": 3, "key": NASTY[0], "cause": "truncated", "error": NASTY[1], "step": 5}
    (folder / "bad_records.jsonl").write_text(json.dumps(bad) + "\n")
    entries = [{"key": str(i), "caption": caption, "image": picture(i)} for i, caption in enumerate(captions)]
    write_document(folder, PAIRS, {"id": "set", "evaluator": "pairs", "source": "data/<zoo>", "pairs": entries})
    for step in STEPS:
        write_snapshot(folder, pairs_at(step, n), "set")
    write_document(folder, PREDICTIONS, predictions(captions))
    return folder


def predictions(captions: list[str]) -> dict:
    n = len(captions)
    last = pairs_at(STEPS[-1], n)
    label = np.arange(n) % 5
    show = lambda row: (picture(row), captions[row], f"key {row}")  # noqa: E731
    tokens = np.arange(n)[:, None]
    gallery = Gallery(last.image, last.text, tokens, np.arange(n), label, np.full(n, -1), show)
    classes = np.stack([last.text[label == i].mean(axis=0) for i in range(5)])
    found = classification(gallery, classes, NASTY, range(5), 10.0)
    return {
        "step": STEPS[-1],
        "logit_scale": 10.0,
        "classification": {**found, "evaluator": "zoo", "prompts": ["a {}"]},
        "retrieval": {**retrieval(gallery), "evaluator": "pairs"},
    }
