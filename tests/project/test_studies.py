"""The studies in docs/studies have the tables and commands that their JSON gives."""

import json
import shlex

import pytest

from clipjax.config import from_config_dict
from docs.studies import losses
from experiments import study_losses

RESULTS = json.loads(losses.RESULTS.read_text(encoding="utf-8"))


def test_the_page_has_the_tables_and_commands_of_the_json():
    page = losses.PAGE.read_text(encoding="utf-8")
    assert page == losses.page_with_tables(page, RESULTS), "run python -m docs.studies.losses --draw"


def test_the_json_has_all_seeds_of_each_setting_once():
    found = [(*losses.setting_of(cell), cell["seed"]) for cell in RESULTS["cells"]]
    known = {
        (dataset, *loss, batch)
        for dataset, pairs in losses.LOSSES.items()
        for loss in pairs
        for batch in study_losses.BATCH_SIZES
    }
    trained = {losses.setting_of(cell) for cell in RESULTS["cells"]}
    assert trained and trained <= known
    assert sorted(found) == sorted((*setting, seed) for setting in trained for seed in range(losses.SEEDS))
    assert all(len(cell["values"]) == len(RESULTS["metrics"]) for cell in RESULTS["cells"])


def test_the_commands_that_the_page_names_are_those_that_run():
    for dataset, commands in RESULTS["commands"].items():
        assert commands == [shlex.join(words) for words in losses.commands(dataset)]


def test_every_run_sees_the_same_number_of_images():
    for batch in study_losses.BATCH_SIZES:
        config = from_config_dict(study_losses.get_config(f"openclipart,{batch},/tmp/data"))
        assert config.global_batch_size * config.total_steps == RESULTS["images_seen"]
        assert 0 < config.optimizer.schedule.warmup_steps < config.total_steps
    assert config.data.train.path == "/tmp/data/openclipart"
    assert {evaluator.source.split for evaluator in config.eval.evaluators.values()} == {"artists", "test"}


def test_differences_are_paired_by_seed_and_marked_where_the_interval_leaves_out_zero():
    def results(shift):
        values = {0: 0.10, 1: 0.20, 2: 0.30}
        cells = [
            {"dataset": "openclipart", "loss": loss, "repeats": "negatives", "batch_size": 64, "seed": seed}
            | {"values": [value + (shift[seed] if loss == "sigmoid" else 0)] * len(losses.METRICS)}
            for loss in ("softmax", "sigmoid")
            for seed, value in values.items()
        ]
        return {"cells": cells, "metrics": losses.METRICS, "chance": {"openclipart": dict.fromkeys(losses.SHOWN, 0.01)}}

    line = losses.differences(results([0.010, 0.011, 0.012]), "openclipart").splitlines()[2]
    # t = 1.1 / (0.1 / sqrt(3)) = 19; the 97.5% quantile with two degrees of freedom is 4.303.
    assert line.split("|")[2].strip().startswith("**+1.1 ± 0.2**")
    line = losses.differences(results([0.01, -0.01, 0.02]), "openclipart").splitlines()[2]
    assert line.split("|")[2].strip() == "+0.7 ± 3.8" and line.split("|")[3].strip() == "-"
    assert "20.0 ± 10.0 | 21.1 ± 10.1" in losses.table(results([0.01, 0.011, 0.012]), "openclipart")


@pytest.mark.parametrize(("scores", "recall"), [([[1, 0, 0, 0, 0, 0]], 1.0), ([[0, 0, 0, 0, 0, 0]], 0.0)])
def test_ties_count_against_recall(scores, recall):
    import numpy as np

    match = np.eye(1, 6, dtype=bool)
    assert losses.recall_at_5(np.array(scores, float), match) == recall
