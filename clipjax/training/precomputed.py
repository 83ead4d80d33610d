"""What precomputed embeddings depend on: stored beside them, and compared when a run uses them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from clipjax.config import DataConfig, ExperimentConfig
from clipjax.data.embeddings import check_made_by, read_made_by
from clipjax.data.mixture import open_train
from clipjax.mesh import named_leaves, to_host
from clipjax.models import patch_budget
from clipjax.training.recorded import without_later_defaults
from clipjax.training.state import TrainState

Fingerprint = dict[str, Any]  # see clipjax/runs/fingerprint.py
OF_WEIGHTS = ("weights", "logit_scale")  # entries that only the weights tell


def check_image_embeddings(config: ExperimentConfig, state: TrainState, fingerprint: Fingerprint) -> None:
    """Refuses config.data.image_embeddings made with other weights, pixels or data. Raises ConfigError."""
    folder = config.data.image_embeddings
    if folder:
        compare_made_by(read_made_by(folder), image_made_by(config, state, fingerprint), where=folder)


def image_made_by(config: ExperimentConfig, state: TrainState, fingerprint: Fingerprint) -> dict[str, Any]:
    """Everything that an image's embedding depends on. fingerprint: the run's."""
    weights = weights_sha256({"params": state.params["image"], "batch_stats": state.batch_stats})
    return {"weights": weights, **image_settings(config, fingerprint, open_train(config.data))}


def image_settings(config: ExperimentConfig, fingerprint: Fingerprint, source: Any = None) -> dict[str, Any]:
    """image_made_by without the weights, and without the data where `source`, the opened training source, is None."""
    return {
        "tower": "image",
        "embed_dim": config.model.embed_dim,
        "compute_dtype": config.model.dtype,
        **{name: value for name, value in fingerprint.items() if name.startswith(("image.", "pixels."))},
        **patches_of(config, "image"),
        **({} if source is None else data_made_by(config.data, source)),
    }


def teacher_made_by(
    config: ExperimentConfig, teacher: Any, fingerprint: Fingerprint, teacher_fingerprint: Fingerprint
) -> dict[str, Any]:
    """Everything that the teacher's embeddings depend on: its own settings, and the pixels that the student reads.

    teacher: a training.teacher.Teacher.
    """
    return {
        "weights": weights_sha256(teacher.variables),
        "logit_scale": float(np.exp(np.asarray(to_host(teacher.variables["params"]["logit_scale"])))),
        **teacher_settings(config, teacher.config, fingerprint, teacher_fingerprint, open_train(config.data)),
    }


def teacher_settings(
    config: ExperimentConfig,
    teacher: ExperimentConfig,
    fingerprint: Fingerprint,
    teacher_fingerprint: Fingerprint,
    source: Any = None,
) -> dict[str, Any]:
    """teacher_made_by without what the weights tell, and without the data where `source` is None."""
    own = ("pixels.mean", "pixels.std")
    pixels = {name: value for name, value in fingerprint.items() if name.startswith("pixels.") and name not in own}
    return {
        "tower": "teacher",
        "embed_dim": teacher.model.embed_dim,
        "compute_dtype": teacher.model.dtype,
        **teacher_fingerprint,
        **pixels,
        **patches_of(config, "pixels"),
        **({} if source is None else data_made_by(config.data, source)),
    }


def patches_of(config: ExperimentConfig, name: str) -> dict[str, int]:
    """{NAME.max_patches: the most patches of an image} where the images keep their shape."""
    budget = patch_budget(config.model.image)
    return {f"{name}.max_patches": budget.max_patches} if budget else {}


def check_settings(folder: str, expected: dict[str, Any], *, data: bool) -> None:
    """Refuses stored embeddings made with other settings than `expected`, whatever the weights. Raises ConfigError.

    expected: image_settings or teacher_settings. data: whether the data is compared too.
    """
    made_by = {
        name: value
        for name, value in read_made_by(folder).items()
        if name not in OF_WEIGHTS and (data or not name.startswith("data."))
    }
    compare_made_by(made_by, expected, where=folder)


def compare_made_by(made_by: Fingerprint, expected: Fingerprint, *, where: str) -> None:
    """check_made_by; an option that was added after the embeddings were made makes no difference at its default."""
    check_made_by(made_by, without_later_defaults(expected, made_by), where=where)


def data_made_by(data: DataConfig, source: Any) -> dict[str, Any]:
    """{"data.sha256": checksum of the shards' checksums} for each folder of records in `source`, which data opens.

    Other sources have no checksum. For them, each record's key is compared with the stored one when it is read.
    """
    named = zip(source.names, source.sources, strict=True) if data.mixture else ()
    parts = {f"data.{name}": opened for name, opened in named} or {"data": source}
    checksums = {}
    for name, opened in parts.items():
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
