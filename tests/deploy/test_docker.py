"""Dockerfiles pass hadolint, copy what exists and is sent to the builder, and hold to a few rules of their own."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, ROOT

DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile, its continued lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.split("\n") if line]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stdout, result.stdout + result.stderr


def test_hadolint_would_find_an_unpinned_base(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp\n")
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, "--no-color", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert result.returncode and "DL3006" in result.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_have_a_pinned_base_the_extras_of_the_project_and_no_secret(path):
    lines = instructions(path)
    stages = {rest.split()[2] for name, rest in lines if name == "FROM" and " AS " in rest}
    for base in (rest.split()[0] for name, rest in lines if name == "FROM"):
        assert base in stages or re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    [python] = {base for name, rest in lines if name == "FROM" for base in re.findall(r"python:(3\.\d+)", rest)}
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    [extras] = [re.search(r'pip install "\.\[([\w,]+)\]"', rest)[1] for _, rest in lines if 'pip install ".' in rest]
    wanted = {"cpu": [], "cuda": ["gpu"], "tpu": ["tpu"]}[path.stem] + ["gcs", "s3"]
    assert extras.split(",") == wanted
    assert set(wanted) <= set(PROJECT["optional-dependencies"])
    assert not any(name in ("ARG", "ADD") for name, _ in lines)
    assert not re.search(r"(?i)password|secret|token=|_key=|credential", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_code_is_a_layer_above_the_dependencies(path):
    lines = instructions(path)
    final = lines[max(index for index, (name, _) in enumerate(lines) if name == "FROM") :]
    texts = [rest for name, rest in final if name in ("COPY", "RUN")]
    [venv] = [index for index, rest in enumerate(texts) if "--from=dependencies /venv /venv" in rest]
    [wheel] = [index for index, rest in enumerate(texts) if "/wheels/*.whl" in rest]
    assert venv < wheel
    before = lines[: next(index for index, (_, rest) in enumerate(lines) if "pip install" in rest)]
    copied = {source for name, rest in before if name == "COPY" for source in rest.split()[:-1]}
    assert not copied & {"clipjax", "data_pipelines", "experiments", "."}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_a_user_unless_they_need_the_tpu(path):
    lines = instructions(path)
    users = [rest for name, rest in lines if name == "USER"]
    assert users == ([] if path.stem == "tpu" else ["1000"])
    assert lines[-1] == ("ENTRYPOINT", '["clipjax"]')  # a list, so that SIGTERM reaches clipjax and no shell


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_sent_to_the_builder(path):
    ignored = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and not line.startswith("#")]
    assert ignored[0] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    for name, rest in instructions(path):
        if name == "COPY" and "--from=" not in rest:
            for source in [word for word in rest.split() if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source, f"{entry}*") for entry in sent), source
    assert all((ROOT / entry).exists() for entry in sent)
    # What the project is built from.
    assert {
        "pyproject.toml",
        "setup.py",
        "clipjax",
        "data_pipelines",
        PROJECT["readme"],
        *PROJECT["license-files"],
    } <= sent
