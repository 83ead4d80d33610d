"""Hidden states of chosen layers, for what is built on a tower's inside (Stable Diffusion, LLaVA, PaliGemma)."""

from __future__ import annotations

from typing import NamedTuple

import jax

from clipjax.config import require


class Hidden(NamedTuple):
    state: jax.Array  # [B, L, width] as it leaves the layer
    normed: jax.Array | None  # after the tower's last norm; None where that norm is not for tokens


def layer_indices(hidden_layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Layers counted from 0, as transformers counts hidden_states: 0 is what enters the first block, i what leaves
    block i, -1 what leaves the last. Raises ConfigError for a layer that is not there."""
    for layer in hidden_layers:
        require(
            -depth - 1 <= layer <= depth,
            f"hidden_layers has {layer}, but the tower has {depth} blocks: use {-depth - 1} to {depth}, where 0 "
            "is what enters the first block and -1 what leaves the last.",
        )
    return tuple(layer % (depth + 1) for layer in hidden_layers)
