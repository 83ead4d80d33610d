"""The parts of docs/extending.md: each is one file and one row, with options, and a run trains with all of them."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clipjax.config import SourceConfig
from clipjax.data.sources import open_source
from tests import runs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n# (\S+?\.py)(?:, in (\w+))?\n(.*?)```", PAGE, re.DOTALL)
FILES = {path: code for path, table, code in BLOCKS if not table}
ROWS = [(path, table, code) for path, table, code in BLOCKS if table]


def test_each_part_is_one_file_and_one_row():
    parts = [path for path in FILES if path.startswith("clipjax/")]
    assert len(parts) == len(ROWS) == 5
    assert {Path(path).parent for path in parts} == {Path(path).parent for path, _, _ in ROWS}
    assert all(code.count("\n") == 1 for _, _, code in ROWS)


def add_row(project: Path, path: str, table: str, row: str) -> None:
    """Puts the row into its table, and before the table the import that it needs."""
    text = (project / path).read_text(encoding="utf-8")
    start = re.search(rf"^{table}: .* = \{{\n", text, re.MULTILINE)
    assert start, f"{path} has no table {table}"
    package, module = ".".join(Path(path).parent.parts), re.search(r": (\w+)\.", row).group(1)
    before, head, after = text[: start.start()], start.group(), text[start.end() :]
    (project / path).write_text(f"{before}from {package} import {module}\n\n{head}{row}{after}", encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the package with the page's files and rows, and data for its experiment."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "clipjax", folder / "clipjax", ignore=shutil.ignore_patterns("__pycache__"))
    for path, code in FILES.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(code, encoding="utf-8")
    for path, table, row in ROWS:
        add_row(folder, path, table, row)
    (folder / "data").mkdir()
    runs.build_data(folder / "data")
    records = open_source(SourceConfig(path=str(folder / "data" / "scenes")))
    with zipfile.ZipFile(folder / "data" / "scenes.zip", "w") as archive:
        for i in range(32):
            archive.writestr(f"{i:02d}.png", records[i]["image"])
            archive.writestr(f"{i:02d}.txt", records[i]["texts"][0])
    return folder


def clipjax(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(project), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [sys.executable, "-m", "clipjax", *arguments], cwd=project, env=env, capture_output=True, text=True
    )


def test_the_experiment_of_the_page_trains_and_evaluates_with_all_five(project):
    ran = clipjax(project, "train", "--config=experiments/mine.py", "--workdir=runs/mine")
    assert ran.returncode == 0, ran.stderr
    assert "loss margin" in ran.stdout
    config = json.loads((project / "runs" / "mine" / "config.json").read_text())
    assert config["loss"]["margin"] == 0.5 and config["optimizer"]["momentum"] == 0.8
    assert config["model"]["image"]["tokens_mlp_dim"] == 16 and config["data"]["train"]["image_suffix"] == ".png"
    last = json.loads((project / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4 and 0 < last["space/alignment"] < 4 and last["space/uniformity"] < 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.loss.margin=-1.0", "config.loss.margin=-1.0 must be above 0."),
        ("--config.optimizer.momentum=1.5", "config.optimizer.momentum=1.5 must be at least 0 and below 1."),
        ("--config.model.image.patch_size=5", "config.model.image.image_size=32 is not a multiple of patch_size=5."),
        ("--config.optimizer.b1=0.5", "no such field config.optimizer.b1: 'sgd' has no such field, 'adamw'"),
        ("--config.loss.name=softmax --config.loss.margin=1.0", "'softmax' has no such field, 'margin' has."),
    ],
)
def test_the_new_parts_refuse_wrong_options_in_one_line(project, argument, message):
    ran = clipjax(project, "train", "--config=experiments/mine.py", "--workdir=runs/refused", *argument.split())
    assert ran.returncode in (1, 2)
    assert message in ran.stderr and len(ran.stderr.strip().splitlines()) == 1
