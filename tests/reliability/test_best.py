"""The best checkpoint is the one with the largest accuracy or the smallest rank, and it is kept."""

import math

import pytest

from clipjax.runs import open_run
from clipjax.runs.best import best_of
from tests.eval_runs import run_of, save_steps, start_of
from tests.runs import build_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    return folder


@pytest.mark.parametrize(("metric", "best"), [("text_to_image_median_rank", 6), ("text_to_image_r5", 9)])
def test_keep_best_keeps_the_smallest_rank_and_the_largest_recall(data, tmp_path, metric, best):
    name = f"retrieval/{metric}"
    config = run_of(data, checkpoint__best_metric=name, checkpoint__keep_last=1, checkpoint__keep_best=1)
    scores = {3: 5.0, 6: 2.0, 9: 8.0, 12: 4.0}
    save_steps(
        tmp_path, config, start_of(config), list(scores), {step: {name: value} for step, value in scores.items()}
    )
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")) == [best, 12]
    with open_run(tmp_path, "best") as run:
        assert run.step == best


def test_the_best_step_is_the_earliest_of_equals_and_never_one_that_is_not_a_number():
    ranks = {1: None, 2: math.nan, 3: 4.0, 4: 2.0, 5: 2.0}
    assert best_of(ranks, "pairs/median_rank") == 4
    assert best_of(ranks, "zero_shot/top1") == 3
    assert best_of({1: None}, "zero_shot/top1") is None
    assert best_of({1: math.nan, 2: math.nan}, "zero_shot/top1") == 1


def test_checkpoints_without_the_metric_of_a_continued_run_are_the_worst(data, tmp_path):
    recall, rank = "retrieval/text_to_image_r5", "retrieval/text_to_image_median_rank"
    config = run_of(data, checkpoint__best_metric=recall, checkpoint__keep_last=3, checkpoint__keep_best=1)
    save_steps(tmp_path, config, start_of(config), [3], {3: {recall: 9.0}})
    config = run_of(data, checkpoint__best_metric=rank, checkpoint__keep_last=1, checkpoint__keep_best=1)
    scores = {6: {rank: 2.0}, 9: {rank: 8.0}, 12: {rank: 4.0}}
    save_steps(tmp_path, config, start_of(config), list(scores), scores)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")) == [6, 12]
    with open_run(tmp_path, "best") as run:
        assert run.step == 6
