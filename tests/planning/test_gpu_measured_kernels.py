"""The estimate of single kernels against those measured on an H200: JAX 0.11.2, CUDA 13, cuDNN 9.19.

Fusions and attention with the lengths of CLIP's towers are medians of profiled train steps of CLIP B/16, B/32 and L/14;
the others were timed alone. The gap between kernels is no part of either.
"""

import pytest

from clipjax.planning import gpu_factors
from clipjax.planning.chips import CHIPS
from clipjax.planning.gpu_bytes import table
from clipjax.planning.gpu_kernels import Product, cost, product_seconds
from clipjax.planning.hlo import parse

H200 = CHIPS["h200"]


def microseconds(text, name, launches=1):
    program = parse(text)
    around = table(program.computations["main"])
    found = cost(around[name], around, program, H200)
    return 1e6 * (found.seconds - launches * gpu_factors.LAUNCH.value)


def fusion(dtype, elements, reads):
    """A loop that adds up arrays into one."""
    array, names = f"{dtype}[{elements}]{{0}}", [f"%p{i}" for i in range(reads)]
    inside = [f"  {name} = {array} parameter({i})" for i, name in enumerate(names)]
    sums = [f"  {'ROOT ' * (i == reads - 1)}%s{i} = {array} add(%p{i}, %p{i})" for i in range(reads)]
    outside = [line.replace("%p", "%x") for line in inside]
    arguments = ", ".join(name.replace("p", "x") for name in names)
    run = f"  ROOT %run = {array} fusion({arguments}), kind=kLoop, calls=%loop"
    return "\n".join(["%loop () -> () {", *inside, *sums, "}", "ENTRY %main () -> () {", *outside, run, "}"])


def attention(batch, length, heads, width, causal, backward):
    q, name = f"bf16[{batch},{length},{heads},{width}]{{3,2,1,0}}", "fmhaSoftmax" + "Backward" * backward
    out, stats = f"bf16[{batch},{heads},{length},{width}]{{3,1,2,0}}", f"f32[{batch},{heads},{length}]{{2,1,0}}"
    results = [out, out, out, "u8[9]{0}"] if backward else [out, stats, "u8[9]{0}"]
    operands = "%q, %q, %q, %s, %q, %q" if backward else "%q, %q, %q"
    shape = f'"intermediate_tensor_shape":{{"dimensions":["{batch}","{heads}","{length}","{length}"]}}'
    mask = f'"mask_type":"{"CAUSAL" if causal else "NO_MASK"}"'
    return f"""
ENTRY %main () -> () {{
  %q = {q} parameter(0)
  %s = {stats} parameter(1)
  ROOT %run = ({", ".join(results)}) custom-call({operands}), custom_call_target="__cudnn${name}", backend_config={{"cudnn_fmha_backend_config":{{{shape},{mask}}}}}
}}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("dtype", "elements", "reads", "measured"),
    [
        ("bf16", 256 * 198 * 3072, 1, 203.1),  # GELU
        ("bf16", 256 * 198 * 3072, 2, 387.8),  # GELU's gradient, with a sum over the tokens
        ("bf16", 256 * 198 * 768, 1, 54.7),  # LayerNorm
        ("bf16", 256 * 198 * 768, 3, 111.1),  # its gradient
        ("f32", 49_408 * 512, 6, 167.9),  # the optimizer's update of the largest array
        ("f32", 2**29, 1, 1025),  # a copy of 2 GiB
    ],
)
def test_kernels_that_move_memory(dtype, elements, reads, measured):
    assert microseconds(fusion(dtype, elements, reads), "run") == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(
    ("shape", "causal", "forward", "backward"),
    [
        ((256, 198, 12, 64), False, 198.0, 603.0),  # B/16
        ((256, 78, 8, 64), True, 46.8, 157.0),
        ((1024, 50, 12, 64), False, 226.0, 600.0),  # B/32
        ((1024, 78, 8, 64), True, 166.6, 626.5),
        ((128, 258, 16, 64), False, 276.8, 668.5),  # L/14
        ((128, 78, 12, 64), True, 36.9, 125.3),
        ((64, 578, 16, 64), False, 342.0, None),  # L/14 at 336 pixels
        ((96, 256, 16, 72), False, 146.0, None),  # So400m
    ],
)
def test_fused_attention(shape, causal, forward, backward):
    assert microseconds(attention(*shape, causal, False), "run") == pytest.approx(forward, rel=0.18)
    if backward:
        found = microseconds(attention(*shape, causal, True), "run", launches=3)
        assert found == pytest.approx(backward, rel=0.18)


@pytest.mark.parametrize(
    ("m", "n", "k", "measured"),
    [
        (8192, 8192, 8192, 1377),
        (50_688, 3072, 768, 319),
        (50_688, 768, 768, 95),
        (50_688, 768, 3072, 316),
        (33_024, 4096, 1024, 355),
        (33_024, 1024, 1024, 105),
    ],
)
def test_products(m, n, k, measured):
    seconds, _ = product_seconds(Product(1, m, n, k, "bf16"), 2.0 * m * n, 2.0 * (m * k + k * n + m * n), H200)
    assert 1e6 * (seconds - gpu_factors.LAUNCH.value) == pytest.approx(measured, rel=0.15)
