"""The time of one instruction of a compiled GPU program, by a roofline: its FLOPs and bytes over the card's rates.

Products and convolutions are limited by the matrix units or by memory; fused attention, at the lengths that CLIP has,
by one after the other; all else by memory, by the elements that it reads and writes, or by its operations. Each pays a
fixed time. The factors are in clipjax.planning.gpu_factors.
"""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

from clipjax.planning import gpu_factors as factors
from clipjax.planning.gpu_bytes import Table, called, moved_bytes, moved_elements, operations, table
from clipjax.planning.gpu_cards import Gpu
from clipjax.planning.hlo import Instruction, Program, shape_bytes

# Instructions that no kernel runs for.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"),
    *("replica-id", "domain", "add-dependency", "while", "call", "conditional", "async-start", "async-done"),
    *("async-update", "get-dimension-size", "copy-done"),
}
# A product's rate relative to bfloat16's, by the type of its inputs; XLA multiplies float32 as TF32, except at JAX's
# highest precision, which the matrix units do not have.
RATES = {"bf16": 1.0, "f16": 1.0, "f32": 0.5, "s8": 2.0, "f64": 1 / 16}
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


class Cost(NamedTuple):
    """What one execution of an instruction costs a card."""

    kind: str  # "product", "attention", "convolution", "fusion", or the opcode
    flops: float  # of the matrix units
    bytes: float  # read and written
    seconds: float
    limit: str  # what takes longest: "matrix units", "memory", "elements", "operations" or "fixed time"


class Product(NamedTuple):
    """batch products [m, k] x [k, n], and the type of the inputs."""

    batch: int
    m: int
    n: int
    k: int
    dtype: str
    highest: bool = False  # precision, of float32

    @property
    def flops(self) -> float:
        """A multiplication and an addition are two."""
        return 2.0 * self.batch * self.m * self.n * self.k


def cost(one: Instruction, around: Table, program: Program, card: Gpu) -> Cost | None:
    """What one execution costs; None for instructions without a kernel and for collectives.

    around: the instructions of its computation, by name.
    """
    if one.opcode in FREE:
        return None
    target = _TARGET.search(one.text).group(1) if one.opcode == "custom-call" and _TARGET.search(one.text) else ""
    moved = moved_bytes(one, around, program)
    if "fmha" in target:
        return _attention(one, around, target, moved, card)
    if "$conv" in target or one.opcode == "convolution":
        return _convolution(one, around, moved, card)
    if products := _products(one, around, program):
        return _product(products, moved, float(shape_bytes(*one.shapes[0])), card)
    return _memory(one, around, program, moved, card)


def product_seconds(product: Product, written: float, moved: float, card: Gpu) -> tuple[float, str]:
    """(seconds, what limits them) of a product on a card.

    Tiles of the result are computed in waves, one tile a multiprocessor; the last wave may be almost empty, and so may
    tiles at the edges. Few tiles with a long k are split along it. The tile and the split that give the least time are
    used. written: bytes of the result, written when its tiles are done. moved: bytes read and written in all.
    """
    rate = card.peak * (2.0 if product.dtype.startswith("f8") else RATES.get(product.dtype, 1.0))
    if product.highest:
        rate = card.vector_peak
    bandwidth = card.hbm_bandwidth * factors.HBM_SHARE.value
    loop = min(
        _loop_seconds(product, rows, columns, split, rate * share * factors.TILE_RATE.value, card)
        + (factors.SPLIT_FIXED.value + 4.0 * split * product.batch * product.m * product.n / bandwidth) * (split > 1)
        for rows, columns, share in factors.TILES
        for split in factors.SPLITS
        if split == 1 or product.k >= split * factors.SHORTEST_SPLIT
    )
    units = max(loop + written / bandwidth, product.flops / (rate * card.sustained))
    return _slowest(factors.PRODUCT_FIXED.value, {"matrix units": units, "memory": moved / bandwidth})


def attention_flops(batch: int, queries: int, keys: int, width: int, causal: bool, backward: bool) -> float:
    """FLOPs that fused attention computes: whole blocks, without those that a causal mask leaves out.

    batch: examples times heads; width: of a head. Two products forward, five backward (q k^T again).
    """
    tile = factors.ATTENTION_TILE
    rows, columns = math.ceil(queries / tile), math.ceil(keys / tile)
    blocks = sum(min(row + 1, columns) for row in range(rows)) if causal else rows * columns
    return (10.0 if backward else 4.0) * batch * blocks * tile * tile * width


def _loop_seconds(product: Product, rows: int, columns: int, split: int, rate: float, card: Gpu) -> float:
    """Seconds of the waves of tiles of this shape; rate: FLOP/s of all multiprocessors with such tiles."""
    tiles = product.batch * math.ceil(product.m / rows) * math.ceil(product.n / columns) * split
    waves = math.ceil(tiles / card.processors)
    return waves * 2.0 * rows * columns * math.ceil(product.k / split) / (rate / card.processors)


def _slowest(fixed: float, limits: dict[str, float]) -> tuple[float, str]:
    name = max(limits, key=limits.get)
    return fixed + factors.LAUNCH.value + limits[name], name if limits[name] > fixed else "fixed time"


def _product(products: list[Product], moved: float, written: float, card: Gpu) -> Cost:
    seconds, limit = product_seconds(products[0], written, moved, card)
    for other in products[1:]:  # of a fusion with several, which run one after the other
        more, _ = product_seconds(other, 0.0, 0.0, card)
        seconds += more - factors.PRODUCT_FIXED.value - factors.LAUNCH.value
    return Cost("product", sum(product.flops for product in products), moved, seconds, limit)


def _attention(one: Instruction, around: Table, target: str, moved: float, card: Gpu) -> Cost:
    """cuDNN's fused attention; q and k are its first operands, [batch, length, heads, width].

    The times of its products and of its bytes add up: sequences of a few blocks have no loop long enough to hide one
    behind the other.
    """
    config = _config(one).get("cudnn_fmha_backend_config", {})
    queries, keys = (around[name].shapes[0][1] for name in one.operands[:2])
    shape = [int(side) for side in config.get("intermediate_tensor_shape", {}).get("dimensions", [])]
    batch, heads, rows, columns = shape or (queries[0], queries[2], queries[1], keys[1])
    backward, causal = "Backward" in target, "CAUSAL" in str(config.get("mask_type", ""))
    flops = attention_flops(batch * heads, rows, columns, queries[-1], causal, backward)
    if backward:
        moved += factors.ATTENTION_BACKWARD_BYTES.value * math.prod(queries)
    kernels = factors.ATTENTION_BACKWARD_KERNELS if backward else 1
    parts = {
        "matrix units": flops / (card.peak * card.attention[backward]),
        "memory": moved / (card.hbm_bandwidth * factors.HBM_SHARE.value),
        "fixed time": kernels * (factors.KERNEL_FIXED.value + factors.LAUNCH.value),
    }
    return Cost("attention", flops, moved, sum(parts.values()), max(parts, key=parts.get))


def _convolution(one: Instruction, around: Table, moved: float, card: Gpu) -> Cost:
    """FLOPs: each element of the (gradient of the) output costs a multiplication and addition for every tap.

    Of a convolution's three arrays, the kernel's labels have "o", whose size is the number of output features.
    """
    arrays = [around[name].shapes[0] for name in one.operands[:2] if name in around] + one.shapes[:1]
    sizes = [math.prod(dims) for _, dims in arrays]
    labels = _LABELS.search(one.text)
    target = _TARGET.search(one.text)
    name = target.group(1) if target else ""
    kernel, output = {"Input": (1, 0), "Filter": (2, 1)}.get(name.rpartition("Backward")[2], (1, 2))
    features = arrays[kernel][1][labels.group(2).index("o")] if labels else 1
    flops = 2.0 * sizes[output] * sizes[kernel] / features
    rate = card.peak * card.sustained * factors.CONVOLUTION_SHARE.value * RATES.get(arrays[0][0], 1.0)
    limits = {"matrix units": flops / rate, "memory": moved / (card.hbm_bandwidth * factors.HBM_SHARE.value)}
    return Cost("convolution", flops, moved, *_slowest(factors.PRODUCT_FIXED.value, limits))


def _memory(one: Instruction, around: Table, program: Program, moved: float, card: Gpu) -> Cost:
    """A kernel that moves memory. A sort by radix reads and writes its arrays once for every byte of its keys."""
    sort = one.opcode == "sort" or "DeviceRadixSort" in one.text
    passes = max((shape[0] and int(re.sub(r"\D", "", shape[0]) or 8) // 8 for shape in one.shapes[:1]), default=1)
    passes = passes if sort else 1
    limits = {
        "memory": moved * passes / (card.hbm_bandwidth * factors.HBM_SHARE.value),
        "elements": moved_elements(one, around, program) * passes / (card.processors * factors.ELEMENT_RATE.value),
        "operations": operations(one, program, around) / (card.vector_peak * factors.VECTOR_SHARE.value),
    }
    kind = "sort" if sort else one.opcode
    return Cost(kind, 0.0, moved, *_slowest(factors.KERNEL_FIXED.value, limits))


def _products(one: Instruction, around: Table, program: Program) -> list[Product]:
    """The matrix products that an instruction computes: of a cuBLAS call, a dot, or the dots in a fusion."""
    if one.opcode == "custom-call" and "__cublas" in one.text:
        return [_product_of(one, around)]
    if one.opcode == "dot":
        return [_product_of(one, around)]
    inside = called(one, program) if one.opcode == "fusion" else []
    return [_product_of(inner, table(inside)) for inner in inside if inner.opcode == "dot"]


def _product_of(one: Instruction, around: Table) -> Product:
    (dtype, left), (_, right) = (around[name].shapes[0] for name in one.operands[:2])
    batch, depth = _size(left, one, "lhs_batch"), _size(left, one, "lhs_contracting")
    m, n = (math.prod(side) // max(batch * depth, 1) for side in (left, right))
    return Product(batch, m, n, depth, dtype, dtype == "f32" and "highest" in one.text.lower())


def _size(dims: tuple[int, ...], one: Instruction, which: str) -> int:
    """The size of the dimensions that "lhs_batch_dims={0}" or "lhs_batch_dimensions":["0"] names."""
    found = re.search(rf"{which}_dim(?:s|ensions\"?)[=:]\s*[\[{{]([^\]}}]*)[\]}}]", one.text)
    return math.prod(dims[int(axis)] for axis in re.findall(r"\d+", found.group(1) if found else ""))


def _config(one: Instruction) -> dict:
    """The instruction's backend_config; {} where there is none that can be read."""
    start = one.text.find("backend_config={")
    if start < 0:
        return {}
    try:
        return json.JSONDecoder().raw_decode(one.text[start + len("backend_config=") :])[0]
    except ValueError:
        return {}
