"""Self-attention in one TPU kernel, forward and backward: the [length, length] weights of a head never leave the chip.

Towers have short sequences (64 to 1,024 tokens), so a head's weights fit into vector memory whole: no running softmax
is needed, and the backward pass computes them again from q, k and v, as FlashAttention does (2205.14135, section 3).

A kernel step takes some examples, and enough heads to fill 128 lanes, from arrays laid out as the projections make
them, [batch * length, width]: nothing is transposed and heads are not padded to 128. Memory tiles are 16 rows high. If
the length is not a multiple of 16 (196 patches), a step takes the number of whole examples that fills whole tiles, and
works on the aligned window around each, with its neighbours' rows masked. If that would take too many examples, each
lies in an array of its own, which costs a copy.

The kernels' bodies are in flash_kernels.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.models import flash_kernels
from clipjax.models.cudnn_attention import cudnn_attention
from clipjax.models.flash_kernels import LANES, TILE_ROWS

MIN_ROWS, MAX_ROWS = 256, 2048  # of a kernel step: fewer cost time to start steps, more cost time to compile
GOOD_HEADS, GOOD_WEIGHTS_BYTES = 8, 4 << 20  # of a kernel step: enough to work ahead; more take long to compile
VMEM_BYTES = 32 << 20
MAX_WEIGHTS_BYTES = 12 << 20  # float32 attention weights of a kernel step's heads; each head adds code
GROUPED_VMEM_BYTES = 64 << 20  # for steps of a _grouped kernel, whose blocks have all heads
SMALL_VMEM = ("TPU v2", "TPU v3", "TPU v4")  # chips with less than that
GROUPED_ARRAYS = 7  # [length, length] of float32 that such a step holds at a time


def flash_attention(attend: Callable, *, causal: bool, sharding: NamedSharding | None, cudnn: bool = False) -> Callable:
    """attend as one kernel if the program is compiled for TPUs; q, k, v and the result are [batch, length, heads, d].

    attend(q, k, v) or attend(q, k, v, mask): the plain function, for other platforms and for attention weights too
    large for a kernel. Its backward pass computes it again, too. sharding: of the examples; heads are split over
    "tensor". cudnn: on GPUs, cudnn_attention. The kernel rounds weights to v's dtype before they are normalised, not
    after.
    """

    def on(kernel: Callable, gpu: Callable, plain: Callable, q: jax.Array, *args: Any) -> Any:
        kernels = {"cuda": gpu} if cudnn else {}
        if _fits(q, sharding):
            kernels["tpu"] = _every_device(functools.partial(kernel, causal=causal), sharding)
        return jax.lax.platform_dependent(q, *args, **kernels, default=plain) if kernels else plain(q, *args)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        return attend(q, k, v, *([] if mask is None else [mask]))

    gpu = functools.partial(cudnn_attention, causal=causal)

    @jax.custom_vjp
    def flash(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return on(flash_forward, gpu, plain, q, k, v, mask)

    def backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
        def through(f: Callable) -> Callable:
            return lambda q, k, v, g, mask: jax.vjp(lambda q, k, v: f(q, k, v, mask), q, k, v)[1](g)

        q, k, v, mask = saved
        return *on(flash_backward, through(gpu), through(plain), q, k, v, gradient, mask), None

    flash.defvjp(lambda *args: (flash(*args), args), backward)
    return flash


def flash_forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v of one device's [batch, length, heads, d]; products in q's dtype, sums in float32.

    interpret: runs anywhere, slowly.
    """
    return _call(flash_kernels.forward, 1, (q, k, v), mask, causal, interpret)[0]


def flash_backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gradient: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv), from the inputs of flash_forward and the gradient of its result.

    If fills_tiles(length) they are parts of one array: stacking them for one product (layers.dots) makes no copy.
    """
    return tuple(_call(flash_kernels.backward, 3, (q, k, v, gradient), mask, causal, interpret))


def fills_tiles(length: int) -> bool:
    """Whether kernels read examples of `length` rows from [batch * length, width], if the batch divides into steps."""
    return _least_examples(length) * length <= MAX_ROWS


def kernel_steps(batch: int, length: int, heads: int, d: int) -> int:
    """How many times a kernel's body runs for one device's [batch, length, heads, d]."""
    return batch // (_examples(batch, length, heads, d) or 1) * (heads * d // _columns(batch, length, heads, d))


def _every_device(kernel: Callable, sharding: NamedSharding | None) -> Callable:
    """The kernel on every device's own examples and heads: the compiler cannot divide it."""
    if sharding is None:
        return kernel
    heads, examples = P(*sharding.spec, None, "tensor"), P(*sharding.spec)

    def call(*args: jax.Array | None) -> Any:
        args = [a for a in args if a is not None]
        specs = tuple(heads if a.ndim == 4 else examples for a in args)
        return jax.shard_map(kernel, mesh=sharding.mesh, in_specs=specs, out_specs=heads, check_vma=False)(*args)

    return call


def _call(
    body: Callable,
    results: int,
    args: tuple[jax.Array, ...],
    mask: jax.Array | None,
    causal: bool,
    interpret: bool,
) -> list[jax.Array]:
    batch, length, heads, d = args[0].shape
    width, columns = heads * d, _columns(batch, length, heads, d)
    examples, grouped = _examples(batch, length, heads, d), _grouped(length, heads, d)
    across = width if grouped else columns  # of a block
    at = (lambda j: 0) if grouped else (lambda j: j)
    if examples:
        shape, out_shape = (
            (batch * length, width),
            jax.ShapeDtypeStruct((results, batch * length, width), args[0].dtype),
        )
        block = pl.BlockSpec((examples * length, across), lambda i, j: (i, at(j)))
        out_block = pl.BlockSpec((results, examples * length, across), lambda i, j: (0, i, at(j)))
        limit_shape = batch * length, LANES
        limit_block = pl.BlockSpec((examples * length, LANES), lambda i, j: (i, 0))
    else:
        shape = (batch, length, width)
        block = pl.BlockSpec((None, length, across), lambda i, j: (i, 0, at(j)))
        out_shape, out_block = [jax.ShapeDtypeStruct(shape, args[0].dtype)] * results, [block] * results
        limit_shape = batch, length, LANES
        limit_block = pl.BlockSpec((None, length, LANES), lambda i, j: (i, 0, 0))
    inputs, blocks = [a.reshape(shape) for a in args], [block] * len(args)
    if mask is not None:
        limit = jnp.where(visible_keys(mask, length), -flash_kernels.MASKED, flash_kernels.MASKED)
        limit = jnp.broadcast_to(limit[:, :, None].astype(jnp.bfloat16), (batch, length, LANES))
        inputs, blocks = [*inputs, limit.reshape(limit_shape)], [*blocks, limit_block]

    def kernel(*refs) -> None:  # noqa: ANN002
        ins, outs = refs[: len(args)], refs[len(inputs) :]
        outs = [outs[0].at[i] for i in range(results)] if examples else outs
        if grouped:
            ins, outs = ([flash_kernels.Group(ref, columns, pl.program_id(1)) for ref in x] for x in (ins, outs))
        limit_ref = None if mask is None else refs[len(args)]
        body(*ins, *outs, length=length, d=d, causal=causal, limit_ref=limit_ref)

    options = ("_causal" if causal else "") + ("" if mask is None else "_masked")
    call = pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid=(batch // (examples or 1), width // columns),
        in_specs=blocks,
        out_specs=out_block,
        # Parallel: the two cores of a v4's or v5p's device share the steps. Groups of heads share a block.
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary" if grouped else "parallel"),
            vmem_limit_bytes=GROUPED_VMEM_BYTES if grouped else VMEM_BYTES,
        ),
        # clipjax.planning.kernels and readers of profiles recognise kernels by this name.
        name=f"flash_{body.__name__}_{batch}x{length}x{heads}x{d}{options}",
        interpret=interpret,
    )
    y = call(*inputs)
    return [y[i].reshape(args[0].shape) for i in range(results)]


def visible_keys(mask: jax.Array, keys: int) -> jax.Array:
    """[batch, keys] bool of a mask; [batch] int32 says how many keys are seen, from the first on, where 0 means all."""
    return mask if mask.ndim == 2 else jnp.arange(keys) < jnp.where(mask > 0, mask, keys)[:, None]


def _fits(q: jax.Array, sharding: NamedSharding | None) -> bool:
    length, heads, d = q.shape[1:]
    heads //= 1 if sharding is None else sharding.mesh.shape["tensor"]
    if not _grouped(length, heads, d):
        return _least_bytes(length, heads, d) <= MAX_WEIGHTS_BYTES
    if (jax.local_devices()[0] if sharding is None else sharding.mesh.devices.flat[0]).device_kind in SMALL_VMEM:
        return False
    columns = _group_heads(heads) * d
    fills_lanes = heads * d % LANES == 0 and flash_kernels.group_lanes(columns) <= heads * d
    return fills_lanes and GROUPED_ARRAYS * 4 * length**2 + 28 * length * heads * d <= GROUPED_VMEM_BYTES


def _grouped(length: int, heads: int, d: int) -> bool:
    """Whether a step computes fewer heads than fill whole lanes, see flash_kernels.Group."""
    fewer = _group_heads(heads) * d < _least_columns(heads, d)
    return fewer and _least_bytes(length, heads, d) > MAX_WEIGHTS_BYTES


def _group_heads(heads: int) -> int:
    return 2 if heads % 2 == 0 else 1


def _least_bytes(length: int, heads: int, d: int) -> int:
    return 4 * length**2 * _least_columns(heads, d) // d


def _columns(batch: int, length: int, heads: int, d: int) -> int:
    """Columns of a kernel step: whole heads that fill whole lanes; more of them if a step has one short example."""
    least = _least_columns(heads, d)
    if _grouped(length, heads, d):
        return _group_heads(heads) * d
    if _examples(batch, length, heads, d):
        return least
    wanted = min(GOOD_HEADS, GOOD_WEIGHTS_BYTES // (4 * length**2)) * d // least
    return least * max(n for n in range(1, max(wanted, 1) + 1) if heads * d % (least * n) == 0)


def _least_columns(heads: int, d: int) -> int:
    columns = math.lcm(d, LANES)
    return heads * d if heads * d % columns else columns


def _examples(batch: int, length: int, heads: int, d: int) -> int:
    """Whole examples of a kernel step whose rows fill whole tiles; 0 if that takes more than there are, or than fit."""
    least = _least_examples(length)
    if batch % least or not fills_tiles(length):
        return 0
    if _grouped(length, heads, d):
        return 1 if least == 1 else 0
    wanted = max(MIN_ROWS // (least * length), 1)
    return least * max(n for n in range(1, wanted + 1) if batch % (least * n) == 0)


def _least_examples(length: int) -> int:
    return TILE_ROWS // math.gcd(length, TILE_ROWS)
