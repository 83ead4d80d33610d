"""Splits of made-up features for the tests of probes: an evaluator sees only batches and functions that embed."""

import functools

import jax
import numpy as np
import pytest

from clipjax.config import MeshConfig, SourceConfig
from clipjax.eval import EVALUATORS
from clipjax.eval.split import Split
from clipjax.mesh import batch_sharding, make_mesh
from tests.eval.toy import with_counts_named

MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2)}


@functools.cache
def mesh_of(name="8x1x1"):
    shape = MESHES[name]
    return make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])


def clusters(examples, classes=7, width=16, seed=0, noise=0.8):
    """([N, D] float32 of unit length, [N] int32 labels): overlapping clusters around the same centres for any seed."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(0, classes, examples).astype(np.int32)
    x = centres[labels] / 2 + noise * rng.normal(size=(examples, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def source(split):
    return SourceConfig(path="toy", split=split)


def place(index):
    return "toy.array_record", index


def batches_of(mesh, x, labels, batch=16, unreadable=(), columns=()):
    """Batches as the pipeline makes them: rows beyond the last record have index -1, bad records are not valid."""

    def batches():
        for start in range(0, len(x), batch):
            own = np.arange(start, min(start + batch, len(x)))
            rows = np.concatenate([own, np.zeros(batch - len(own), int)])
            index = np.where(np.arange(batch) < len(own), rows, -1).astype(np.int32)
            yield jax.device_put(
                {
                    "image": x[rows],
                    "label": np.asarray(labels, np.int32)[rows],
                    "index": index,
                    "valid": (index >= 0) & ~np.isin(index, unreadable),
                    **{name: column[rows] for name, column in dict(columns).items()},
                },
                batch_sharding(mesh),
            )

    return batches


def split_of(mesh, x, labels, names=(), **options):
    return Split(len(x), batches_of(mesh, x, labels, **options), {}.__getitem__, names, place)


def call(config, test, *, mesh=None, names=(), test_options=None, **splits):
    """Evaluates; test and splits are (x, labels) or (x, labels, class names)."""
    mesh = mesh or mesh_of()
    found = EVALUATORS[config.name](
        config,
        batches=batches_of(mesh, *test, **(test_options or {})),
        embed_images=lambda batch: batch["image"],
        embed_texts=lambda tokens: tokens,
        image_features=lambda batch: batch["image"] * 3,
        tokenizer=None,
        class_names=names,
        where=place,
        mesh=mesh,
        **{field: split_of(mesh, *split) for field, split in splits.items()},
    )
    return with_counts_named(found)


every_mesh = pytest.mark.parametrize("mesh", [pytest.param(name, id=name) for name in MESHES])
