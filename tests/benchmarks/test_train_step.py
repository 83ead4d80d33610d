"""The report of benchmarks/train_step.py, from made-up seconds; nothing is timed."""

import argparse

import pytest

from benchmarks.tables.training import train_step
from benchmarks.train_step import DTYPES, PRODUCTS, SIDE, median_of_quiet, report, short, train_flops_per_image


@pytest.mark.parametrize(
    ("name", "units", "expected"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", [], "intel_xeon_2_50ghz_no_bf16"),
        ("INTEL(R) XEON(R) PLATINUM 8581C CPU", ["amx_bf16", "avx512_bf16"], "intel_xeon_platinum_8581c_amx_bf16"),
        ("AMD EPYC", ["avx512_bf16"], "amd_epyc_avx512_bf16"),
        ("", ["bf16"], "bf16"),
    ],
)
def test_a_result_is_named_after_the_processor_and_its_bfloat16_units(name, units, expected):
    assert short(name, units) == expected


def test_a_row_of_each_precision_has_both_sides_their_ratio_and_shares_of_that_precisions_peak(capsys):
    args = argparse.Namespace(batch=32, memory="kept", depth=12)
    rows = []
    for dtype in DTYPES:
        samples = {
            "clipjax": [(4.0, 0.0)] * 3,
            "open_clip": [(5.0, 0.0)] * 3,
            "xla": [(1.0, 0.0)],
            "torch": [(2.0, 0.0)],
        }
        rows.append(report(args, dtype, samples | ({"numpy": [(4.0, 0.0)]} if dtype == "float32" else {})))
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert [row["ratio"] for row in rows] == [1.25, 1.25]
    assert rows[0]["matmul_gflops"]["xla"] == 2 * PRODUCTS * SIDE**3 / 1e9
    share = 8 * train_flops_per_image() / (2 * PRODUCTS * SIDE**3)
    assert rows[1]["clipjax"] == {"images_per_second": 8.0, "share_of_peak": pytest.approx(share)}
    assert "clipjax / open_clip: 1.25" in capsys.readouterr().out

    machine = {"processor": "Intel", "bfloat16_units": [], "cores": 2, "python": "3.11", "versions": {}}
    page = train_step({"train_step_intel": {"machine": machine, "rows": rows}})
    assert "| Intel, no bfloat16 | float32 | 32 | kept | 8.00 | 6.40 | 1.25 |" in page
    assert "| Intel, no bfloat16 | bfloat16 | 32 | kept |" in page


def test_the_median_leaves_out_rounds_in_which_others_were_busy():
    assert median_of_quiet([(1.0, 0.0), (1.1, 0.1), (1.2, 0.0), (9.0, 0.5)]) == 1.1
    assert median_of_quiet([(1.0, 0.0), (2.0, 0.5), (9.0, 0.5)]) == 2.0
