"""The roofline of GPU programs: FLOPs, bytes and seconds of instructions, against arithmetic done by hand."""

from pathlib import Path

import pytest

from clipjax.planning.chips import CHIPS
from clipjax.planning.compile import _collective
from clipjax.planning.gpu_bytes import moved_bytes, moved_elements, operations, table
from clipjax.planning.gpu_estimate import gpu_estimate
from clipjax.planning.gpu_factors import FACTORS
from clipjax.planning.gpu_kernels import Product, attention_flops, cost, product_seconds
from clipjax.planning.groups import first_group, pairs
from clipjax.planning.hlo import Collective, collectives, parse

# A loop of 12 over stacked weights, a product, fused attention, an update in place, and a sum beside them.
PROGRAM = parse((Path(__file__).parent / "gpu_program.hlo").read_text())
H100, A100 = CHIPS["h100"], CHIPS["a100"]
ONE_HOST = [0] * 8


def costs(computation):
    around = table(PROGRAM.computations[computation])
    return {name: cost(one, around, PROGRAM, H100) for name, one in around.items()}


def test_a_fusion_reads_of_stacked_weights_only_the_slice_that_it_takes():
    around = table(PROGRAM.computations["body"])
    fusion = around["fusion.1"]
    activations, weights, index = 4096 * 1024 * 2, 1024 * 1024 * 2, 4
    assert moved_bytes(fusion, around, PROGRAM) == 2 * activations + weights + index
    assert operations(fusion, PROGRAM, around) == (20 + 1) * 4096 * 1024
    found = costs("body")["fusion.1"]
    # 9.4M elements at 10.6G a second and multiprocessor, after 1.5 + 0.7 microseconds that every kernel pays. The
    # memory would need 6.47 microseconds: 18.9 MB at 87% of 3.352 TB/s.
    elements = 2 * 4096 * 1024 + 1024 * 1024 + 1
    assert moved_elements(fusion, around, PROGRAM) == elements
    assert found.seconds == pytest.approx(2.2e-6 + elements / 132 / 1.06e10)
    assert (found.kind, found.limit, found.flops) == ("fusion", "elements", 0)


def test_float32_is_limited_by_memory_and_not_by_its_number_of_elements():
    found = costs("main")["grad"]
    assert found.seconds == pytest.approx(2.2e-6 + 2 * 2e8 / (0.87 * 3.352e12))
    assert found.limit == "memory"


def test_an_update_in_place_writes_the_update_and_not_the_array():
    around = table(PROGRAM.computations["main"])
    assert moved_bytes(around["update"], around, PROGRAM) == 2 * 1024 * 1024 * 2 + 4
    assert costs("main")["update"].limit == "fixed time"


def test_a_product_takes_whole_waves_of_tiles():
    found = costs("main")["custom-call.1"]
    assert found.flops == 2 * 4096 * 4096 * 1024
    assert found.bytes == (4096 * 1024 + 1024 * 4096 + 4096 * 4096) * 2  # without cuBLAS's workspace
    # 32 x 16 tiles of 128 x 256 are 3.9 waves of 132, so 4; then the result is written.
    loop = 4 * 2 * 128 * 256 * 1024 / (0.96 * 989.4e12 / 132)
    written = 4096 * 4096 * 2 / (0.87 * 3.352e12)
    assert found.seconds == pytest.approx(loop + written + 4.5e-6 + 0.7e-6)
    assert (found.kind, found.limit) == ("product", "matrix units")


def test_products_take_about_as_long_as_xla_measured_on_an_h100():
    """TFLOP/s of XLA's table for sm_90 (default_matmul_perf_table.txtpb), which times kernels without launches."""
    measured = {
        (512, 512, 512): 43.6,
        (512, 512, 4096): 187.5,  # few tiles: split along k
        (1024, 4096, 1024): 494.4,
        (2048, 1024, 4096): 663.6,
        (4096, 4096, 4096): 780.2,
    }
    for (m, n, k), rate in measured.items():
        product = Product(1, m, n, k, "bf16")
        seconds, _ = product_seconds(product, 2.0 * m * n, 2.0 * (m * k + k * n + m * n), H100)
        assert product.flops / (seconds - 0.7e-6) / 1e12 == pytest.approx(rate, rel=0.12)


def test_the_gradient_of_a_matrix_is_split_along_the_examples():
    """768 x 3072 are 72 tiles of 128 x 256 for 132 multiprocessors; of 8 splits 576, 5 waves of which 4.4 are full."""
    product = Product(1, 768, 3072, 50_176, "bf16")
    seconds, _ = product_seconds(product, 4.0 * 768 * 3072, 0, H100)
    whole = 2 * 128 * 256 * 50_176 / (0.96 * 989.4e12 / 132)
    assert 0.5 * whole < seconds < 0.75 * whole


def test_large_products_are_bounded_by_what_the_card_sustains():
    product = Product(1, 32_768, 32_768, 8192, "bf16")
    seconds, limit = product_seconds(product, 0, 0, H100)
    assert product.flops / seconds == pytest.approx(0.803 * 989.4e12, rel=0.01)
    assert limit == "matrix units"
    half, _ = product_seconds(product._replace(dtype="f32"), 0, 0, H100)
    assert half == pytest.approx(2 * seconds, rel=0.01)
    exact, _ = product_seconds(product._replace(dtype="f32", highest=True), 0, 0, H100)
    assert product.flops / exact == pytest.approx(0.803 * 66.9e12, rel=0.01)


def test_float32_at_highest_precision_is_told_from_tf32():
    text = (Path(__file__).parent / "gpu_program.hlo").read_text()
    text = text.replace("bf16[4096,1024]", "f32[4096,1024]").replace(
        '"beta":0,', '"beta":0,"operand_precision":["HIGHEST"],'
    )
    program = parse(text)
    around = table(program.computations["main"])
    assert cost(around["custom-call.1"], around, program, H100).seconds > 34.4e9 / 66.9e12


def test_the_sum_over_all_tokens_of_a_weights_gradient_is_split_and_fills_the_card():
    product = Product(1, 768, 3072, 50_176, "bf16")
    seconds, _ = product_seconds(product, 4.0 * 768 * 3072, 0, H100)
    # Without splitting, 72 tiles of 128 x 256 occupy 72 of 132 multiprocessors.
    assert 0.5 * 989.4e12 < product.flops / seconds <= 0.803 * 989.4e12
    short = product_seconds(product._replace(k=4096), 4.0 * 768 * 3072, 0, H100)[0]
    assert seconds < 50_176 / 4096 * short


def test_fused_attention_computes_whole_blocks():
    found = costs("main")["custom-call.2"]
    assert found.flops == 4 * 32 * 12 * 256 * 256 * 64
    assert found.bytes == 4 * 32 * 256 * 12 * 64 * 2 + 32 * 12 * 256 * 4
    assert found.kind == "attention"
    # The bytes are not moved beside the products, but before and after them.
    assert found.seconds == pytest.approx(found.flops / (0.40 * 989.4e12) + found.bytes / (0.87 * 3.352e12) + 2.2e-6)
    assert attention_flops(1, 197, 197, 64, False, False) == attention_flops(1, 256, 256, 64, False, False)
    assert attention_flops(1, 256, 256, 64, True, False) == 0.75 * attention_flops(1, 256, 256, 64, False, False)
    assert attention_flops(1, 128, 128, 64, False, True) == 2.5 * attention_flops(1, 128, 128, 64, False, False)


def test_the_step_multiplies_loops_and_waits_for_what_is_left_of_a_transfer():
    found = gpu_estimate(PROGRAM, H100, ONE_HOST)
    loop = 12 * costs("body")["fusion.1"].seconds
    main = {name: one.seconds for name, one in costs("main").items() if one and not name.startswith("all-reduce")}
    beside = loop + main["custom-call.1"] + main["custom-call.2"] + main["update"]
    # The switch adds up: 200 MB cross a link once, at 60% of 450 GB/s, and 15 microseconds of latency.
    transfer = 2e8 / 4.5e11 / 0.6 + 15e-6
    assert found.transfers["seconds"] == pytest.approx(transfer)
    assert found.transfers["waited_for"] == pytest.approx(transfer - beside)
    assert found.seconds["image tower"] == pytest.approx(loop + main["custom-call.1"])
    assert found.seconds["image attention"] == pytest.approx(main["custom-call.2"])
    assert found.seconds["optimizer"] == pytest.approx(main["update"])
    # A combined sum has no op_name: it belongs to what it sums.
    assert found.seconds["text tower"] == pytest.approx(main["grad"] + transfer - beside + 0.15 * beside)
    rows = {row["kind"]: row for row in found.work}
    assert rows["fusion"]["times"] == 12 + 1
    assert rows["product"]["flops"] == 2 * 4096 * 4096 * 1024
    assert sum(row["seconds"] for row in found.work) < sum(found.seconds.values())


def test_a_transfer_that_fits_beside_computation_is_not_waited_for():
    text = (Path(__file__).parent / "gpu_program.hlo").read_text().replace("50000000", "50000")
    assert gpu_estimate(parse(text), H100, ONE_HOST).transfers["waited_for"] == 0


def test_conv_costs_its_taps():
    text = """
ENTRY %main (x: bf16[8,3,32,32], k: bf16[64,3,4,4]) -> bf16[8,64,8,8] {
  %x = bf16[8,3,32,32]{3,2,1,0} parameter(0)
  %k = bf16[64,3,4,4]{3,2,1,0} parameter(1)
  %y = (bf16[8,64,8,8]{3,2,1,0}, u8[4096]{0}) custom-call(%x, %k), window={size=4x4 stride=4x4}, dim_labels=bf01_oi01->bf01, custom_call_target="__cudnn$convForward"
  ROOT %dk = (bf16[64,3,4,4]{3,2,1,0}, u8[4096]{0}) custom-call(%x, %y), window={size=4x4 stride=4x4}, dim_labels=bf01_oi01->bf01, custom_call_target="__cudnn$convBackwardFilter"
}
"""  # noqa: E501
    program = parse(text)
    around = table(program.computations["main"])
    for name in ("y", "dk"):
        found = cost(around[name], around, program, H100)
        assert (found.kind, found.flops) == ("convolution", 2 * 8 * 64 * 8 * 8 * 3 * 4 * 4)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", (0, 2, 4, 6)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}", (0, 1)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", tuple(range(8))),
        ("replica_groups={}", tuple(range(8))),
    ],
)
def test_the_first_group_of_a_collective(text, group):
    assert first_group(text, 8) == group


def test_a_permutation_between_hosts_is_told_from_one_inside_them():
    ring = "source_target_pairs={{0,1},{1,0},{2,3},{3,2}}"
    assert pairs(ring) == [(0, 1), (1, 0), (2, 3), (3, 2)]
    inside = Collective("collective-permute", "", 8, 8, (0, 1, 2, 3), 1, tuple(pairs(ring)))
    assert inside.spread([0, 0, 1, 1])[1] == 1
    assert inside.spread([0, 1, 0, 1])[1] == 2


@pytest.mark.parametrize(
    ("kind", "card", "spread", "seconds"),
    [
        # 8 of one host: an H100's switch adds up, an A100's does not.
        ("all-reduce", H100, (8, 1), 1e9 / 4.5e11),
        ("all-reduce", A100, (8, 1), 2 * 7 / 8 * 1e9 / 3e11),
        ("all-gather", H100, (8, 1), 7 / 8 * 1e9 / 4.5e11),
        # Four hosts of 8: eight adapters share what a host receives.
        ("all-reduce", H100, (8, 4), 2 * 31 / 32 * 1e9 / 8 / 5e10),
        # One card of each host: its own adapter.
        ("all-reduce", H100, (1, 4), 2 * 3 / 4 * 1e9 / 5e10),
        ("collective-permute", H100, (8, 4), 1e9 / 5e10),
    ],
)
def test_bounds_of_nvlink_and_of_the_network(kind, card, spread, seconds):
    per_host, hosts = spread
    host_of = [i // per_host for i in range(per_host * hosts)]
    moves = tuple((i, (i + 1) % len(host_of)) for i in range(len(host_of))) if kind == "collective-permute" else ()
    size = int(1e9) // len(host_of) if kind == "all-gather" else int(1e9)
    found = _collective(Collective(kind, "", size, int(1e9), tuple(range(len(host_of))), 1, moves), card, host_of)
    assert found["seconds_at_least"] == pytest.approx(seconds)
    assert found["hosts"] == hosts


def test_collectives_of_a_combined_start_count_all_of_their_arrays():
    text = """
ENTRY %main (a: u16[128,768], b: f32[128]) -> f32[1024] {
  %a = u16[128,768]{1,0} parameter(0)
  %b = f32[128]{0} parameter(1)
  %start = ((u16[128,768]{1,0}, f32[128]{0}), (u16[1024,768]{1,0}, f32[1024]{0})) all-gather-start(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %done = (u16[1024,768]{1,0}, f32[1024]{0}) all-gather-done(%start)
}
"""  # noqa: E501
    (found,) = collectives(parse(text), 8)
    assert (found.bytes_in, found.bytes_out) == (128 * 768 * 2 + 128 * 4, 1024 * 768 * 2 + 1024 * 4)


def test_every_factor_says_where_it_comes_from():
    assert len({factor.name for factor in FACTORS}) == len(FACTORS)
    assert all(len(factor.why) > 60 and factor.value > 0 for factor in FACTORS)
