"""The model of a step from 8 to 1,024 chips: what it holds, and how far it is from what was compiled."""

import json
import statistics

import pytest

from benchmarks import scaling_plan

DOCUMENT = json.loads((scaling_plan.RESULTS / "scaling_plan.json").read_text())
ROWS = [row | {"model": model["model"]} for model in DOCUMENT["models"] for row in model["rows"]]


def test_each_model_has_both_losses_and_every_tiled_exchange_from_8_to_1024_chips():
    for model in DOCUMENT["models"]:
        sizes = {(row["chips"], row["loss"], row["comm"]) for row in model["rows"]}
        comms = ("all_gather", "chunked", "ring")
        assert sizes == {(8 << i, loss, comm) for i in range(8) for loss in scaling_plan.LOSSES for comm in comms}
    assert all(row["batch"] == 128 * row["chips"] for row in ROWS)


@pytest.mark.parametrize("model", scaling_plan.MODELS)
def test_the_committed_rows_are_what_the_model_gives_today(model):
    committed = next(one for one in DOCUMENT["models"] if one["model"] == model)
    assert json.loads(json.dumps(scaling_plan.scaled(model))) == committed


def test_efficiency_falls_with_chips_and_auto_is_close_to_the_best_exchange():
    for key in {(row["model"], row["loss"], row["comm"]) for row in ROWS}:
        found = [row["efficiency"] for row in ROWS if (row["model"], row["loss"], row["comm"]) == key]
        assert found == sorted(found, reverse=True)
    for row in (row for row in ROWS if row["auto"]):
        rivals = [o for o in ROWS if all(o[k] == row[k] for k in ("model", "loss", "chips"))]
        assert row["efficiency"] >= max(o["efficiency"] for o in rivals) - 0.005
        assert row["efficiency_at_least"] <= row["efficiency"] <= 1


def test_modelled_losses_are_near_the_compiled_ones():
    ratios = [row["modelled_seconds"] / row["compiled_seconds"] for row in DOCUMENT["losses_compared"]]
    assert len(ratios) == 48 and 0.9 < statistics.median(ratios) < 1.15 and min(ratios) > 0.8 and max(ratios) < 1.6


def test_modelled_bytes_between_slices_are_near_those_of_the_compiled_programs():
    ratios = {row["comm"]: row["modelled_bytes"] / row["compiled_bytes"] for row in DOCUMENT["slices_compared"]}
    assert set(ratios) == {"all_gather", "chunked", "ring"} and all(0.9 < ratio < 1.6 for ratio in ratios.values())


def test_slices_exchange_a_chips_part_of_a_gather_and_of_the_gradients():
    net = scaling_plan.network("v5e:16x16*2")
    assert (net.chips, net.per_slice, net.slices) == (512, 256, 2)
    inside, between = scaling_plan.gradients(net, 256 * 10**6)
    assert between == pytest.approx(4e6 / net.chip.dcn)  # a chip's 256th of 1.024 GB, there and back, of two slices
    assert inside == pytest.approx(2 * 1.024e9 * 255 / 256 / 1.8e11)
    one = scaling_plan.network("v5e:16x16")
    assert scaling_plan.gradients(one, 10**6)[1] == 0
    ring = [scaling_plan.loss_seconds(where, "sigmoid", "ring", 768) for where in (one, net)]
    assert ring[1] > 10 * ring[0], "each of a ring's hops waits for the data-centre network"


def test_a_run_without_plans_keeps_those_of_earlier_runs(tmp_path, monkeypatch, capsys):
    for source in scaling_plan.RESULTS.glob("*.json"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(scaling_plan, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["scaling_plan"])
    scaling_plan.main()
    written = json.loads((tmp_path / "scaling_plan.json").read_text())
    assert {row["plan"] for row in written["plans_compared"]} == {row["plan"] for row in DOCUMENT["plans_compared"]}
    assert len(written["plans_compared"]) == len(DOCUMENT["plans_compared"])
    assert written["slices_compared"] == DOCUMENT["slices_compared"]
