"""What embeddings that were computed beforehand depend on: written beside them, compared when a run uses them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from clipjax.config import DataConfig, ExperimentConfig
from clipjax.data.embeddings import check_made_by, read_made_by
from clipjax.data.records import read_manifest
from clipjax.interop.names import flatten
from clipjax.mesh import to_host
from clipjax.training.state import TrainState


def check_image_embeddings(config: ExperimentConfig, state: TrainState, prints: dict) -> None:
    """Refuses config.data.image_embeddings of other weights, pixels or data than this run's. Raises ConfigError."""
    folder = config.data.image_embeddings
    if folder:
        check_made_by(read_made_by(folder), image_made_by(config, state, prints), where=folder)


def image_made_by(config: ExperimentConfig, state: TrainState, prints: dict) -> dict[str, Any]:
    """All that an image's embedding depends on. prints: the run's fingerprint."""
    return {
        "tower": "image",
        "weights": weights_sha256({"params": state.params["image"], "batch_stats": state.batch_stats}),
        "embed_dim": config.model.embed_dim,
        "compute_dtype": config.model.dtype,
        **{name: value for name, value in prints.items() if name.startswith(("image.", "pixels."))},
        **data_made_by(config.data),
    }


def teacher_made_by(config: ExperimentConfig, teacher: Any, prints: dict, teacher_prints: dict) -> dict[str, Any]:
    """All that the teacher's embeddings depend on: its own settings, and the pixels that the student reads.

    teacher: a training.teacher.Teacher.
    """
    own = ("pixels.mean", "pixels.std")
    pixels = {name: value for name, value in prints.items() if name.startswith("pixels.") and name not in own}
    return {
        "tower": "teacher",
        "weights": weights_sha256(teacher.variables),
        "embed_dim": teacher.config.model.embed_dim,
        "compute_dtype": teacher.config.model.dtype,
        "logit_scale": float(np.exp(np.asarray(to_host(teacher.variables["params"]["logit_scale"])))),
        **teacher_prints,
        **pixels,
        **data_made_by(config.data),
    }


def data_made_by(data: DataConfig) -> dict[str, Any]:
    """Of each folder of records, the checksum of its shards' checksums. That a record is the one that was embedded is
    seen by its key when it is read, whatever the source."""
    parts = {f"data.{name}": part.source for name, part in data.mixture.items()} or {"data": data.train}
    found = {}
    for name, source in parts.items():
        if source.name == "array_record":
            shards = read_manifest(source.path)["splits"][source.split]["shards"]
            found[f"{name}.sha256"] = hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()
    return found


def weights_sha256(variables: dict[str, Any]) -> str:
    """Of names, shapes and float32 values, leaf by leaf; the same on every mesh. A collective of all processes."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(variables).items()):
        value = np.ascontiguousarray(to_host(leaf), np.float32)
        digest.update(f"{name} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
