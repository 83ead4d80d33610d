"""Self-attention in one TPU kernel, forward and backward: the [length, length] weights of a head never leave the chip.

Towers have short sequences (64 to 1,024 tokens), so a head's weights fit into vector memory whole: no running softmax
is needed, and the backward pass computes them again from q, k and v, as FlashAttention does (2205.14135, section 3).

A kernel step takes some examples and as many heads as fill 128 lanes, from arrays laid out as the projections make
them, [batch * length, width]: nothing is transposed and heads are not padded to 128. Memory tiles are 16 rows high
where lengths are no multiple of 16 (196 patches): a step then takes as many whole examples as make one, and works on
the aligned window around each, with its neighbours' rows masked. Where that would take too many, examples lie in
arrays of their own, which costs the compiler a copy.

Weights are computed as [keys, queries]. Then maxima and sums go over rows, which is vector work; the one unit that
crosses lanes would hold up everything. No big array is transposed, only the [rows, heads * d] ones.
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
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

LANES, TILE_ROWS = 128, 16  # of a bfloat16 tile in vector memory
MIN_ROWS, MAX_ROWS = 256, 2048  # of a kernel step: below, starting it costs; above, compiling it does
GOOD_HEADS, GOOD_WEIGHTS_BYTES = 8, 4 << 20  # of a kernel step: enough to work ahead on; more is much to compile
VMEM_BYTES = 32 << 20
MAX_WEIGHTS_BYTES = 12 << 20  # float32 weights of a kernel step's heads, each of which is code of its own
LOOKAHEAD, LOOKAHEAD_BYTES = 3, 8 << 20  # heads begun before one is worked on, and what they may hold
MASKED = -1e30


def flash_attention(attend: Callable, *, causal: bool, sharding: NamedSharding | None) -> Callable:
    """attend(q, k, v) -> like q, all [batch, length, heads, d], as one kernel where the program is compiled for TPUs.

    attend: the same function for other platforms, and for heads too many and too long for a kernel; its backward pass
    computes it again, too. sharding: of the examples; heads lie over "tensor". Weights are rounded to v's dtype before
    they are normalised, not after.
    """

    def on(platform_kernel: Callable, plain: Callable, *args: jax.Array) -> tuple[jax.Array, ...]:
        if not _fits(args[0], sharding):
            return plain(*args)
        kernel = functools.partial(platform_kernel, causal=causal)
        return jax.lax.platform_dependent(*args, tpu=_every_device(kernel, sharding), default=plain)

    @jax.custom_vjp
    def flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return on(flash_forward, attend, q, k, v)

    def backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, ...]:
        return on(flash_backward, lambda q, k, v, g: jax.vjp(attend, q, k, v)[1](g), *saved, gradient)

    flash.defvjp(lambda q, k, v: (flash(q, k, v), (q, k, v)), backward)
    return flash


def flash_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False, interpret: bool = False
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v of one device's [batch, length, heads, d]; products in q's dtype, sums in float32.

    interpret: runs anywhere, slowly.
    """
    return _call(_forward, 1, (q, k, v), causal, interpret)[0]


def flash_backward(
    q: jax.Array, k: jax.Array, v: jax.Array, gradient: jax.Array, *, causal: bool = False, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv), of what flash_forward gives and its gradient.

    Parts of one array, if fills_tiles(length): where they are stacked again for one product (layers.dots), no copy is
    made.
    """
    return tuple(_call(_backward, 3, (q, k, v, gradient), causal, interpret))


def fills_tiles(length: int) -> bool:
    """Whether kernels take examples of so many rows from [batch * length, width], where a batch is divisible enough."""
    return _least_examples(length) * length <= MAX_ROWS


def kernel_steps(batch: int, length: int, heads: int, d: int) -> int:
    """How many times a kernel's body runs for one device's [batch, length, heads, d]."""
    return batch // (_examples(batch, length) or 1) * (heads * d // _columns(batch, length, heads, d))


def _every_device(kernel: Callable, sharding: NamedSharding | None) -> Callable:
    """The kernel on every device's own examples and heads: the compiler cannot divide it."""
    if sharding is None:
        return kernel
    spec = P(*sharding.spec, None, "tensor")
    return lambda *args: jax.shard_map(
        kernel, mesh=sharding.mesh, in_specs=(spec,) * len(args), out_specs=spec, check_vma=False
    )(*args)


def _call(body: Callable, results: int, args: tuple[jax.Array, ...], causal: bool, interpret: bool) -> list[jax.Array]:
    batch, length, heads, d = args[0].shape
    width, columns = heads * d, _columns(batch, length, heads, d)
    examples = _examples(batch, length)
    if examples:
        shape, out_shape = (
            (batch * length, width),
            jax.ShapeDtypeStruct((results, batch * length, width), args[0].dtype),
        )
        block = pl.BlockSpec((examples * length, columns), lambda i, j: (i, j))
        out_block = pl.BlockSpec((results, examples * length, columns), lambda i, j: (0, i, j))
    else:
        shape = (batch, length, width)
        block = pl.BlockSpec((None, length, columns), lambda i, j: (i, 0, j))
        out_shape, out_block = [jax.ShapeDtypeStruct(shape, args[0].dtype)] * results, [block] * results

    def kernel(*refs) -> None:  # noqa: ANN002
        ins, outs = refs[: len(args)], refs[len(args) :]
        outs = [outs[0].at[i] for i in range(results)] if examples else outs
        body(*ins, *outs, length=length, d=d, causal=causal)

    call = pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid=(batch // (examples or 1), width // columns),
        in_specs=[block] * len(args),
        out_specs=out_block,
        # Parallel: the two cores of a v4's or v5p's device share the steps.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_BYTES),
        # What clipjax.planning.kernels and readers of profiles tell kernels by.
        name=f"flash{body.__name__}_{batch}x{length}x{heads}x{d}{'_causal' if causal else ''}",
        interpret=interpret,
    )
    y = call(*(a.reshape(shape) for a in args))
    return [y[i].reshape(args[0].shape) for i in range(results)]


def _fits(q: jax.Array, sharding: NamedSharding | None) -> bool:
    length, heads, d = q.shape[1:]
    heads //= 1 if sharding is None else sharding.mesh.shape["tensor"]
    return 4 * length**2 * _least_columns(heads, d) // d <= MAX_WEIGHTS_BYTES


def _columns(batch: int, length: int, heads: int, d: int) -> int:
    """Of a kernel step: whole heads that fill whole lanes; with a single example a step, more of them if short."""
    least = _least_columns(heads, d)
    if _examples(batch, length):
        return least
    wanted = min(GOOD_HEADS, GOOD_WEIGHTS_BYTES // (4 * length**2)) * d // least
    return least * max(n for n in range(1, max(wanted, 1) + 1) if heads * d % (least * n) == 0)


def _least_columns(heads: int, d: int) -> int:
    columns = math.lcm(d, LANES)
    return heads * d if heads * d % columns else columns


def _examples(batch: int, length: int) -> int:
    """Whole examples of a kernel step whose rows fill whole tiles; 0 where it takes more than there are or fit."""
    least = _least_examples(length)
    if batch % least or not fills_tiles(length):
        return 0
    wanted = max(MIN_ROWS // (least * length), 1)
    return least * max(n for n in range(1, wanted + 1) if batch % (least * n) == 0)


def _least_examples(length: int) -> int:
    return TILE_ROWS // math.gcd(length, TILE_ROWS)


def _forward(q_ref, k_ref, v_ref, out_ref, *, length: int, d: int, causal: bool) -> None:  # noqa: ANN001
    def begin(head: _Head) -> jax.Array:
        q = _only(q_ref[head.window, head.lanes], head.own)
        return _logits(q, k_ref[head.window, head.lanes], head.start, length, causal)

    for head, logits in _ahead(_all_heads(q_ref, length, d), begin, length):
        if head.first:
            values, outs = _transposed(v_ref[head.window]), []
        weights, total = _softmax(logits, d)
        outs.append(_dot(values[head.columns], weights.astype(values.dtype), 1, 0) * (1 / total))
        if head.last:
            _store(out_ref, jnp.concatenate(outs, 0).T, head)


def _backward(q_ref, k_ref, v_ref, g_ref, dq_ref, dk_ref, dv_ref, *, length: int, d: int, causal: bool) -> None:  # noqa: ANN001
    def begin(head: _Head) -> tuple[jax.Array, ...]:
        q, k, v, g = (ref[head.window, head.lanes] for ref in (q_ref, k_ref, v_ref, g_ref))
        q, g = _only(q, head.own), _only(_own_rows(g, head.start, length, 0), head.own)
        return q, g, _logits(q, k, head.start, length, causal), _dot(v, g, 1, 1)

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
    """One of an example's in a kernel step."""

    start: int  # the example's first row in its window
    window: slice  # the rows of whole tiles around the example
    columns: slice  # the head's own
    lanes: slice  # the whole blocks of columns around those
    own: slice  # the head's own among lanes
    first: bool  # of the example's
    last: bool


def _all_heads(ref, length: int, d: int) -> Iterator[_Head]:  # noqa: ANN001
    rows, width = ref.shape
    for start, window in _windows(rows, length):
        for i in range(0, width, d):
            begin, end = i // LANES * LANES, min(-(-(i + d) // LANES) * LANES, width)
            own = slice(i - begin, i - begin + d)
            yield _Head(start, window, slice(i, i + d), slice(begin, end), own, i == 0, i + d == width)


def _ahead(heads: Iterator[_Head], begin: Callable[[_Head], Any], length: int) -> Iterator[tuple[_Head, Any]]:
    """(head, begin(head)) of all, with begin called for some more before a head is given.

    The compiler keeps the order of the program more or less: so the products of the next heads fall into the vector
    work of this one, and none waits for the other.
    """
    begun: deque[tuple[_Head, Any]] = deque()
    ahead = min(LOOKAHEAD, LOOKAHEAD_BYTES // (8 * length**2))
    for head in heads:
        begun.append((head, begin(head)))
        if len(begun) > ahead:
            yield begun.popleft()
    yield from begun


def _add(sums: dict[int, jax.Array], lanes: slice, part: jax.Array) -> None:
    """Adds a part of some blocks of lanes to {first lane of a block: sum}."""
    for i in range(lanes.start, lanes.stop, LANES):
        block = part[:, i - lanes.start : min(i + LANES, lanes.stop) - lanes.start]
        sums[i] = sums[i] + block if i in sums else block


def _windows(rows: int, length: int) -> Iterator[tuple[int, slice]]:
    """(where its first row lies in it, the rows of whole tiles around it) of every example of a kernel step."""
    for first in range(0, rows, length):
        begin = first // TILE_ROWS * TILE_ROWS
        end = min(-(-(first + length) // TILE_ROWS) * TILE_ROWS, rows)
        yield first - begin, slice(begin, end)


def _transposed(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).T.astype(x.dtype)


def _only(x: jax.Array, columns: slice) -> jax.Array:
    """x with zeros in other columns: products over all lanes cost no more, and nothing moves to other lanes."""
    if x.shape[1] == columns.stop - columns.start:
        return x
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where((column >= columns.start) & (column < columns.stop), x, jnp.zeros_like(x))


def _logits(q: jax.Array, k: jax.Array, start: int, length: int, causal: bool) -> jax.Array:
    """q k^T, not scaled, as [keys, queries] of a window; the example's own keys only."""
    logits = _own_rows(_dot(k, q, 1, 1), start, length, MASKED)
    if causal:
        key, query = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
        logits = jnp.where(key <= query, logits, MASKED)
    return logits


def _softmax(logits: jax.Array, d: int) -> tuple[jax.Array, jax.Array]:
    """(exp((logits - their maximum) / sqrt(d)), its sum over the keys)."""
    weights = jnp.exp2((logits - logits.max(0, keepdims=True)) * (d**-0.5 * math.log2(math.e)))
    return weights, weights.sum(0, keepdims=True)


def _own_rows(x: jax.Array, start: int, length: int, other: float) -> jax.Array:
    """A window with `other` in the rows of other examples, which only its first and its last tile can have."""
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
    """Writes a window, whose first tile may begin with rows of the example before, already written."""
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
