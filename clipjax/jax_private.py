"""The only module that imports JAX's private modules: what has no public name, here under a name of ours.

tests/project/test_tomorrow.py keeps such imports out of all other modules, and checks that these exist.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


def coordination_client() -> Any:
    """The client of the coordination service's key-value store; None before jax.distributed.initialize.

    JAX has no public name for it (0.10 and 0.12).
    """
    from jax._src import distributed

    return distributed.global_state.client


def cudnn_calls() -> ModuleType:
    """The module in which JAX looks for cuDNN's version; tests put another `cuda_versions` into it."""
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo
