"""Self-attention in one TPU kernel, forward and backward: the [length, length] weights of a head never leave the chip.

Towers have short sequences (64 to 1,024 tokens), so a head's weights fit into vector memory whole: no running softmax
is needed, and the backward pass computes them again from q, k and v, as FlashAttention does (2205.14135, section 3).

A kernel step takes some examples and as many heads as fill 128 lanes, from arrays laid out as the projections make
them, [batch * length, width]: nothing is transposed and heads are not padded to 128. Memory tiles are 16 rows high
where lengths are no multiple of 16 (196 patches): a step then takes as many whole examples as make one, and works on
the aligned window around each, with its neighbours' rows masked. Where that would take too many, examples lie in
arrays of their own, which costs the compiler a copy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

LANES, TILE_ROWS = 128, 16  # of a bfloat16 tile in vector memory
MIN_ROWS, MAX_ROWS = 256, 2048  # of a kernel step: below, starting it costs; above, compiling it does
VMEM_BYTES = 32 << 20
MAX_WEIGHTS_BYTES = 12 << 20  # float32 weights of a kernel step's heads; the kernels hold some at once
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
    """(dq, dk, dv), of what flash_forward gives and its gradient."""
    return tuple(_call(_backward, 3, (q, k, v, gradient), causal, interpret))


def kernel_steps(batch: int, length: int, heads: int, d: int) -> int:
    """How many times a kernel's body runs for one device's [batch, length, heads, d]."""
    return batch // (_examples(batch, length) or 1) * (heads * d // _columns(heads, d))


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
    width, columns = heads * d, _columns(heads, d)
    examples = _examples(batch, length)
    if examples:
        shape = (batch * length, width)
        block = pl.BlockSpec((examples * length, columns), lambda i, j: (i, j))
    else:
        shape = (batch, length, width)
        block = pl.BlockSpec((None, length, columns), lambda i, j: (i, 0, j))
    call = pl.pallas_call(
        functools.partial(body, length=length, d=d, causal=causal),
        out_shape=[jax.ShapeDtypeStruct(shape, args[0].dtype)] * results,
        grid=(batch // (examples or 1), width // columns),
        in_specs=[block] * len(args),
        out_specs=[block] * results,
        # Parallel: the two cores of a v4's or v5p's device share the steps.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_BYTES),
        # What clipjax.planning.kernels and readers of profiles tell kernels by.
        name=f"flash{body.__name__}_{length}x{d}{'_causal' if causal else ''}",
        interpret=interpret,
    )
    return [y.reshape(args[0].shape) for y in call(*(a.reshape(shape) for a in args))]


def _fits(q: jax.Array, sharding: NamedSharding | None) -> bool:
    length, heads, d = q.shape[1:]
    heads //= 1 if sharding is None else sharding.mesh.shape["tensor"]
    return 4 * length**2 * _columns(heads, d) // d <= MAX_WEIGHTS_BYTES


def _columns(heads: int, d: int) -> int:
    """Of a kernel step: whole heads that fill whole lanes."""
    columns = math.lcm(d, LANES)
    return heads * d if heads * d % columns else columns


def _examples(batch: int, length: int) -> int:
    """Whole examples of a kernel step whose rows fill whole tiles; 0 where it takes more than there are or fit."""
    least = TILE_ROWS // math.gcd(length, TILE_ROWS)
    if batch % least or least * length > MAX_ROWS:
        return 0
    wanted = max(MIN_ROWS // (least * length), 1)
    return least * max(n for n in range(1, wanted + 1) if batch % (least * n) == 0)


def _forward(q_ref, k_ref, v_ref, out_ref, *, length: int, d: int, causal: bool) -> None:  # noqa: ANN001
    for start, window in _windows(q_ref.shape[0], length):
        outs = []
        for head in _heads(q_ref, d):
            q, k, v = _scaled(q_ref[window, head]), k_ref[window, head], v_ref[window, head]
            weights, total = _softmax(q, k, start, length, causal)
            outs.append(_dot(weights.astype(v.dtype), v, 1, 0) * (1 / total))
        _store(out_ref, outs, start, window)


def _backward(q_ref, k_ref, v_ref, g_ref, dq_ref, dk_ref, dv_ref, *, length: int, d: int, causal: bool) -> None:  # noqa: ANN001
    for start, window in _windows(q_ref.shape[0], length):
        dqs, dks, dvs = [], [], []
        for head in _heads(q_ref, d):
            q, k, v = _scaled(q_ref[window, head]), k_ref[window, head], v_ref[window, head]
            g = _own_rows(g_ref[window, head], start, length)
            weights, total = _softmax(q, k, start, length, causal)
            weights = weights * (1 / total)
            dvs.append(_dot(weights.astype(g.dtype), g, 0, 0))
            dweights = _dot(g, v, 1, 1)
            dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
            dlogits = dlogits.astype(q.dtype)
            dqs.append(_dot(dlogits, k, 1, 0) * d**-0.5)
            dks.append(_dot(dlogits, q, 0, 0))
        for ref, parts in ((dq_ref, dqs), (dk_ref, dks), (dv_ref, dvs)):
            _store(ref, parts, start, window)


def _windows(rows: int, length: int) -> Iterator[tuple[int, slice]]:
    """(where its first row lies in it, the rows of whole tiles around it) of every example of a kernel step."""
    for first in range(0, rows, length):
        begin = first // TILE_ROWS * TILE_ROWS
        end = min(-(-(first + length) // TILE_ROWS) * TILE_ROWS, rows)
        yield first - begin, slice(begin, end)


def _heads(ref, d: int) -> list[slice]:  # noqa: ANN001
    return [slice(i, i + d) for i in range(0, ref.shape[1], d)]


def _scaled(q: jax.Array) -> jax.Array:
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _softmax(q: jax.Array, k: jax.Array, start: int, length: int, causal: bool) -> tuple[jax.Array, jax.Array]:
    """(exp(logits - their maximum), its sum) over the example's own keys of a window; float32."""
    logits = _dot(q, k, 1, 1)
    key = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    if logits.shape[1] > length:
        logits = jnp.where((key >= start) & (key < start + length), logits, MASKED)
    if causal:
        logits = jnp.where(key <= jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0), logits, MASKED)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights, weights.sum(-1, keepdims=True)


def _own_rows(x: jax.Array, start: int, length: int) -> jax.Array:
    """A window with the rows of other examples set to zero."""
    if x.shape[0] == length:
        return x
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where((row >= start) & (row < start + length), x, jnp.zeros_like(x))


def _store(ref, heads: list[jax.Array], start: int, window: slice) -> None:  # noqa: ANN001
    """Writes a window, whose first tile may begin with rows of the example before, already written."""
    x = jnp.concatenate(heads, -1).astype(ref.dtype)
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
