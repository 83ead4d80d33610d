"""The bound on the learned temperature: logit_scale is its inverse, and grows as training goes on."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def clip_logit_scale(params: dict[str, Any], largest: float) -> dict[str, Any]:
    """params with the scale at most `largest` (config.model.logit_scale_max); 0, or without a scale: as they are.

    params: {"logit_scale": () float32, the scale's logarithm, ...}. Called after an update, as CLIP does (2103.00020,
    section 2.5): with the clip in the forward pass, a scale beyond the bound would get no gradient and stay there.
    """
    if largest <= 0 or "logit_scale" not in params:
        return params
    return {**params, "logit_scale": jnp.minimum(params["logit_scale"], jnp.log(largest))}
