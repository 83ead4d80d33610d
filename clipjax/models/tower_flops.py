"""FLOPs of one example's forward pass, counted from a tower's options: matrix products only.

A multiplication and an addition are two FLOPs. A layer on L tokens of width W costs 24 L W^2 with an MLP of 4 W, and
4 L^2 W for attention. The convention is that of MFU (PaLM, 2204.02311, appendix B): what the mathematics needs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from clipjax.config import BlockConfig


class TowerFlops(NamedTuple):
    """FLOPs of one example's forward pass, and the tokens that a captioner reads."""

    products: int  # everything except the two products inside attention
    attention: int  # q k^T and its product with v
    tokens: tuple[int, int]  # (number, width)
    unread: tuple[int, int] = (0, 0)  # products and attention, of those above, that only the tokens need


def block_products(config: BlockConfig, length: int) -> int:
    """The matrices of config.depth blocks on `length` tokens."""
    return stack_products(config.depth, config.width, config.mlp_dim, length, gated=config.mlp != "plain")


def beside_one_row(config: BlockConfig, length: int, rotary: bool) -> tuple[int, int]:
    """Products and attention of one block that are not needed if one row of its result is read.

    With `rotary` positions the other rows are keys and values; without them, not even that: see models/one_query.py.
    """
    others, width, matrices = length - 1, config.width, 2 if config.mlp == "plain" else 3
    mlp = 2 * matrices * width * config.mlp_dim
    if rotary:
        return others * (4 * width**2 + mlp), 4 * others * length * width
    return others * (8 * width**2 + mlp), 4 * (length - config.num_heads) * length * width


def one_query(heads: int, width: int, length: int) -> int:
    """Attention of one query over `length` rows of its width, and its four matrices: see models/one_query.py."""
    return 8 * width**2 + 4 * heads * length * width


def stack_products(depth: int, width: int, mlp_dim: int, length: int, *, gated: bool = False) -> int:
    """The matrices of `depth` layers of self-attention and MLP; gated: the MLP has three matrices, not two."""
    return depth * length * (8 * width**2 + 2 * (3 if gated else 2) * width * mlp_dim)


def self_attention(depth: int, width: int, length: int) -> int:
    """Both products inside the self-attention of `depth` layers."""
    return depth * 4 * math.prod((length, length, width))


def cross_attention(queries: int, width: int, keys: int, key_width: int) -> int:
    """Query and output matrices of the queries, key and value matrices of the keys, and both products."""
    return 4 * queries * width**2 + 4 * keys * key_width * width + 4 * queries * keys * width
