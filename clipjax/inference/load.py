"""clipjax.load: weights from anywhere as functions of images and texts."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from clipjax.config import ExperimentConfig, MeshConfig
from clipjax.data.images.naflex import eval_patches
from clipjax.data.images.transforms import eval_image
from clipjax.data.tokenizers import make_tokenizer
from clipjax.inference.embed import Encoded, make_embed, make_encode
from clipjax.interop.foreign import load_variables, open_foreign
from clipjax.mesh import batch_sharding, batch_shards, make_mesh, to_host
from clipjax.models import patch_budget
from clipjax.models.pixels import image_of
from clipjax.runs import checkpoint as checkpoints


@dataclasses.dataclass(frozen=True)
class Loaded:
    config: ExperimentConfig
    params: Any  # on the mesh
    tokenizer: Any  # None where the weights came without one
    # PIL images, encoded bytes, [H, W, 3] uint8; or [B, S, S, 3] uint8 if the tower reads images of one size.
    embed_images: Callable[[Any], np.ndarray]
    embed_texts: Callable[[Any], np.ndarray]  # strings; or [B, L] int32 ids
    # Both return [B, embed_dim] float32 of unit length. (the same, hidden_layers=()) -> Encoded, float32 NumPy:
    encode_images: Callable[..., Encoded]
    encode_texts: Callable[..., Encoded]


def load(
    path: str | Path,
    *,
    step: str = "latest",
    family: str = "",
    preset: str = "",
    mesh: Mesh | None = None,
    batch_size: int = 64,
) -> Loaded:
    """A run, an imported directory, or other people's files; see docs/interop.md.

    mesh: None: all devices, weights whole on each. Raises CheckpointError or InteropError.
    """
    mesh = mesh or make_mesh(MeshConfig())
    if (Path(path) / "checkpoints").is_dir():
        manager, number = checkpoints.open_run(path, step)
        config, _ = checkpoints.read_meta(manager, number)
        variables = checkpoints.restore_variables(manager, number, config, mesh)
        manager.close()
    else:
        foreign = open_foreign(str(path), family, preset)
        config, variables = foreign.config, load_variables(foreign, mesh)
    shards = batch_shards(mesh)
    rows = -(-batch_size // shards) * shards
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=rows))
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length) if config.tokenizer.path else None
    images_of, texts_of = make_embed(config, mesh)
    encoders = {side: make_encode(config, mesh, side) for side in ("image", "text")}
    blocks = functools.partial(_blocks, rows=rows, sharding=batch_sharding(mesh))

    def embed_images(images: Any) -> np.ndarray:
        found = [
            _host(images_of(variables, image_of(batch)), count) for batch, count in blocks(_columns(images, config))
        ]
        return np.concatenate(found)

    def ids_of(texts: Any) -> np.ndarray:
        if isinstance(texts, Sequence) and not isinstance(texts, np.ndarray) and isinstance(texts[0], str):
            if tokenizer is None:
                raise ValueError(f"{path} has no tokenizer: give ids [B, {config.model.text.context_length}] int32.")
            texts = tokenizer(texts)
        return np.asarray(texts, np.int32)

    def embed_texts(texts: Any) -> np.ndarray:
        return texts_of(variables, ids_of(texts))

    def encode(side: str, columns: dict[str, np.ndarray], hidden_layers: Sequence[int]) -> Encoded:
        found = []
        for batch, count in blocks(columns):
            x = image_of(batch) if side == "image" else batch["text"]
            encoded = encoders[side](variables, x, tuple(hidden_layers))
            found.append(jax.tree.map(lambda a, count=count: _host(a, count), encoded))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def encode_images(images: Any, hidden_layers: Sequence[int] = ()) -> Encoded:
        return encode("image", _columns(images, config), hidden_layers)

    def encode_texts(texts: Any, hidden_layers: Sequence[int] = ()) -> Encoded:
        return encode("text", {"text": ids_of(texts)}, hidden_layers)

    return Loaded(config, variables["params"], tokenizer, embed_images, embed_texts, encode_images, encode_texts)


def _blocks(
    columns: dict[str, np.ndarray], rows: int, sharding: jax.sharding.Sharding
) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """(global batch of `rows` examples, how many of them are not filled in)."""
    count = len(next(iter(columns.values())))
    for start in range(0, count, rows):
        batch = {}
        for name, column in columns.items():
            block = column[start : start + rows]
            padded = np.ones((rows, *block.shape[1:]), block.dtype)
            padded[: len(block)] = block
            put = lambda index, x=padded: x[index]  # noqa: E731
            batch[name] = jax.make_array_from_callback(padded.shape, sharding, put)
        yield batch, min(rows, count - start)


def _host(array: jax.Array, count: int) -> np.ndarray:
    return np.asarray(to_host(array), np.float32)[:count]


def _columns(images: Any, config: ExperimentConfig) -> dict[str, np.ndarray]:
    """The image columns of a batch. Raises ValueError for an array of another shape than the tower's."""
    size, budget, pixels = config.model.image.image_size, patch_budget(config.model.image), config.data.pixels
    if budget:
        rows = [eval_patches(_encoded(image), budget, pixels) for image in images]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if not isinstance(images, np.ndarray):
        images = np.stack([eval_image(_encoded(image), size, pixels) for image in images])
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 [B, {size}, {size}, 3].")
    return {"image": images}


def _encoded(image: Any) -> bytes:
    """Bytes of a file without loss: what an image of any kind is read from."""
    if isinstance(image, bytes):
        return image
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
