"""The bodies of flash_attention's kernels: what one step computes for its examples and heads, from vector memory.

Weights are computed as [keys, queries]. Then maxima and sums go over rows, which is vector work; the only unit that
crosses lanes would hold up everything else. No big array is transposed, only the [rows, heads * d] ones.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, TILE_ROWS = 128, 16  # of a bfloat16 tile in vector memory
LOOKAHEAD, LOOKAHEAD_BYTES = 3, 8 << 20  # heads begun before one is finished, and how much they may hold
MASKED = -(2.0**100)  # exact in bfloat16, too


def forward(q_ref, k_ref, v_ref, out_ref, *, length: int, d: int, causal: bool, limit_ref: Any = None) -> None:  # noqa: ANN001
    """limit_ref: [rows, LANES], how large a key's logits may be: MASKED for those that are not seen; None: all are."""

    def begin(head: _Head) -> jax.Array:
        q = _only(q_ref[head.window, head.lanes], head.own)
        return _logits(q, k_ref[head.window, head.lanes], head, length, causal, limit_ref)

    for head, logits in _ahead(_all_heads(q_ref, length, d), begin, length):
        if head.first:
            values, outs = _transposed(v_ref[head.window]), []
        weights, total = _softmax(logits, d)
        outs.append(_dot(values[head.columns], weights.astype(values.dtype), 1, 0) * (1 / total))
        if head.last:
            _store(out_ref, jnp.concatenate(outs, 0).T, head)


def backward(  # noqa: ANN001
    q_ref, k_ref, v_ref, g_ref, dq_ref, dk_ref, dv_ref, *, length: int, d: int, causal: bool, limit_ref: Any = None
) -> None:
    """limit_ref: see forward."""

    def begin(head: _Head) -> tuple[jax.Array, ...]:
        q, k, v, g = (ref[head.window, head.lanes] for ref in (q_ref, k_ref, v_ref, g_ref))
        q, g = _only(q, head.own), _only(_own_rows(g, head.start, length, 0), head.own)
        return q, g, _logits(q, k, head, length, causal, limit_ref), _dot(v, g, 1, 1)

    for head, (q, g, logits, dweights) in _ahead(_all_heads(q_ref, length, d), begin, length):
        if head.first:
            keys, dqs, dks, dvs = _transposed(k_ref[head.window]), [], {}, {}
        weights, total = _softmax(logits, d)
        weights = weights * (1 / total)
        _add(dvs, head.lanes, _dot(weights.astype(g.dtype), g, 1, 0))
        dlogits = weights * (dweights - (weights * dweights).sum(0, keepdims=True))
        dlogits = dlogits.astype(q.dtype)
        dqs.append(_dot(keys[head.columns], dlogits, 1, 0) * d**-0.5)
        _add(dks, head.lanes, _dot(dlogits, q, 1, 0) * d**-0.5)
        if head.last:
            _store(dq_ref, jnp.concatenate(dqs, 0).T, head)
            for ref, sums in ((dk_ref, dks), (dv_ref, dvs)):
                _store(ref, jnp.concatenate([sums[i] for i in sorted(sums)], 1), head)


class _Head(NamedTuple):
    """One head of an example in a kernel step."""

    start: int  # the example's first row in its window
    window: slice  # the rows of whole tiles around the example
    columns: slice  # the head's own
    lanes: slice  # the whole blocks of columns around its own
    own: slice  # the head's own columns, counted within lanes
    first: bool  # whether it is the example's first head
    last: bool


class Group:
    """The columns of some heads in a block that has all heads' columns; read and written as a reference to them.

    Heads of 72 channels fill whole lanes only sixteen at a time. A step that computes two of them moves their columns
    to the first lane, and their results back. group: which of the groups of `columns` columns; a step's number.
    """

    def __init__(self, ref: Any, columns: int, group: jax.Array) -> None:
        self.ref, self.dtype, self.shape = ref, ref.dtype, (ref.shape[0], columns)
        lanes = group_lanes(columns)
        # Of numbers that are not negative; // and % would ask for their signs, and for the TPU at hand.
        begin = jnp.minimum(jax.lax.div(group * columns, LANES) * LANES, ref.shape[1] - lanes)
        self.lanes, self.first = pl.ds(pl.multiple_of(begin, LANES), lanes), group * columns - begin

    @functools.cached_property
    def value(self) -> jax.Array:
        x = self.ref[:, self.lanes].astype(jnp.float32)
        return pltpu.roll(x, jax.lax.rem(x.shape[1] - self.first, x.shape[1]), 1).astype(self.dtype)[:, : self.shape[1]]

    def __getitem__(self, index: Any) -> jax.Array:
        return self.value[index]

    def __setitem__(self, window: slice, x: jax.Array) -> None:
        old = self.ref[window, self.lanes].astype(jnp.float32)
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, old.shape[1] - x.shape[1])))
        column = jax.lax.broadcasted_iota(jnp.int32, old.shape, 1)
        own = (column >= self.first) & (column < self.first + self.shape[1])
        self.ref[window, self.lanes] = jnp.where(own, pltpu.roll(x, self.first, 1), old).astype(self.dtype)


def group_lanes(columns: int) -> int:
    """Lanes of the whole blocks in which any group of this many columns lies."""
    return -(-(columns + LANES - math.gcd(columns, LANES)) // LANES) * LANES


def _all_heads(ref, length: int, d: int) -> Iterator[_Head]:  # noqa: ANN001
    rows, width = ref.shape
    for start, window in _windows(rows, length):
        for i in range(0, width, d):
            begin, end = i // LANES * LANES, min(-(-(i + d) // LANES) * LANES, width)
            own = slice(i - begin, i - begin + d)
            yield _Head(start, window, slice(i, i + d), slice(begin, end), own, i == 0, i + d == width)


def _ahead(heads: Iterator[_Head], begin: Callable[[_Head], Any], length: int) -> Iterator[tuple[_Head, Any]]:
    """(head, begin(head)) for every head; begin is called for a few heads before the one that is yielded.

    The compiler roughly keeps the program's order, so the products of the next heads overlap the vector work of this
    one, and neither waits for the other.
    """
    begun: deque[tuple[_Head, Any]] = deque()
    ahead = min(LOOKAHEAD, LOOKAHEAD_BYTES // (8 * length**2))
    for head in heads:
        begun.append((head, begin(head)))
        if len(begun) > ahead:
            yield begun.popleft()
    yield from begun


def _add(sums: dict[int, jax.Array], lanes: slice, part: jax.Array) -> None:
    """Adds `part`, which covers some blocks of lanes, to {first lane of a block: sum}."""
    for i in range(lanes.start, lanes.stop, LANES):
        block = part[:, i - lanes.start : min(i + LANES, lanes.stop) - lanes.start]
        sums[i] = sums[i] + block if i in sums else block


def _windows(rows: int, length: int) -> Iterator[tuple[int, slice]]:
    """For every example of a kernel step: (its first row within the window, the window: rows of whole tiles)."""
    for first in range(0, rows, length):
        begin = first // TILE_ROWS * TILE_ROWS
        end = min(-(-(first + length) // TILE_ROWS) * TILE_ROWS, rows)
        yield first - begin, slice(begin, end)


def _transposed(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).T.astype(x.dtype)


def _only(x: jax.Array, columns: slice) -> jax.Array:
    """x with zeros in the other columns: products over all lanes cost no more, and nothing moves between lanes."""
    if x.shape[1] == columns.stop - columns.start:
        return x
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where((column >= columns.start) & (column < columns.stop), x, jnp.zeros_like(x))


def _logits(q: jax.Array, k: jax.Array, head: _Head, length: int, causal: bool, limit_ref: Any) -> jax.Array:
    """q k^T, not scaled, as [keys, queries] of a window; other examples' keys are masked.

    A query that sees no key attends to all of its example's equally: those of other examples are further down.
    """
    logits = _dot(k, q, 1, 1)
    if causal:
        key, query = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
        logits = jnp.where(key <= query, logits, MASKED)
    if limit_ref is not None:
        logits = jnp.minimum(logits, limit_ref[head.window].astype(jnp.float32)[:, :1])
    return _own_rows(logits, head.start, length, 2 * MASKED)


def _softmax(logits: jax.Array, d: int) -> tuple[jax.Array, jax.Array]:
    """(exp((logits - their maximum) / sqrt(d)), its sum over the keys)."""
    weights = jnp.exp2((logits - logits.max(0, keepdims=True)) * (d**-0.5 * math.log2(math.e)))
    return weights, weights.sum(0, keepdims=True)


def _own_rows(x: jax.Array, start: int, length: int, other: float) -> jax.Array:
    """A window with `other` in the rows of other examples, which only its first and last tile can have."""
    rows, stop = x.shape[0], start + length
    first = min(TILE_ROWS, rows) if start else 0
    cuts = sorted({0, first, max(first, stop // TILE_ROWS * TILE_ROWS) if stop < rows else rows, rows})
    parts = []
    for begin, end in zip(cuts, cuts[1:], strict=False):
        part = x[begin:end]
        if begin < start or end > stop:
            row = jax.lax.broadcasted_iota(jnp.int32, part.shape, 0) + begin
            part = jnp.where((row >= start) & (row < stop), part, jnp.asarray(other, x.dtype))
        parts.append(part)
    return jnp.concatenate(parts, 0) if len(parts) > 1 else parts[0]


def _store(ref, x: jax.Array, head: _Head) -> None:  # noqa: ANN001
    """Writes a window; its first tile may begin with rows of the previous example, which are kept."""
    x, start, window = x.astype(ref.dtype), head.start, head.window
    if start:
        shared = slice(window.start, window.start + TILE_ROWS)
        row = jax.lax.broadcasted_iota(jnp.int32, (TILE_ROWS, x.shape[1]), 0)
        ref[shared] = jnp.where(row < start, ref[shared], x[:TILE_ROWS])
        window, x = slice(shared.stop, window.stop), x[TILE_ROWS:]
    if len(x):
        ref[window] = x


def _dot(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    dimensions = (((contract_a,), (contract_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
