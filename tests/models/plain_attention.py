"""Attention and its gradient in float64 NumPy."""

import numpy as np

SMALL = -1e300  # a masked logit: the exponential of its difference from any other is 0


def reference(q, k, v, g, causal, mask=None):
    """(out, dq, dk, dv) by the chain rule written out; mask [batch, keys] bool."""
    q, k, v, g = (np.asarray(a, np.float64) for a in (q, k, v, g))
    scale = q.shape[-1] ** -0.5
    seen = np.ones((len(q), 1, q.shape[1], k.shape[1]), bool)
    if causal:
        seen = seen & np.tri(q.shape[1], k.shape[1], dtype=bool)
    if mask is not None:
        seen = seen & np.asarray(mask)[:, None, None, :]
    logits = np.where(seen, np.einsum("blhd,bmhd->bhlm", q, k) * scale, SMALL)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dweights = np.einsum("blhd,bmhd->bhlm", g, v)
    dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * seen
    return (
        np.einsum("bhlm,bmhd->blhd", weights, v),
        np.einsum("bhlm,bmhd->blhd", dlogits, k) * scale,
        np.einsum("bhlm,blhd->bmhd", dlogits, q) * scale,
        np.einsum("bhlm,blhd->bmhd", weights, g),
    )
