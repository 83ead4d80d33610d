"""Every loss of the family and its gradients written out in plain NumPy, in any float type: whole matrices, by hand.

In float32 they show what float32 itself can do; references.py says in float64 what is right.
"""

from __future__ import annotations

import numpy as np


def value_and_grads(config, x, y, scale, bias, dtype=np.float32, pair_id=None, **others):
    """(loss, dx, dy, dscale, dbias), computed in `dtype` throughout."""
    x, y, scale, bias = (np.asarray(a, dtype) for a in (x, y, scale, bias))
    others = {name: np.asarray(a, dtype) for name, a in others.items()}
    batch = len(x)
    positive, ignored = masks(config.repeats, batch, pair_id)
    if config.name == "ntxent":
        return ntxent(x, y, scale, positive, ignored, dtype)
    cosine = x @ y.T
    s = scale * cosine
    if config.name == "sigmoid":
        z = np.where(positive, dtype(1), dtype(-1))
        u = -z * (s + bias)
        value = np.where(ignored, 0, np.logaddexp(dtype(0), u)).sum() / dtype(batch)
        ds = np.where(
            ignored,
            0,
            -z * np.where(u > 0, 1 / (1 + np.exp(-np.abs(u))), np.exp(-np.abs(u)) / (1 + np.exp(-np.abs(u)))),
        )
        ds = ds / dtype(batch)
        return value, scale * (ds @ y), scale * (ds.T @ x), (ds * cosine).sum(), ds.sum()
    sides = [one_direction(config, s, positive, ignored, dtype, **teacher(others, False))]
    sides.append(one_direction(config, s.T, positive, ignored, dtype, **teacher(others, True)))
    half = dtype(0.5)
    value, ds = half * (sides[0][0] + sides[1][0]), half * (sides[0][1] + sides[1][1].T)
    dx, dy = scale * (ds @ y), scale * (ds.T @ x)
    if config.name == "cyclip":
        within, across = x @ x.T - y @ y.T, cosine - cosine.T
        a, c = dtype(config.in_modal_weight), dtype(config.cross_modal_weight)
        n = dtype(batch)
        value = value + (a * (within**2).sum() + c * (across**2).sum()) / n
        dx = dx + 4 * (a * (within @ x) + c * (across @ y)) / n
        dy = dy - 4 * (a * (within @ y) + c * (across @ x)) / n
    if config.name == "coca":
        w, v = dtype(config.contrastive_weight), dtype(config.caption_weight)
        value = w * value + v * others["caption_nll"].sum() / others["caption_tokens"].sum()
        ds, dx, dy = w * ds, w * dx, w * dy
    return value, dx, dy, (ds * cosine).sum(), dtype(0)


def masks(repeats, batch, pair_id):
    eye = np.eye(batch, dtype=bool)
    if repeats == "negatives":
        return eye, np.zeros_like(eye)
    same = (pair_id[:, None] == pair_id[None, :]) & (pair_id[:, None] != -1)
    return (eye | same, np.zeros_like(eye)) if repeats == "positives" else (eye, same & ~eye)


def softmax_rows(s, without):
    s = np.where(without, s.dtype.type(-np.inf), s)
    top = s.max(1, keepdims=True)
    e = np.exp(s - top)
    total = e.sum(1, keepdims=True)
    return e / total, (top + np.log(total))[:, 0]


def teacher(others, transposed):
    if "teacher_logit_scale" not in others:
        return {}
    s = others["teacher_logit_scale"] * (others["teacher_image_embedding"] @ others["teacher_text_embedding"].T)
    return {"by": s.T if transposed else s}


def one_direction(config, s, positive, ignored, dtype, by=None):
    """(mean over rows, derivative by s)."""
    n = dtype(len(s))
    target = positive / positive.sum(1, keepdims=True).astype(dtype)
    if config.name == "label_smoothing":
        e = dtype(config.label_smoothing)
        target = (1 - e) * target + e * (~ignored / (~ignored).sum(1, keepdims=True).astype(dtype))
    target = target.astype(dtype)
    p, lse = softmax_rows(s, (positive | ignored) if config.name == "dcl" else ignored)
    value, ds = (lse - (target * s).sum(1)).sum() / n, (p - target) / n
    if by is not None:
        q = softmax_rows(by, ignored)[0]
        w = dtype(config.distill_weight)
        value, ds = value + w * (lse - (q * s).sum(1)).sum() / n, ds + w * (p - q) / n
    return value, ds


def ntxent(x, y, scale, positive, ignored, dtype):
    z = np.concatenate([x, y])
    within, nothing = positive | ignored, np.zeros_like(positive)
    out = np.block([[within, ignored], [ignored, within]])
    target = np.block([[nothing, positive], [positive, nothing]])
    target = (target / target.sum(1, keepdims=True)).astype(dtype)
    cosine = z @ z.T
    s = scale * cosine
    p, lse = softmax_rows(s, out)
    n = dtype(len(z))
    ds = (p - target) / n
    dz = scale * ((ds + ds.T) @ z)
    return (lse - (target * s).sum(1)).sum() / n, dz[: len(x)], dz[len(x) :], (ds * cosine).sum(), dtype(0)
