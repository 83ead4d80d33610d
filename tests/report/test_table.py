"""The table in the terminal is aligned, with shares as percentages and intervals after their metric."""

from clipjax.report.table import format_table, rows


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
