"""clipjax compare: runs grouped by setting, what counts, what is noted, and the three formats."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from clipjax.commands import compare as command
from clipjax.config import ConfigError, SourceConfig, to_json_dict
from clipjax.eval import RetrievalConfig, ZeroShotConfig
from clipjax.report.run_data import last_results
from clipjax.runs.best import best_of
from clipjax.runs.record import read_records
from clipjax.runs.sweep import Cell, Sweep, write_sweep
from tests.tiny import tiny_config

TOP1 = {"sigmoid": (0.50, 0.52, 0.54), "softmax": (0.40, 0.43, 0.43), "ntxent": (0.49, 0.54, 0.53)}


def write_run(
    folder: Path, top1: float | None = 0.5, *, seed: int = 0, loss: str = "sigmoid", steps: int = 20, **changes
) -> str:
    """A run of 20 steps of batch 16, evaluated at 10 and 20 (top1 - 0.1, then top1), 0.5 seconds a step."""
    config = tiny_config(loss=loss)
    evaluators = {"zs": ZeroShotConfig(source=SourceConfig(path="a")), "ir": RetrievalConfig()}
    checkpoint = replace(config.checkpoint, best_metric="zs/top1")
    config = replace(
        config, seed=seed, eval=replace(config.eval, evaluators=evaluators, every_steps=10), checkpoint=checkpoint
    )
    config = replace(config, **changes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_json_dict(config)))
    lines = []
    for step in range(5, steps + 1, 5):
        lines.append({"step": step, "loss": 1.0, "seconds_per_step": 0.5, "images_per_second": 32.0})
        if step % 10 == 0 and top1 is not None:
            value = top1 - 0.1 * (step < 20)
            lines.append({"step": step, "zs/top1": value, "ir/image_to_text_median_rank": 10 * (1 - value)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_results_of_the_last_parameters_are_compared_beside_those_of_the_averages(tmp_path):
    """config.eval.weights="both" names them NAME_raw."""
    folders = [write_run(tmp_path / str(seed), seed=seed) for seed in range(2)]
    for folder in folders:
        with open(Path(folder) / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 20, "zs_raw/top1": 0.25}) + "\n")
    record = read_records(folders)[0][0]
    assert record.evaluations()[-1] == (20, {"zs/top1": 0.5, "ir/image_to_text_median_rank": 5.0, "zs_raw/top1": 0.25})
    line = {"step": 20, "zs/top1": 0.5, "zs_raw/top1": 0.25}
    results = last_results(tmp_path / "0", [line], to_json_dict(record.config))
    assert results == ({"zs": {"top1": 0.5}, "zs_raw": {"top1": 0.25}}, 20)


@pytest.fixture
def sweep(tmp_path) -> str:
    """Three losses with three seeds each."""
    cells = [
        Cell(f"loss={loss}", seed, {"loss.name": loss}, {"loss.name": loss}, "finished", 30.0 + seed)
        for seed in range(3)
        for loss in TOP1
    ]
    for cell in cells:
        loss = cell.values["loss.name"]
        write_run(tmp_path / "sweep" / cell.path, TOP1[loss][cell.seed], seed=cell.seed, loss=loss)
    write_sweep(tmp_path / "sweep", Sweep("experiment.py", [], ["loss.name"], cells))
    return str(tmp_path / "sweep")


def compared(*folders: str, **options):
    (found,) = command.run(folders, **options)
    return found, {group.name: group for group in found.groups}


def test_a_sweep_is_a_line_per_setting_with_mean_and_deviation_over_seeds(sweep, capsys):
    found, groups = compared(sweep)
    assert list(groups) == ["loss=sigmoid", "loss=softmax", "loss=ntxent"]
    assert groups["loss=softmax"].spread.mean == pytest.approx(0.42)
    assert groups["loss=softmax"].spread.deviation == pytest.approx(0.0173205, rel=1e-5)
    assert groups["loss=softmax"].values == {0: 0.40, 1: 0.43, 2: 0.43}
    shown = capsys.readouterr().out
    assert "zs/top1 at the end of training, larger is better: mean ± standard deviation over seeds" in shown
    assert "softmax  3      42.00% ± 1.73%  -10.00 pts" in shown


def test_a_difference_is_marked_where_the_paired_test_with_holms_correction_says_so(sweep, capsys):
    found, groups = compared(sweep)
    worse, same = (groups[f"loss={name}"].difference for name in ("softmax", "ntxent"))
    expected = stats.ttest_rel(TOP1["softmax"], TOP1["sigmoid"]).pvalue
    assert worse.p == pytest.approx(expected) and worse.corrected == pytest.approx(2 * expected)
    assert worse.significant and not same.significant and found.comparisons == 2
    assert groups["loss=softmax"].better is False
    shown = capsys.readouterr().out
    assert "* worse" in shown and "within the spread" in shown
    assert (
        "paired t-test over the seeds that a setting shares with the baseline, after Holm's correction for 2" in shown
    )


@pytest.mark.parametrize("baseline", ["softmax", "loss=softmax", "loss.name=softmax", "sweep/loss=softmax"])
def test_the_baseline_may_be_named_in_every_way_it_is_shown(sweep, baseline):
    found, groups = compared(sweep, baseline=baseline)
    assert found.baseline == "loss=softmax" and groups["loss=softmax"].difference is None
    assert groups["loss=sigmoid"].better is True


def test_a_rank_is_better_when_smaller(sweep):
    found, groups = compared(sweep, metrics=["ir/image_to_text_median_rank"])
    assert found.smaller_is_better and not found.share
    assert groups["loss=softmax"].difference.mean > 0 and groups["loss=softmax"].better is False


def test_two_metrics_are_two_tables_and_one_family_of_tests(sweep):
    first, second = command.run([sweep], metrics=["zs/top1", "ir/image_to_text_median_rank"])
    assert first.comparisons == second.comparisons == 4


def test_time_and_images_are_those_of_the_runs(sweep):
    found, groups = compared(sweep)
    group = groups["loss=sigmoid"]
    assert found.wall_time and group.seconds.mean == 31  # as the sweep measured it
    assert group.images.mean == 320 and group.images_per_second.mean == pytest.approx(32)
    found, groups = compared(*(f"{sweep}/loss=sigmoid/seed{seed}" for seed in range(3)))
    assert not found.wall_time and groups["all runs"].seconds.mean == pytest.approx(10)  # 20 steps of half a second


def test_images_to_a_target_are_those_of_the_first_evaluation_that_reached_it(sweep, capsys):
    found, groups = compared(sweep, target=0.43)
    early, part, other = (groups[f"loss={name}"].target for name in TOP1)
    assert (early.reached, early.images.mean) == (3, pytest.approx((320 + 320 + 160) / 3))
    assert (part.reached, part.runs, part.images.mean, part.seconds.mean) == (2, 3, 320, pytest.approx(10))
    assert "320 ± 0 (2 of 3)" in capsys.readouterr().out
    compared(sweep, target=0.99)
    assert capsys.readouterr().out.count("not reached") == 3
    found, groups = compared(sweep, metrics=["ir/image_to_text_median_rank"], target=6.0)
    assert groups["loss=sigmoid"].target.images.mean == pytest.approx((160 + 160 + 160) / 3)


def test_one_seed_gives_no_test_and_says_so(tmp_path, capsys):
    runs = [write_run(tmp_path / loss, top1, loss=loss) for loss, top1 in (("sigmoid", 0.5), ("softmax", 0.6))]
    found, groups = compared(*runs)
    assert groups["loss=softmax"].difference.mean == pytest.approx(0.1)
    shown = capsys.readouterr().out
    assert "no test" in shown and "No test of loss=softmax: one seed tells nothing about the spread." in shown
    assert "±" not in shown.partition("\n\n")[2]


def test_other_seeds_are_compared_by_welchs_test_and_noted(tmp_path, capsys):
    runs = [write_run(tmp_path / f"a{seed}", 0.5 + seed / 100, seed=seed) for seed in (0, 1)]
    runs += [write_run(tmp_path / f"b{seed}", 0.6 + seed / 100, seed=seed, loss="softmax") for seed in (5, 6)]
    found, groups = compared(*runs)
    assert groups["loss=softmax"].difference.test == "welch"
    shown = capsys.readouterr().out
    assert "Welch's t-test" in shown and "The settings have different seeds" in shown


def test_unfinished_and_diverged_runs_do_not_count_and_are_named(tmp_path, capsys):
    runs = [write_run(tmp_path / f"a{seed}", 0.5, seed=seed) for seed in (0, 1)]
    runs += [write_run(tmp_path / "short", 0.9, seed=2, steps=15), write_run(tmp_path / "nan", None, seed=3)]
    with open(tmp_path / "nan" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 20, "zs/top1": None}) + "\n")
    found, groups = compared(*runs)
    assert groups["all runs"].values == {0: 0.5, 1: 0.5}
    shown = capsys.readouterr().out
    assert f"Note: {tmp_path}/short is unfinished (step 15 of 20) and does not count." in shown
    assert f"{tmp_path}/nan has zs/top1 that is not a number at step 20" in shown
    found, groups = compared(*runs[:3], step="10")
    assert groups["all runs"].values == pytest.approx({0: 0.4, 1: 0.4, 2: 0.8})


def test_a_second_run_of_a_seed_counts_in_no_column(tmp_path):
    first, again = write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.9)
    path = Path(again) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"seconds_per_step": ', '"seconds_per_step": 100'))
    assert path.read_text() != (Path(first) / "metrics.jsonl").read_text()
    (alone, both) = (compared(*runs, target=0.6)[1]["all runs"] for runs in ([first], [first, again]))
    assert both.values == {0: 0.5} and len(both.runs) == 2
    for name in ("seconds", "images", "images_per_second", "target"):
        assert getattr(both, name) == getattr(alone, name), name


def test_when_no_run_is_finished_it_names_the_step_that_all_have_evaluated(tmp_path):
    runs = [write_run(tmp_path / loss, steps=15, loss=loss) for loss in ("sigmoid", "softmax")]
    with pytest.raises(ConfigError, match="nothing to compare by zs/top1") as error:
        command.run(runs)
    assert "--step=10 compares all runs at the last step that all have evaluated." in str(error.value)


def test_a_cell_that_has_not_begun_is_named(sweep, tmp_path, capsys):
    (Path(sweep) / "loss=softmax/seed1/config.json").unlink()
    found, groups = compared(sweep)
    assert groups["loss=softmax"].values == {0: 0.40, 2: 0.43}
    assert f"Note: {sweep}/loss=softmax/seed1 has not begun." in capsys.readouterr().out


def test_best_is_the_evaluation_that_best_metric_names(tmp_path):
    run = write_run(tmp_path / "a", 0.5)
    path = Path(run) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"zs/top1": 0.4', '"zs/top1": 0.8'))
    assert compared(run, step="best")[1]["all runs"].values == {0: 0.8}
    assert compared(run)[1]["all runs"].values == {0: 0.5}


def test_best_is_a_checkpoint_as_in_eval_and_never_the_untrained_model(tmp_path):
    run = write_run(tmp_path / "a", 0.5)
    values = {0: 0.9, 10: 0.6, 20: 0.6, 30: 0.8}
    lines = [{"step": step, "zs/top1": top1, "ir/image_to_text_r1": step / 100} for step, top1 in values.items()]
    (Path(run) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = lambda: compared(run, metrics=["ir/image_to_text_r1"], step="best")[1]["all runs"].values  # noqa: E731
    assert best() == {0: 0.3}
    for step in (10, 20):
        (Path(run) / "checkpoints" / str(step)).mkdir(parents=True)
    assert best() == {0: 0.1}  # the earliest of equals
    assert best_of({10: 0.6, 20: 0.6}, "zs/top1") == 10  # which clipjax eval asks


def test_evaluators_and_data_that_differ_are_noted_never_compared_in_silence(tmp_path, capsys):
    other = {"zs": ZeroShotConfig(source=SourceConfig(path="b"), templates=("{}!",)), "ir": RetrievalConfig()}
    config = tiny_config()
    first = write_run(tmp_path / "a")
    second = write_run(
        tmp_path / "b",
        eval=replace(config.eval, evaluators=other),
        data=replace(config.data, train=replace(config.data.train, path="elsewhere")),
        loss="softmax",
    )
    found, _ = compared(first, second)
    shown = capsys.readouterr().out
    assert "The evaluators differ, so the metrics are not the same measure: config.eval.evaluators.zs.source" in shown
    assert "config.eval.evaluators.zs.templates" in shown
    assert "path=elsewhere, loss=softmax also differs from the baseline in" in shown
    assert "  config.eval.evaluators.zs.templates: " in shown


def test_runs_that_differ_in_many_fields_are_named_by_their_folders(tmp_path, capsys):
    config = tiny_config()
    optimizer = replace(config.optimizer, learning_rate=0.5, b1=0.5, b2=0.5, weight_decay=0.5)
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", loss="softmax", optimizer=optimizer)]
    found, groups = compared(*runs)
    assert list(groups) == runs and found.fields == ()
    assert "  config.optimizer.learning_rate: 0.001 -> 0.5" in capsys.readouterr().out


def test_csv_has_full_numbers_and_markdown_a_table(sweep, tmp_path, capsys):
    command.run([sweep], out=tmp_path / "table.csv", target=0.43)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [row["loss.name"] for row in rows] == ["sigmoid", "softmax", "ntxent"]
    assert float(rows[1]["mean"]) == pytest.approx(0.42, rel=1e-12) and rows[1]["seeds"] == "0 1 2"
    assert rows[0]["difference"] == "" and rows[1]["significant"] == "true" and rows[1]["better"] == "false"
    assert float(rows[1]["images_to_target"]) == 320
    command.run([sweep], format="markdown")
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5 and {line.count("|") for line in table} == {table[0].count("|")}
    assert "| softmax | 3 | 42.00% ± 1.73% | -10.00 pts |" in table[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric=zs/top2"], "--metric=zs/top2 is reported by none of the runs. Did you mean 'zs/top1'?"),
        (["--baseline=cyclip"], "--baseline=cyclip is none of the settings. Expected one of: loss=sigmoid; loss=soft"),
        (["--step=first"], "--step=first is unknown"),
        (["--step=7"], "has no evaluation at step 7"),
        (
            ["--out=t.xlsx"],
            "--out=t.xlsx ends in '.xlsx': expected .csv, .md, .txt or no ending, or pass --format=text|csv|markdown.",
        ),
        (["--format=html"], "--format=html is unknown; expected text, csv, markdown"),
        (["--target=50"], "shares from 0 to 1"),
        (["--target=nan"], "must be a finite number"),
        (["nowhere"], "nowhere is not there; expected the --workdir of a run or of a sweep"),
    ],
)
def test_a_wrong_argument_is_one_error(sweep, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["compare", sweep, *arguments])
    assert end.value.code == 1
    assert message in capsys.readouterr().err


def test_folders_may_come_after_flags_and_without_any_the_usage_is_shown(sweep, capsys):
    command.main(["compare", "--metric", "zs/top1", sweep, "--format=csv"])
    assert capsys.readouterr().out.startswith("metric,setting,loss.name")
    with pytest.raises(SystemExit) as end:
        command.main(["compare", "--format=csv"])
    assert end.value.code == 2 and "usage: clipjax compare RUN" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["t.csv", "t.md", "t.txt", "t"])
def test_a_comparison_is_written_again_and_a_file_of_somebody_else_is_never_replaced(sweep, tmp_path, name):
    out = tmp_path / name
    command.run([sweep], out=out)
    first = out.read_bytes()
    command.run([sweep], out=out)
    assert out.read_bytes() == first
    out.write_text("metric of mine,1\n")
    with pytest.raises(ConfigError, match="exists and is not a comparison that clipjax compare wrote"):
        command.run([sweep], out=out)
    assert out.read_text() == "metric of mine,1\n"
    out.write_text("")
    command.run([sweep], out=out)
    assert out.read_bytes() == first
