"""The page about runs loads nothing, shows every text as text, and says what is missing and why."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clipjax.commands import report
from clipjax.config import ConfigError
from clipjax.report import read_run, read_runs, render_report, write_report
from clipjax.report.page import TEMPLATES, config_changes, plotly_source
from clipjax.report.summary import REPORT, lacks_report
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.sweep import Cell, Sweep, write_sweep
from tests.report.fake_run import NASTY, STEPS, fake_run

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Tags with attributes, texts outside scripts, and the page's data; fails on tags that do not match."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.words, self.scripts = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open in ([], ["p"]), self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.words).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def page(folder):
    return render_report([read_run(folder)])


def test_page_is_well_formed_and_loads_nothing(page):
    found = Page(page)
    for tag, attributes in found.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in (TEMPLATES / "style.css").read_text() and "@import" not in page.replace(plotly_source(), "")
    assert re.search(r"https?://", page.replace(plotly_source(), "")) is None
    assert len(page.encode()) < 7e6


def test_every_part_is_there(page):
    text = Page(page).text
    ids = {attributes.get("id") for _, attributes in Page(page).tags}
    assert {"curves", "time", "space", "predictions", "retrieval", "confusions", "results", "bad", "config"} <= ids
    assert "step 40 of 40, finished" in text
    assert "softmax over 5 classes of the cosines times the model's own logit scale, 10" in text
    assert "Replaced in training: truncated 2." in text and "a<b>.tar" in text
    assert "zero_shot on data/<zoo>, split test" in text and "80.00%" in text
    assert "first two principal components of the images and captions at step 40" in text


def test_slider_data_has_every_evaluation_and_all_pairs(page):
    space = Page(page).data["spaces"]["0"]
    assert tuple(space["frames"]["steps"]) == STEPS
    assert [pair["caption"] for pair in space["pairs"][: len(NASTY)]] == NASTY
    assert all(pair["image"].startswith("data:image/webp;base64,") for pair in space["pairs"])


def test_texts_of_the_data_are_never_markup(page):
    found = Page(page)
    assert len(found.scripts) == 3, "the data, Plotly, and the page's own"
    assert not [tag for tag, attributes in found.tags if "onerror" in attributes]
    assert "window.broken" not in "".join(found.scripts[1:])
    for caption in NASTY:
        assert " ".join(caption.split()) in found.text
    assert "49" not in re.findall(r"\{\{.*?\}\}|\b49\b", found.text), "a caption is no template"
    assert [a["dir"] for tag, a in found.tags if "dir" in a].count("auto") > 10, "right-to-left texts"


def test_a_picture_that_is_no_thumbnail_is_not_shown(folder):
    run = read_run(folder)
    run.pairs["pairs"][0]["image"] = "https://example.org/tracker.png"
    run.predictions["classification"]["samples"][0]["image"] = 'data:image/webp;base64,AA" onerror="x'
    found = Page(render_report([run]))
    assert found.data["spaces"]["0"]["pairs"][0]["image"] == ""
    assert not [tag for tag, attributes in found.tags if "onerror" in attributes] and "no picture" in found.text


def test_several_runs_are_overlaid_and_their_configurations_compared(folder, tmp_path):
    other = fake_run(tmp_path / "first", seed=3, total_steps=80)
    runs = read_runs([folder, other])
    assert [run.name for run in runs] == [str(folder), str(other)], "equal names of folders become paths"
    assert dict(config_changes(runs)) == {"seed": [0, 3], "total_steps": [40, 80]}
    found = Page(render_report(runs, comparison="a table & <more>"))
    assert "a table & <more>" in found.text and "step 40 of 80, not finished" in found.text
    assert set(found.data["spaces"]) == {"0", "1"}
    losses = found.data["plots"]["curve-0"]["data"]
    assert {trace["line"]["color"] for trace in losses} >= {"#3b82c4", "#e07b39"}
    assert dict(config_changes(runs[:1])) == {}


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (("snapshots",), "No held-out pairs are stored"),
        (("snapshots/predictions.json",), "No predictions are stored yet"),
        (("metrics.jsonl",), "No curves: this directory has no metrics.jsonl"),
        (("metrics.jsonl", "snapshots", "bad_records.jsonl"), "No evaluation is stored."),
        (("config.json",), "step 40, finished" if False else "step 40"),
    ],
)
def test_what_is_missing_is_said_in_its_place(folder, tmp_path, removed, said):
    shutil.copytree(folder, tmp_path / "run")
    for name in removed:
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if "metrics.jsonl" in removed:
        (tmp_path / "run" / "checkpoints").mkdir()
    assert said in Page(render_report([read_run(tmp_path / "run")])).text


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path, folder):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="is no run: expected the --workdir of a training run"):
            read_run(path)
    with pytest.raises(ConfigError, match="--out=.* is a folder"):
        report.run([folder], out=tmp_path, compute=False)


def test_several_runs_come_with_the_table_of_compare_or_the_reason_why_not(folder, tmp_path):
    other = fake_run(tmp_path / "second", seed=3)
    report.run([folder, other], out=tmp_path / "both.html", compute=False)
    text = Page((tmp_path / "both.html").read_text()).text
    assert "zoo/top1 at the end of training" in text and "80.00% ± 0.00%" in text
    assert "The runs cannot be compared: " in report.comparison_of([folder, tmp_path / "nowhere"])


def test_command_writes_beside_the_run_and_says_what_it_could_not_make(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/snapshots/predictions.json").unlink()
    assert report.run([tmp_path / "run"]) == tmp_path / "run" / "report.html"
    text = Page((tmp_path / "run/report.html").read_text()).text
    assert "No predictions could be made of the checkpoint" in text and "holds no checkpoints" in text
    assert capsys.readouterr().out.splitlines()[-1] == f"Wrote {tmp_path / 'run' / 'report.html'}"


def test_a_page_is_written_again_and_a_file_of_somebody_else_is_never_replaced(folder, tmp_path):
    out = tmp_path / "page.html"
    for _ in range(2):
        report.run([folder], out=out, compute=False)
    assert out.read_text().startswith("<!doctype html>")
    out.write_text("<!doctype html>\n<p>mine")
    with pytest.raises(ConfigError, match="exists and is not a page that clipjax report wrote"):
        report.run([folder], out=out, compute=False)
    assert out.read_text() == "<!doctype html>\n<p>mine"


def test_a_finished_run_lacks_the_report_that_an_extended_run_has_from_before(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    assert lacks_report(tmp_path / "run", 40)
    write_report(tmp_path / "run" / REPORT, [read_run(tmp_path / "run")])
    assert not lacks_report(tmp_path / "run", 40) and lacks_report(tmp_path / "run", 80)
    (tmp_path / "run" / REPORT).write_text("a page that says no step")
    assert not lacks_report(tmp_path / "run", 80)


def test_lines_of_a_run_in_progress_are_enough(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert len(read_metrics(tmp_path)) == 1
    write_report(tmp_path / "r.html", [read_run(tmp_path)])
    assert "from 2" in Page((tmp_path / "r.html").read_text()).text


def test_an_installed_package_has_the_templates(tmp_path):
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "clipjax", tmp_path / "clipjax", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    names = zipfile.ZipFile(tmp_path / built.stdout.split()[-1]).namelist()
    for template in TEMPLATES.iterdir():
        assert f"clipjax/report/templates/{template.name}" in names


def test_a_sweep_stands_for_its_cells_that_have_begun_and_flags_may_come_first(tmp_path):
    cells = [Cell(f"loss={loss}", 0, {}, {"loss.name": loss}) for loss in ("softmax", "sigmoid")]
    write_sweep(tmp_path, Sweep("experiment.py", [], ["loss.name"], cells))
    with pytest.raises(ConfigError, match="none of the sweep's cells has begun"):
        report.runs_in([tmp_path])
    fake_run(tmp_path / cells[0].path)
    assert report.runs_in([tmp_path, "runs/a"]) == [tmp_path / cells[0].path, Path("runs/a")]
    report.main(["clipjax report", "--nocompute", "--step", "latest", str(tmp_path)])
    assert "experiment" in (tmp_path / "report.html").read_text()
