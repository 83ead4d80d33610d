"""What a GPU achieves of its published rates: the factors that the estimate of a step's time is made of.

Those of kernels that move memory and of fused attention were measured on one card, an H200, and are assumed for the
others; the rest comes from published measurements. docs/plan.md lists them; every plan's JSON has their values.
"""

from __future__ import annotations

from typing import NamedTuple


class Factor(NamedTuple):
    """A number that the estimate uses, and where it comes from."""

    name: str
    value: float
    unit: str
    why: str


_XLA = "XLA's table of bfloat16 products timed on an H100 (default_matmul_perf_table.txtpb, sm_90)"
_CARD = "an H200 (JAX 0.11.2, CUDA 13, cuDNN 9.19)"
_STEP = f"a train step of CLIP B/16 with 256 pairs, profiled without CUDA graphs on {_CARD}"
_STEPS = f"Profiled train steps of CLIP B/16, B/32 and L/14 on {_CARD}"

TILE_RATE = Factor(
    "rate of a full wave of tiles",
    0.96,
    "of peak",
    f"Fitted to 86 products of {_XLA}, m, n and k from 256 to 4,096: with the tiles and splits below, waves over the "
    "multiprocessors, the fixed time and the result's write-back, their times come out with an RMS error of 7%.",
)
PRODUCT_FIXED = Factor(
    "fixed time of a product",
    4.5e-6,
    "s",
    f"The same fit to {_XLA}: filling the pipeline and draining it. Its smallest product, 256 x 256 x 256, takes 5.0 "
    "microseconds.",
)
SPLIT_FIXED = Factor(
    "fixed time of adding up a product's splits",
    2e-6,
    "s",
    f"The same fit to {_XLA}: where the tiles would leave multiprocessors idle, cuBLAS splits the sum over k and adds "
    "up the parts. Without splits the model takes up to 2.4 times as long as the table, at small m and n and large k.",
)
KERNEL_FIXED = Factor(
    "fixed time of any other kernel",
    1.5e-6,
    "s",
    f"Start-up and tail of a kernel that moves memory. In {_STEP}, the 1,514 fusions of up to 15 microseconds take "
    "4.5 ms, and half of them less than 1.9 microseconds each. With this factor they are estimated at 4.3 ms.",
)
LAUNCH = Factor(
    "gap between kernels",
    0.7e-6,
    "s",
    f"{_STEPS}: in CUDA graphs, 2,761 to 3,988 kernels leave 1.6 to 2.4 ms of a step between them, 0.6 microseconds a "
    "kernel and 0.7 an instruction, of which some are two kernels. Outside a graph a host that issues 5 microseconds a "
    "kernel may be slower than the card.",
)
HBM_SHARE = Factor(
    "reached share of memory bandwidth",
    0.87,
    "of peak",
    f"A float32 copy of 2 GiB on {_CARD} reaches 4.19 TB/s of 4.8, the optimizer's largest loop 4.22. XLA's table of "
    "H100 copies reaches 0.93 with 1 GB. Nothing is assumed to stay in the L2 cache between kernels.",
)
ELEMENT_RATE = Factor(
    "elements that a multiprocessor reads and writes outside products",
    1.06e10,
    "1/s",
    f"In {_STEP}, fusions of bfloat16 arrays reach 2.4 to 3.1 TB/s, 1.2e12 to 1.5e12 elements a second on 132 "
    "multiprocessors; loops over float32 arrays reach 4.2 TB/s. The 255 fusions of more than 15 microseconds are "
    "estimated with an RMS error of 16%, and at 18.1 ms in all for 18.2. That multiprocessors are the limit, and that "
    "those of other cards move as many, is an assumption.",
)
ATTENTION_BACKWARD_BYTES = Factor(
    "extra bytes of fused attention's backward pass, per element of q",
    18.0,
    "bytes",
    "What cuDNN's kernels move beside q, k, v, o, do and three gradients: one reads do again, for its sums of o * do "
    "(2); the gradient of q is cleared in float32 (4), added to (read and written: 8) and read by the kernel that "
    "converts it (4).",
)
VECTOR_SHARE = Factor(
    "reached share of the float32 rate",
    0.5,
    "of peak",
    "The published rate counts a fused multiplication and addition as two; a fusion's operations are counted singly.",
)
CONVOLUTION_SHARE = Factor(
    "reached share of the sustained rate in convolutions",
    0.7,
    "of a product's",
    "Assumption: cuDNN's implicit products, whose tiles cross image borders.",
)
TRANSFER_SHARE = Factor(
    "reached share of NVLink and of the network",
    0.80,
    "of peak",
    "nccl-tests of large sums on one host: bus bandwidth 230 to 250 GB/s of 300 on 8 A100s. On 8 H100s 460 to 480 GB/s "
    "with the switch adding up, where 2 x 7/8 of the bytes count: 0.59 of the bound that this plan uses.",
)
SWITCH_SHARE = Factor(
    "reached share of NVLink where the switch adds up",
    0.60,
    "of peak",
    "nccl-tests on 8 H100s: 470 GB/s bus bandwidth is 269 GB/s of input summed, of 450.",
)
LATENCY_INSIDE = Factor(
    "latency of a collective inside a host",
    15e-6,
    "s",
    "nccl-tests of sums of a few bytes on 8 H100s or A100s take 10 to 20 microseconds.",
)
LATENCY_BETWEEN = Factor(
    "latency of a collective between hosts",
    35e-6,
    "s",
    "nccl-tests of sums of a few bytes on 2 to 4 hosts with InfiniBand take 30 to 40 microseconds.",
)
OVERLAP_COST = Factor(
    "computation lost per second of hidden transfer",
    0.15,
    "s/s",
    "NCCL's kernels occupy multiprocessors: Calculon (ISC 2023) models NVLink transfers with 15% of an A100.",
)

FACTORS = (
    TILE_RATE,
    PRODUCT_FIXED,
    SPLIT_FIXED,
    KERNEL_FIXED,
    LAUNCH,
    HBM_SHARE,
    ELEMENT_RATE,
    ATTENTION_BACKWARD_BYTES,
    VECTOR_SHARE,
    CONVOLUTION_SHARE,
    TRANSFER_SHARE,
    SWITCH_SHARE,
    LATENCY_INSIDE,
    LATENCY_BETWEEN,
    OVERLAP_COST,
)

# (rows, columns, share of TILE_RATE) of the tiles of a product that cuBLAS is assumed to choose from: small tiles reuse
# less of what they load. The shares are part of the fit.
TILES = (
    (128, 256, 1.0),
    (256, 128, 1.0),
    (128, 128, 0.85),
    (64, 256, 0.8),
    (256, 64, 0.8),
    (64, 128, 0.65),
    (128, 64, 0.65),
    (64, 64, 0.45),
)
SPLITS = (1, 2, 3, 4, 6, 8)  # parts of the sum over k
SHORTEST_SPLIT = 256  # of k
ATTENTION_TILE = 128  # queries and keys of a block of fused attention: shorter sequences are computed as if padded
ATTENTION_BACKWARD_KERNELS = 3  # of cuDNN: the sums of o * do, the gradients, and q's converted to its type
