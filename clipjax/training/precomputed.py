"""What precomputed embeddings depend on: stored beside them, and compared when a run uses them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from clipjax.config import DataConfig, ExperimentConfig
from clipjax.data.embeddings import check_made_by, read_made_by
from clipjax.data.sources import open_source
from clipjax.mesh import named_leaves, to_host
from clipjax.training.state import TrainState

Fingerprint = dict[str, Any]  # see clipjax/runs/fingerprint.py


def check_image_embeddings(config: ExperimentConfig, state: TrainState, fingerprint: Fingerprint) -> None:
    """Refuses config.data.image_embeddings made with other weights, pixels or data. Raises ConfigError."""
    folder = config.data.image_embeddings
    if folder:
        check_made_by(read_made_by(folder), image_made_by(config, state, fingerprint), where=folder)


def image_made_by(config: ExperimentConfig, state: TrainState, fingerprint: Fingerprint) -> dict[str, Any]:
    """Everything that an image's embedding depends on. fingerprint: the run's."""
    return {
        "tower": "image",
        "weights": weights_sha256({"params": state.params["image"], "batch_stats": state.batch_stats}),
        "embed_dim": config.model.embed_dim,
        "compute_dtype": config.model.dtype,
        **{name: value for name, value in fingerprint.items() if name.startswith(("image.", "pixels."))},
        **data_made_by(config.data),
    }


def teacher_made_by(
    config: ExperimentConfig, teacher: Any, fingerprint: Fingerprint, teacher_fingerprint: Fingerprint
) -> dict[str, Any]:
    """Everything that the teacher's embeddings depend on: its own settings, and the pixels that the student reads.

    teacher: a training.teacher.Teacher.
    """
    own = ("pixels.mean", "pixels.std")
    pixels = {name: value for name, value in fingerprint.items() if name.startswith("pixels.") and name not in own}
    return {
        "tower": "teacher",
        "weights": weights_sha256(teacher.variables),
        "embed_dim": teacher.config.model.embed_dim,
        "compute_dtype": teacher.config.model.dtype,
        "logit_scale": float(np.exp(np.asarray(to_host(teacher.variables["params"]["logit_scale"])))),
        **teacher_fingerprint,
        **pixels,
        **data_made_by(config.data),
    }


def data_made_by(data: DataConfig) -> dict[str, Any]:
    """{"data.sha256": checksum of the shards' checksums} for each folder of records.

    Other sources have no checksum. For them, each record's key is compared with the stored one when it is read.
    """
    parts = {f"data.{name}": part.source for name, part in data.mixture.items()} or {"data": data.train}
    checksums = {}
    for name, source in parts.items():
        opened = open_source(source)
        if hasattr(opened, "sha256"):
            checksums[f"{name}.sha256"] = opened.sha256()
    return checksums


def weights_sha256(variables: dict[str, Any]) -> str:
    """SHA-256 of the names, shapes and float32 values of all leaves; the same on every mesh. All processes call it."""
    digest = hashlib.sha256()
    leaves = {
        ("" if collection == "params" else f"{collection}:") + name: leaf
        for collection, tree in variables.items()
        for name, leaf in named_leaves(tree).items()
    }
    for name, leaf in sorted(leaves.items()):
        value = np.ascontiguousarray(to_host(leaf), np.float32)
        digest.update(f"{name} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
