"""Loss and exact gradient of the global batch, with the towers run at once or in micro-batches under one loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.config import ExperimentConfig
from clipjax.data.cut import REST
from clipjax.losses import make_loss
from clipjax.mesh import BATCH_AXES, batch_sharding, batch_shards, param_shardings
from clipjax.models import DualEncoder
from clipjax.models.pixels import image_of, normalize_pixels
from clipjax.optim.layers import TEMPERATURE
from clipjax.training.lora import merged
from clipjax.training.teacher import EmbeddedTeacher, Teacher
from clipjax.training.trainable import farthest, frozen_blocks, joined, trained

Batch = dict[str, jax.Array]
Tree = Any


def make_loss_and_gradients(
    config: ExperimentConfig, mesh: Mesh, teacher: Teacher | EmbeddedTeacher | None = None
) -> Callable:
    """The function (params, batch_stats, batch, key, teacher_variables) -> (loss, metrics, grads, new batch_stats).

    Loss and gradient are those of the GLOBAL batch, on any mesh. grads is a tree like trained(config, params): the rest
    is constant, and where it comes first in a tower, the backward pass ends behind it.

    config.accumulation_steps=1 is plain reverse mode. With more, memory is that of one micro-batch's towers: every
    micro-batch is embedded without keeping anything, the loss sees all embeddings once, then each micro-batch runs
    again, with the same dropout, and receives the gradient of its rows (GradCache, Gao et al. 2101.06983). The sum is
    the gradient of the whole batch, not an average of small batches' losses; it costs one more forward pass. A
    micro-batch takes its share of every device's rows, so nothing moves between devices.

    With config.data.captions_per_image K > 1 an image is embedded once, and the loss is that of B K pairs in which it
    comes once with each of its texts; see with_all_texts.

    BatchNorm's statistics are those of the whole batch, which a micro-batch cannot know; therefore training/check.py
    refuses BatchNorm with accumulation. A tower that does not train as a whole uses its running statistics and leaves
    them unchanged.
    """
    model = DualEncoder(config.model, batch_sharding(mesh), frozen_blocks(config))
    loss_fn = make_loss(config.loss, mesh)
    embed, known = _make_embed(config, model, batch_shards(mesh)), _make_known(config, model, teacher)

    def loss_of(params: Tree, embedded: dict, others: dict) -> tuple[jax.Array, dict]:
        out = model.apply({"params": {name: params[name] for name in TEMPERATURE if name in params}})
        with jax.named_scope("loss"):
            embedded, others = with_all_texts(embedded, others)
            loss, metrics = loss_fn(**embedded, **others, logit_scale=out.logit_scale, logit_bias=out.logit_bias)
        return loss, {**metrics, "logit_scale": out.logit_scale, "logit_bias": out.logit_bias}

    def at_once(params: Tree, batch_stats: Tree, batch: Batch, key: jax.Array, teacher_variables: Tree = None):
        others = known(batch, teacher_variables)

        def value(part: Tree) -> tuple[jax.Array, tuple[dict, Tree]]:
            whole = joined(params, part)
            embedded, changed = embed(whole, batch_stats, batch, key)
            loss, metrics = loss_of(whole, embedded, others)
            return loss, (metrics, changed)

        (loss, (metrics, changed)), grads = jax.value_and_grad(value, has_aux=True)(trained(config, params))
        return loss, metrics, grads, changed

    count = config.accumulation_steps
    return at_once if count == 1 else _make_accumulated(config, mesh, embed, known, loss_of)


def _make_embed(
    config: ExperimentConfig, model: DualEncoder, shards: int
) -> Callable[..., tuple[dict[str, jax.Array], Tree]]:
    """(params, batch_stats, batch, key) -> (the loss's inputs of each example, [b, ...]; batch_stats updated)."""
    pixels = config.data.pixels
    # What has running statistics precedes the blocks, or is in stages, of which all or none train.
    mutable = ["batch_stats"] if farthest(config, "image") == math.inf else []

    def embed(params: Tree, batch_stats: Tree, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], Tree]:
        image = None
        if "image_embedding" not in batch:
            image = normalize_pixels(image_of(batch), pixels.mean, pixels.std, jnp.dtype(config.model.dtype))
        variables = {"params": merged(params), "batch_stats": batch_stats}
        run = functools.partial(model.apply, variables, train=True, rngs={"dropout": key}, mutable=mutable)
        out, changed = run(image=image, text=by_rows(batch["text"]))
        names = ("image_embedding", "text_embedding", "caption_nll")
        embedded = {name: getattr(out, name) for name in names if getattr(out, name) is not None}
        texts = [embedded["text_embedding"].reshape(*batch["text"].shape[:-1], -1)]
        if REST in batch:
            rest, _ = run(text=by_rows(batch[REST]))
            texts.append(rest.text_embedding.reshape(*batch[REST].shape[:-1], -1))
        embedded["text_embedding"] = interleaved(texts, shards)
        # Without an image, the frozen tower's embeddings come with the batch.
        embedded |= {"image_embedding": batch["image_embedding"]} if image is None else {}
        return embedded, changed.get("batch_stats", batch_stats)

    return embed


def by_rows(text: jax.Array) -> jax.Array:
    """[b, L] or [b, K, L] -> [b, L] or [b K, L]"""
    return text.reshape(-1, text.shape[-1])


def interleaved(parts: list[jax.Array], shards: int) -> jax.Array:
    """[b_i, ...] each -> [sum of b_i, ...]: each of `shards` equal groups of rows has its rows of every part in order.

    A batch with two lengths of texts (clipjax/data/cut.py) has them like this, so that no row leaves its device.
    """
    if len(parts) == 1:
        return parts[0]
    groups = [part.reshape(shards, -1, *part.shape[1:]) for part in parts]
    return jnp.concatenate(groups, axis=1).reshape(-1, *parts[0].shape[1:])


def with_all_texts(embedded: dict[str, jax.Array], others: dict[str, jax.Array]) -> tuple[dict, dict]:
    """The loss's inputs for B K pairs, where embedded["text_embedding"] is [B, K, D]; as they are, where it is [B, D].

    Image i becomes the rows i K to i K + K - 1, with one of its texts each. Their pair_id is the image's own, or one
    that no other image has where it has none (-1), so that all its texts are positives of each row. The gradient by an
    image's embedding is then the sum over its rows.
    """
    texts = embedded["text_embedding"]
    if texts.ndim == 2:
        return embedded, others
    batch, count, _ = texts.shape

    def repeated(a: jax.Array) -> jax.Array:
        """[B, ...] -> [B K, ...]"""
        return jnp.broadcast_to(a[:, None], (batch, count, *a.shape[1:])).reshape(batch * count, *a.shape[1:])

    pair_id = others["pair_id"]
    # Numbers below the batch for ids that images share, beyond it for the rest: no id that data may have is in the way.
    shared = jnp.searchsorted(jnp.sort(pair_id), pair_id)
    pair_id = jnp.where(pair_id != -1, shared, batch + jnp.arange(batch)).astype(jnp.int32)
    embedded = {
        "image_embedding": repeated(embedded["image_embedding"]),
        "text_embedding": texts.reshape(batch * count, -1),
    }
    return embedded, {**others, "pair_id": repeated(pair_id)}


def _make_known(
    config: ExperimentConfig, model: DualEncoder, teacher: Teacher | EmbeddedTeacher | None
) -> Callable[[Batch, Tree], dict[str, jax.Array]]:
    """(batch, teacher_variables) -> the inputs of the loss that no gradient flows to."""

    def known(batch: Batch, teacher_variables: Tree) -> dict[str, jax.Array]:
        inputs = {"pair_id": batch["pair_id"]} if "pair_id" in batch else {}
        if config.model.decoder.depth:
            inputs["caption_tokens"] = model.apply({}, batch["text"], method=DualEncoder.caption_tokens)
        return inputs | (teacher.embed(teacher_variables, batch) if teacher else {})

    return known


def _make_accumulated(
    config: ExperimentConfig, mesh: Mesh, embed: Callable, known: Callable, loss_of: Callable
) -> Callable:
    """As make_loss_and_gradients returns, in config.accumulation_steps micro-batches."""
    count, shards = config.accumulation_steps, batch_shards(mesh)
    in_micro_batches = NamedSharding(mesh, P(None, BATCH_AXES))

    def split(a: jax.Array) -> jax.Array:
        """[B, ...] -> [count, B / count, ...]; micro-batch i takes the ith part of each device's rows."""
        a = a.reshape(shards, count, -1, *a.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(a.reshape(count, -1, *a.shape[3:]), in_micro_batches)

    def join(a: jax.Array) -> jax.Array:
        """The reverse of split."""
        a = a.reshape(count, shards, -1, *a.shape[2:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(a.reshape(-1, *a.shape[3:]), batch_sharding(mesh))

    def accumulated(params: Tree, batch_stats: Tree, batch: Batch, key: jax.Array, teacher_variables: Tree = None):
        micros = jax.tree.map(split, batch)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        first = jax.lax.map(
            lambda micro: (embed(params, batch_stats, *micro)[0], known(micro[0], teacher_variables)), (micros, keys)
        )
        embedded, others = jax.tree.map(lambda a: join(a) if a.ndim > 1 else a[0], first)
        part = trained(config, params)
        (loss, metrics), (grads, to_embedded) = jax.value_and_grad(
            lambda part, embedded: loss_of(joined(params, part), embedded, others), argnums=(0, 1), has_aux=True
        )(part, embedded)
        layout = param_shardings(part, mesh)

        def replay(grads: Tree, micro: tuple) -> tuple[Tree, None]:
            rows, row_key, cotangent = micro
            _, pull = jax.vjp(lambda part: embed(joined(params, part), batch_stats, rows, row_key)[0], part)
            (added,) = pull(cotangent)
            return jax.lax.with_sharding_constraint(jax.tree.map(jnp.add, grads, added), layout), None

        grads, _ = jax.lax.scan(replay, grads, (micros, keys, jax.tree.map(split, to_embedded)))
        return loss, metrics, grads, batch_stats

    return accumulated
