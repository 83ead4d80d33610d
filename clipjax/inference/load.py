"""Opened weights as functions of images and texts; clipjax.load opens them."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, MeshConfig, require
from clipjax.data.tokenizers import make_tokenizer
from clipjax.inference.embed import Encoded, make_embed, make_encode
from clipjax.inference.inputs import check_columns, image_columns, text_ids
from clipjax.mesh import batch_sharding, batch_shards, make_mesh, to_host, to_mesh
from clipjax.models import patch_budget
from clipjax.models.pixels import image_of
from clipjax.models.towers import require_tower, towers_of
from clipjax.training.state import Weights


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded:
    """Weights as functions of images and texts; what clipjax.load returns.

    Of a model with one tower, the functions of the other raise ConfigError.
    """

    config: ExperimentConfig
    params: Any  # on the mesh
    tokenizer: Any  # None if the weights came without one
    # Both return [B, embed_dim] float32 of unit length, of one image or text [1, embed_dim], of none [0, embed_dim].
    # Images: one or a sequence of paths, bytes of files, PIL images or [H, W, 3] uint8 arrays, with the pixels that
    # evaluation gives for each; or one [B, S, S, 3] uint8 array, for towers that read images of one size S.
    embed_images: Callable[[Any], np.ndarray]
    embed_texts: Callable[[Any], np.ndarray]  # texts: one string or a sequence of them, or ids [B, L] int32
    # (images or texts, hidden_layers=()) -> Encoded of float32 NumPy arrays
    encode_images: Callable[..., Encoded]
    encode_texts: Callable[..., Encoded]

    def __repr__(self) -> str:
        model = self.config.model
        towers = ", ".join(f"{side} {getattr(model, side).name}" for side in towers_of(model))
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Loaded({towers}, embed_dim={model.embed_dim}, {count:,} parameters)"


def load(weights: Weights, *, mesh: Mesh | None = None, batch_size: int = 64) -> Loaded:
    """The functions of opened weights: a run's, or a published model's.

    mesh: None: all devices, with the whole weights on each. batch_size: rounded up to fill the mesh. Raises ConfigError
    for one below 1.
    """
    require(
        isinstance(batch_size, Integral) and batch_size >= 1,
        f"batch_size={batch_size!r}: expected a whole number of examples, 1 or more.",
    )
    mesh = mesh or make_mesh(MeshConfig())
    config, variables = weights.config, weights.variables(mesh)
    shards = batch_shards(mesh)
    rows = -(-batch_size // shards) * shards
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=rows))
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length) if config.tokenizer.path else None
    images_of, texts_of = make_embed(config, mesh)
    encoders = {side: make_encode(config, mesh, side) for side in ("image", "text")}
    blocks = functools.partial(_blocks, rows=rows, sharding=batch_sharding(mesh))

    def columns_of(images: Any) -> dict[str, np.ndarray]:
        require_tower(config.model, "image")
        image = config.model.image
        return image_columns(images, image.image_size, patch_budget(image), config.data.pixels)

    def ids_of(texts: Any) -> np.ndarray:
        require_tower(config.model, "text")
        ids = text_ids(texts, tokenizer, config.model.text.context_length, config.model.text.vocab_size)
        check_columns(ids, config, tokenizer)
        return ids

    def embed_images(images: Any) -> np.ndarray:
        columns = columns_of(images)
        if not len(columns["image"]):  # nothing to compile for
            return np.zeros((0, config.model.embed_dim), np.float32)
        batches = blocks(columns)
        return np.concatenate([_host(images_of(variables, image_of(batch)), count) for batch, count in batches])

    def embed_texts(texts: Any) -> np.ndarray:
        return texts_of(variables, ids_of(texts))

    def encode(side: str, columns: dict[str, np.ndarray], hidden_layers: Sequence[int]) -> Encoded:
        parts, layers = [], _layers(hidden_layers)
        for batch, count in blocks(columns):
            x = image_of(batch) if side == "image" else batch["text"]
            encoded = encoders[side](variables, x, layers)
            parts.append(jax.tree.map(lambda a, count=count: _host(a, count), encoded))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def encode_images(images: Any, hidden_layers: Sequence[int] = ()) -> Encoded:
        return encode("image", columns_of(images), hidden_layers)

    def encode_texts(texts: Any, hidden_layers: Sequence[int] = ()) -> Encoded:
        return encode("text", {"text": ids_of(texts)}, hidden_layers)

    return Loaded(config, variables["params"], tokenizer, embed_images, embed_texts, encode_images, encode_texts)


def _layers(hidden_layers: Any) -> tuple[int, ...]:
    """The numbers of hidden_layers. Raises TypeError for a single number, and for anything else."""
    try:
        return tuple(operator.index(layer) for layer in hidden_layers)
    except TypeError:
        raise TypeError(
            f"hidden_layers={hidden_layers!r}: expected a tuple of layer numbers, such as (-1,) for the last layer."
        ) from None


def _blocks(
    columns: dict[str, np.ndarray], rows: int, sharding: jax.sharding.Sharding
) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """Yields (global batch of `rows` examples, how many are not padding). No examples give one batch of padding."""
    count = len(next(iter(columns.values())))
    for start in range(0, max(count, 1), rows):
        batch = {}
        for name, column in columns.items():
            block = column[start : start + rows]
            padded = np.ones((rows, *block.shape[1:]), block.dtype)
            padded[: len(block)] = block
            batch[name] = to_mesh(padded, sharding)
        yield batch, min(rows, count - start)


def _host(array: jax.Array, count: int) -> np.ndarray:
    return np.asarray(to_host(array), np.float32)[:count]
