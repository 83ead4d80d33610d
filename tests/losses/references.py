"""Every loss of the family written out plainly in float64: whole matrices, no tiles, no tricks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from clipjax.config import LossConfig


def value_and_grads(config: LossConfig, x, y, scale, bias, **others):
    """(loss, dx, dy, dscale, dbias), all float64, by JAX's autodiff of the formulas below."""
    with jax.enable_x64(True):
        x, y, scale, bias = (jnp.asarray(a, jnp.float64) for a in (x, y, scale, bias))
        others = {
            k: jnp.asarray(v, jnp.float64 if np.asarray(v).dtype.kind == "f" else None) for k, v in others.items()
        }
        loss, grads = jax.value_and_grad(lambda *args: FORMULAS[config.name](config, *args, **others), range(4))(
            x, y, scale, bias
        )
        return tuple(np.asarray(a) for a in (loss, *grads))


def masks(config, size, pair_id):
    """(positive, ignored) [B, B] bool."""
    eye = jnp.eye(size, dtype=bool)
    if config.repeats == "negatives":
        return eye, jnp.zeros_like(eye)
    same = (pair_id[:, None] == pair_id[None, :]) & (pair_id[:, None] != -1)
    return (eye | same, jnp.zeros_like(eye)) if config.repeats == "positives" else (eye, same & ~eye)


def both_directions(one_direction, s, *masks):
    return 0.5 * (one_direction(s, *masks).mean() + one_direction(s.T, *masks).mean())


def softmax(config, x, y, scale, bias, pair_id=None, **_):
    positive, ignored = masks(config, len(x), pair_id)

    def direction(s, positive, ignored):
        log_p = s - logsumexp(jnp.where(ignored, -jnp.inf, s), axis=1, keepdims=True)
        return -(log_p * positive).sum(1) / positive.sum(1)

    return both_directions(direction, scale * x @ y.T, positive, ignored)


def sigmoid(config, x, y, scale, bias, pair_id=None, **_):
    positive, ignored = masks(config, len(x), pair_id)
    z = jnp.where(positive, 1.0, -1.0)
    return (jnp.logaddexp(0.0, -z * (scale * x @ y.T + bias)) * ~ignored).sum() / len(x)


def dcl(config, x, y, scale, bias, pair_id=None, **_):
    positive, ignored = masks(config, len(x), pair_id)

    def direction(s, positive, ignored):
        negatives = logsumexp(jnp.where(positive | ignored, -jnp.inf, s), axis=1)
        return negatives - (s * positive).sum(1) / positive.sum(1)

    return both_directions(direction, scale * x @ y.T, positive, ignored)


def label_smoothing(config, x, y, scale, bias, pair_id=None, **_):
    positive, ignored = masks(config, len(x), pair_id)

    def direction(s, positive, ignored):
        spread = ~ignored / (~ignored).sum(1, keepdims=True)
        target = (1 - config.label_smoothing) * positive / positive.sum(1, keepdims=True)
        log_p = s - logsumexp(jnp.where(ignored, -jnp.inf, s), axis=1, keepdims=True)
        return -((target + config.label_smoothing * spread) * log_p).sum(1)

    return both_directions(direction, scale * x @ y.T, positive, ignored)


def ntxent(config, x, y, scale, bias, pair_id=None, **_):
    positive, ignored = masks(config, len(x), pair_id)
    z = jnp.concatenate([x, y])
    within = positive | ignored
    out = jnp.block([[within, ignored], [ignored, within]])
    nothing = jnp.zeros_like(positive)
    positive = jnp.block([[nothing, positive], [positive, nothing]])
    s = scale * z @ z.T
    log_p = s - logsumexp(jnp.where(out, -jnp.inf, s), axis=1, keepdims=True)
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


def cyclip(config, x, y, scale, bias, **others):
    in_modal = jnp.square(x @ x.T - y @ y.T).sum() / len(x)
    cross_modal = jnp.square(x @ y.T - y @ x.T).sum() / len(x)
    weighted = config.in_modal_weight * in_modal + config.cross_modal_weight * cross_modal
    return softmax(config, x, y, scale, bias, **others) + weighted


def distill(config, x, y, scale, bias, teacher_image_embedding, teacher_text_embedding, teacher_logit_scale, **others):
    ignored = masks(config, len(x), others.get("pair_id"))[1]
    teacher = teacher_logit_scale * teacher_image_embedding @ teacher_text_embedding.T

    def direction(s, teacher, ignored):
        s, teacher = (jnp.where(ignored, -jnp.inf, a) for a in (s, teacher))
        p = jax.nn.softmax(teacher, axis=1)
        return -jnp.where(p > 0, p * jax.nn.log_softmax(s, axis=1), 0.0).sum(1)

    s = scale * x @ y.T
    by_teacher = 0.5 * (direction(s, teacher, ignored).mean() + direction(s.T, teacher.T, ignored).mean())
    return softmax(config, x, y, scale, bias, **others) + config.distill_weight * by_teacher


def coca(config, x, y, scale, bias, caption_nll, caption_tokens, **others):
    caption = caption_nll.sum() / caption_tokens.sum()
    return config.contrastive_weight * softmax(config, x, y, scale, bias, **others) + config.caption_weight * caption


FORMULAS = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "dcl": dcl,
    "label_smoothing": label_smoothing,
    "ntxent": ntxent,
    "cyclip": cyclip,
    "distill": distill,
    "coca": coca,
}
