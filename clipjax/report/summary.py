"""The picture at the end of a run: its loss curve, and held-out pairs and zero-shot accuracy before and after."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.data.images.naflex import from_patches
from clipjax.data.sources import open_source
from clipjax.data.tokenizers import Tokenizer
from clipjax.files import write_text
from clipjax.inference.embed import global_batches, make_embed
from clipjax.mesh import to_host
from clipjax.models import patch_budget
from clipjax.models.pixels import image_of
from clipjax.report.figures import training_summary
from clipjax.runs.metrics_log import read_metrics

NUM_PAIRS = 8
BEFORE, SUMMARY = "before.json", "summary.png"


def record_before(workdir: Path, pairs: dict, results: dict[str, float]) -> None:
    """Stores the untrained model's similarities and results, for the picture at the end."""
    if jax.process_index() == 0:
        document = {"similarity": pairs["similarity"].tolist(), "results": results}
        write_text(workdir / BEFORE, json.dumps(document))


def draw_summary(workdir: Path, pairs: dict, results: dict[str, float]) -> None:
    """Writes workdir/summary.png from metrics.jsonl, before.json, and the trained model's pairs and results."""
    if jax.process_index() != 0 or not (workdir / BEFORE).exists():
        return
    before = json.loads((workdir / BEFORE).read_text())
    training_summary(
        workdir / SUMMARY,
        curve=[line for line in read_metrics(workdir) if "loss" in line],
        similarity_before=np.asarray(before["similarity"]),
        similarity_after=pairs["similarity"],
        captions=pairs["captions"],
        images=pairs["images"],
        zero_shot_before=_zero_shot(before["results"]),
        zero_shot_after=_zero_shot(results),
    )
    print(f"Wrote {workdir / SUMMARY}", flush=True)


def lacks_summary(workdir: Path) -> bool:
    """Whether the picture of a finished run is still to be drawn, because the run was killed before it."""
    return (workdir / BEFORE).exists() and not (workdir / SUMMARY).exists()


def make_held_out(config: ExperimentConfig, mesh: Mesh, tokenizer: Tokenizer) -> Callable[[Any], dict]:
    """The function {"params", "batch_stats"} -> {"similarity" [n, n], "images", "captions"} of n held-out pairs.

    images: n of [H, W, 3] uint8. The pairs come from all over the first evaluation batch and have different captions.
    All processes call it together.
    """
    source = open_source(next(iter(config.eval.evaluators.values())).source)
    embed_images, embed_texts = make_embed(config, mesh)

    def held_out(variables: Any) -> dict:
        with contextlib.closing(global_batches(config, mesh, tokenizer, source)) as batches:
            batch = next(batches)
        image_embedding = to_host(embed_images(variables, image_of(batch)))
        batch = to_host(batch)
        text, index, valid = (batch[k] for k in ("text", "index", "valid"))
        _, first = np.unique(text[valid], axis=0, return_index=True)
        rows = np.flatnonzero(valid)[np.sort(first)]
        rows = rows[np.linspace(0, len(rows) - 1, min(NUM_PAIRS, len(rows))).astype(int)]
        return {
            "similarity": image_embedding[rows] @ embed_texts(variables, text[rows]).T,
            "images": [_picture(batch, row, config) for row in rows],
            "captions": [source[int(i)]["texts"][0] for i in index[rows]],
        }

    return held_out


def _picture(batch: dict[str, np.ndarray], row: int, config: ExperimentConfig) -> np.ndarray:
    budget = patch_budget(config.model.image)
    if budget is None:
        return batch["image"][row]
    columns = {name: batch[name][row] for name in ("image", "spatial_shape")}
    return from_patches(columns, budget.patch_size)


def _zero_shot(results: dict[str, float]) -> dict[str, float]:
    """The metrics of the first evaluator that reports top1, without the evaluator's name; {} if none does."""
    name = next((key.removesuffix("/top1") for key in results if key.endswith("/top1")), None)
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in results.items() if key.startswith(prefix)}
