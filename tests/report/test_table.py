"""The table in the terminal is aligned, with shares as percentages and intervals after their metric."""

import re

from clipjax.config.metrics import is_count
from clipjax.eval import EVALUATORS
from clipjax.report.table import format_table, rows

# Metrics that are no counts: shares, ranks, distances and options.
MEASURES = re.compile(
    r"(top\d|_r\d+|top1_k\d+|top1_\d+shot|acc\d|score|recall|recall@1|recall_\d+shot|precision|accuracy|error|f1_macro"
    r"|worst_group|chance|rank|alignment|uniformity|cosine|gap|dead_dimensions|weight_decay|^C)(_low|_high|_std|_chance)?$"
)


def test_interval_stands_behind_its_metric_and_takes_no_line_of_its_own():
    lines = format_table({"zoo": {"top1": 0.4, "top1_low": 0.35, "top1_high": 0.45, "examples": 1200}}).splitlines()
    assert lines == ["zoo  top1      40.00%  95%: 35.00% to 45.00%", "zoo  examples   1,200"]


def test_a_bound_without_its_metric_or_the_other_bound_keeps_its_line():
    result = {"pass_low": 0.1, "pass_high": 0.2, "top1": 0.4, "top1_high": 0.5}
    assert [(row.metric, row.interval) for row in rows(result)] == [(metric, None) for metric in result]


def test_chance_of_five_guesses_is_five_times_one_and_never_beyond_certainty():
    found = {row.metric: row.chance for row in rows({"top1": 0.4, "top5": 1.0, "chance": 0.25, "examples": 3})}
    assert found == {"top1": 0.25, "top5": 1.0, "chance": None, "examples": None}


def test_no_results_are_an_empty_table():
    assert format_table({}) == ""


def test_every_metric_of_an_evaluator_is_a_count_or_a_measure():
    """clipjax.config.metrics has to know each count by its name: logs hold 1 group and an accuracy of 1 as 1.0."""
    some = [row.config() for row in EVALUATORS.values()]
    some += [
        EVALUATORS["grouped"].config(group=1),
        EVALUATORS["retrieval"].config(all_captions=True),
        EVALUATORS["linear_probe_adamw"].config(validation_share=0.1),
    ]
    for config in some:
        wrong = [name for name in config.metrics if is_count(name) == bool(MEASURES.search(name))]
        assert not wrong, f"{config.name}: name these in clipjax.config.metrics, or here: {wrong}"
