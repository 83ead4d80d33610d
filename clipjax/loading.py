"""clipjax.load: weights from anywhere as two functions."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from clipjax import checkpoint as checkpoints
from clipjax.config import ExperimentConfig, MeshConfig
from clipjax.data.images import eval_image
from clipjax.data.naflex import budget_of, eval_patches
from clipjax.data.text import make_tokenizer
from clipjax.evaluate import make_embed
from clipjax.interop.foreign import load_variables, open_foreign
from clipjax.mesh import batch_sharding, batch_shards, make_mesh, to_host
from clipjax.models.pixels import image_of


@dataclasses.dataclass(frozen=True)
class Loaded:
    config: ExperimentConfig
    params: Any  # on the mesh
    tokenizer: Any  # None where the weights came without one
    # PIL images, encoded bytes, [H, W, 3] uint8; or, but for naflex, [B, S, S, 3] uint8.
    embed_images: Callable[[Any], np.ndarray]
    embed_texts: Callable[[Any], np.ndarray]  # strings; or [B, L] int32 ids
    # Both return [B, embed_dim] float32 of unit length.


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
    sharding = batch_sharding(mesh)

    def embed_images(images: Any) -> np.ndarray:
        columns = _columns(images, config)
        count, blocks = len(columns["image"]), []
        for start in range(0, count, rows):
            batch = {}
            for name, column in columns.items():
                block = column[start : start + rows]
                padded = np.ones((rows, *block.shape[1:]), block.dtype)
                padded[: len(block)] = block
                put = lambda index, x=padded: x[index]  # noqa: E731
                batch[name] = jax.make_array_from_callback(padded.shape, sharding, put)
            blocks.append(np.asarray(to_host(images_of(variables, image_of(batch))))[: min(rows, count - start)])
        return np.concatenate(blocks)

    def embed_texts(texts: Any) -> np.ndarray:
        if isinstance(texts, Sequence) and not isinstance(texts, np.ndarray) and isinstance(texts[0], str):
            if tokenizer is None:
                raise ValueError(f"{path} has no tokenizer: give ids [B, {config.model.text.context_length}] int32.")
            texts = tokenizer(texts)
        return texts_of(variables, np.asarray(texts, np.int32))

    return Loaded(config, variables["params"], tokenizer, embed_images, embed_texts)


def _columns(images: Any, config: ExperimentConfig) -> dict[str, np.ndarray]:
    """The image columns of a batch. Raises ValueError for an array of another shape than the tower's."""
    size, budget, pixels = config.model.image.image_size, budget_of(config.model.image), config.data.pixels
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
