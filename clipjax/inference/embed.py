"""Functions that run a model on a mesh: make_embed for embeddings, make_encode for single towers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.data.cut import TextCut
from clipjax.data.pipeline import eval_batches
from clipjax.data.prefetch import prefetch_to_mesh
from clipjax.mesh import batch_sharding, param_shardings, reading_part, replicated, to_host, to_mesh
from clipjax.models import DualEncoder, image_tower, patch_budget, text_tower
from clipjax.models.pixels import normalize_pixels
from clipjax.models.towers.tower import Hidden, TowerOutput
from clipjax.training.cut import eval_cut
from clipjax.training.state import abstract_state, eval_variables


def global_batches(
    config: ExperimentConfig, mesh: Mesh, tokenizer: Any, source: Any, *, shares: Sequence[range] | None = None
) -> Iterator[dict[str, jax.Array]]:
    """Every record of `source` once, in order, in batches of global arrays over (data, fsdp).

    See data.pipeline.eval_batches for the columns and for shares.
    """
    index, count = reading_part(mesh)
    local = eval_batches(
        source,
        tokenizer=tokenizer,
        pixels=config.data.pixels,
        image_size=config.model.image.image_size,
        budget=patch_budget(config.model.image),
        batch_size=config.eval.batch_size,
        num_threads=config.data.num_threads,
        process_index=index,
        process_count=count,
        shares=shares,
    )
    pairs = ((batch, None) for batch in local)
    with contextlib.closing(prefetch_to_mesh(pairs, batch_sharding(mesh), config.data.prefetch)) as stream:
        for batch, _, _ in stream:
            yield batch


def make_embed(config: ExperimentConfig, mesh: Mesh) -> tuple[Callable, Callable]:
    """Two jitted functions of this model on this mesh, (embed_images, embed_texts). All processes call them together.

    embed_images(variables, image_of(batch)) -> [B, embed_dim] float32, a global array sharded as the batch.
    embed_texts(variables, tokens) -> [N, embed_dim] float32 NumPy; tokens: [N, L] int32, the same on every process.
      Where the text tower computes the same without the padding, texts are cut (clipjax/training/cut.py).
    variables: {"params", "batch_stats"}, see training.state.eval_variables. Embeddings have unit length.
    """
    model = DualEncoder(config.model, batch_sharding(mesh))
    pixels, batch_size = config.data.pixels, config.eval.batch_size
    shardings = param_shardings(eval_variables(abstract_state(config, mesh)), mesh)
    sharding, cut = batch_sharding(mesh), eval_cut(config)

    def image_embedding(variables: Any, image: jax.Array) -> jax.Array:
        image = normalize_pixels(image, pixels.mean, pixels.std, jnp.dtype(config.model.dtype))
        return model.apply(variables, image=image, text=None).image_embedding

    def text_embedding(variables: Any, text: jax.Array) -> jax.Array:
        return model.apply(variables, image=None, text=text).text_embedding

    embed_images = jax.jit(image_embedding, in_shardings=(shardings, sharding), out_shardings=sharding)
    embed_block = jax.jit(text_embedding, in_shardings=(shardings, sharding), out_shardings=replicated(mesh))

    def embed_texts(variables: Any, tokens: np.ndarray) -> np.ndarray:
        embeddings = np.zeros((len(tokens), config.model.embed_dim), np.float32)
        for rows, length in blocks_of(tokens, cut, batch_size):
            padded = np.zeros((batch_size, length), np.int32)
            padded[: len(rows)] = tokens[rows, :length]
            embeddings[rows] = to_host(embed_block(variables, to_mesh(padded, sharding)))[: len(rows)]
        return embeddings

    return embed_images, embed_texts


def blocks_of(tokens: np.ndarray, cut: TextCut | None, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(at most `size` rows of tokens [N, L], how many of their columns the tower needs), until every row has come.

    With a cut, texts of like lengths come together, the shortest first.
    """
    width = tokens.shape[1]
    needed = cut.needed(tokens) if cut and len(tokens) else np.full(len(tokens), width)
    order = np.argsort(needed, kind="stable")
    for start in range(0, len(tokens), size):
        rows = order[start : start + size]
        longest = int(needed[rows[-1]])
        yield rows, width if cut is None else min(cut.fitting(longest), width)


def make_image_features(config: ExperimentConfig, mesh: Mesh) -> Callable[[Any, Any], jax.Array] | None:
    """image_features(variables, image_of(batch)) -> [B, width] float32: what enters the image tower's projection.

    A global array sharded as the batch, not of unit length; probes read it. Of a tower that is set to have no
    projection it is the pooled output. None for a tower whose projection is no layer of its own, such as CLIP's
    ResNet. All processes call it together.
    """
    variables = eval_variables(abstract_state(config, mesh))
    projects = "projection" in variables["params"]["image"]
    if not projects and getattr(config.model.image, "projection", True):
        return None
    model, pixels, sharding = DualEncoder(config.model, batch_sharding(mesh)), config.data.pixels, batch_sharding(mesh)

    def features(variables: Any, image: jax.Array) -> jax.Array:
        found = []

        def keep(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            result = call(*args, **kwargs)
            if projects and context.module.path == ("image", "projection"):
                found.append(args[0])
            elif not projects and (context.module.path, context.method_name) == (("image",), "__call__"):
                found.append(result.pooled)
            return result

        image = normalize_pixels(image, pixels.mean, pixels.std, jnp.dtype(config.model.dtype))
        with nn.intercept_methods(keep):
            model.apply(variables, image=image, text=None)
        return found[0].astype(jnp.float32)

    return jax.jit(features, in_shardings=(param_shardings(variables, mesh), sharding), out_shardings=sharding)


class Encoded(NamedTuple):
    """A tower's output before it is brought to unit length, and the states of the layers asked for."""

    pooled: Any  # [B, embed_dim]; embed_images and embed_texts give the same, at unit length
    hidden: tuple[Hidden, ...]  # of the layers asked for, [B, L, width]; a class token comes first (CoCa: last)


def make_encode(config: ExperimentConfig, mesh: Mesh, side: str) -> Callable[[Any, Any, tuple[int, ...]], Encoded]:
    """The jitted function encode(variables, x, hidden_layers) -> Encoded of one tower; side: "image" or "text".

    variables: {"params", "batch_stats"}. x: uint8 images or Patches, or ids [B, L] int32, sharded over the batch.
    hidden_layers: see transformer.layer_indices; ConfigError where the tower does not give them. The result is
    replicated on every device.
    """
    model, pixels, sharding = config.model, config.data.pixels, batch_sharding(mesh)
    settings, row_of = getattr(model, side), {"image": image_tower, "text": text_tower}[side]
    dtype = jnp.dtype(model.dtype)
    tower = row_of(settings).module(settings, model.embed_dim, dtype, sharding)

    def encode(variables: Any, x: Any, hidden_layers: tuple[int, ...]) -> Encoded:
        if side == "image":
            x = normalize_pixels(x, pixels.mean, pixels.std, dtype)
        own = {collection: tree[side] for collection, tree in variables.items() if side in tree}
        output: TowerOutput = tower.bind(own)(x, False, hidden_layers)
        return Encoded(output.pooled, output.hidden)

    shardings = param_shardings(eval_variables(abstract_state(config, mesh)), mesh)
    return jax.jit(encode, static_argnums=2, in_shardings=(shardings, sharding), out_shardings=replicated(mesh))
