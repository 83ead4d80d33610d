"""The whole of data_pipelines.prepare on Beam: counts, bytes, splits, and what happens when it is killed."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("apache_beam", reason="pip install 'clipjax[pipelines]'")

from clipjax.config import SourceConfig
from clipjax.data.records import ManifestError, read_manifest
from clipjax.data.sources import open_source
from data_pipelines.command import PipelineError
from data_pipelines.prepare import __main__ as command_line
from data_pipelines.prepare import run
from data_pipelines.prepare.report import account
from tests.data.samples import ROOT, encoded, picture
from tests.data_pipelines.debs import tar_bytes
from tests.data_pipelines.test_openclipart import bomb

EVIL = '<script>alert("x")</script> & a dog'
SPLITS = "train=0.8,test=0.2"


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Three tars of 20 samples; each with a repeated image, a bomb, a caption without letters and one of markup."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in range(3):
        members = {}
        for i in range(20):
            name = f"{i:04d}"
            members[f"{name}.jpg"] = encoded(picture(20 * tar + i), "JPEG")
            members[f"{name}.txt"] = f"picture number {20 * tar + i}".encode()
        members["0003.jpg"] = encoded(picture(0), "JPEG")
        members["0004.jpg"] = bomb(9_000)
        members["0005.txt"] = b"12345"
        members["0006.txt"] = EVIL.encode()
        (folder / f"{tar}.tar").write_bytes(tar_bytes(members))
    return folder


def build(tars, out, **flags):
    flags = {"reader": "webdataset", "input": (str(tars),), "splits": SPLITS, "records_per_shard": 8} | flags
    return run.build(out, **flags)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def records(folder) -> dict[str, dict]:
    result = {}
    for split, entry in read_manifest(folder)["splits"].items():
        source = open_source(SourceConfig(path=str(folder), split=split)) if entry["records"] else ()
        result |= {source[i]["key"]: source[i] | {"split": split} for i in range(len(source))}
    return result


@pytest.fixture(scope="module")
def built(tars, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "set"
    return out, build(tars, out, licence="CC0-1.0")


def test_every_example_is_a_record_or_counted(built):
    out, manifest = built
    found = records(out)
    # The first picture is in three other places, one of them in the same tar.
    assert manifest["skipped"] == {
        "captions: no caption left: hardly a letter": 3,
        "decode: image too large": 3,
        "same image: same image, captions taken over": 3,
    }
    assert len(found) == sum(split["records"] for split in manifest["splits"].values()) == 60 - 9
    assert found["0/0000"]["texts"] == [
        "picture number 0",
        "picture number 3",
        "picture number 23",
        "picture number 43",
    ]
    assert found["1/0007"]["image"] == encoded(picture(27), "JPEG")
    assert found["0/0006"]["texts"] == ['alert("x") & a dog']
    assert manifest["licences"] == [{"source": "set", "licence": "CC0-1.0"}]
    for split, entry in manifest["splits"].items():
        count = len(entry["shards"])
        assert [s["file"] for s in entry["shards"]] == [
            f"{split}-{i:05d}-of-{count:05d}.arrayrecord" for i in range(count)
        ]
        for shard in entry["shards"]:
            sums = subprocess.run(["sha256sum", out / shard["file"]], capture_output=True, text=True)
            assert sums.stdout.split()[0] == shard["sha256"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["set"]


def test_the_report_has_every_step_and_escapes_what_came_from_the_data(built):
    out, _ = built
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (report["read"], report["written"]) == (60, 51)
    flow = {step["step"]: (step["in"], step["out"]) for step in report["steps"]}
    assert flow == {"captions": (60, 57), "decode": (57, 54), "same image": (54, 51)}
    captions = report["steps"][0]
    assert captions["noted"]["caption cleaned"]["count"] == 3
    assert {sample["text"] for sample in captions["noted"]["caption cleaned"]["samples"]} == {EVIL}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; a dog" in page
    assert "captions, left out: no caption left: hardly a letter, 3" in page


@pytest.mark.parametrize("mode", ["multi_threading", pytest.param("multi_processing", marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_the_workers(tars, built, tmp_path, mode, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    build(tars, tmp_path / "set", licence="CC0-1.0",
          beam_flags=["--direct_num_workers=3", f"--direct_running_mode={mode}"])  # fmt: skip
    assert contents(tmp_path / "set") == contents(built[0])


def test_added_data_leave_every_record_in_its_split(tars, built, tmp_path):
    (tmp_path / "in").mkdir()
    for path in tars.iterdir():
        (tmp_path / "in" / path.name).symlink_to(path)
    more = {f"{i:04d}.{kind}": data for i in range(30) for kind, data in
            (("jpg", encoded(picture(100 + i), "JPEG")), ("txt", b"more"))}  # fmt: skip
    (tmp_path / "in" / "00.tar").write_bytes(tar_bytes(more))
    build(tmp_path / "in", tmp_path / "set")
    before, after = records(built[0]), records(tmp_path / "set")
    assert len(after) == len(before) + 30
    assert {key: after[key]["split"] for key in before} == {key: record["split"] for key, record in before.items()}
    assert {record["split"] for record in after.values()} == {"train", "test"}


def test_a_run_repeated_is_found_and_other_options_are_refused(tars, built, monkeypatch):
    out, manifest = built
    monkeypatch.setattr(run, "_run", lambda *_: pytest.fail("ran again"))
    left = out.with_name(".set.preparing")
    (left / "units").mkdir(parents=True)
    assert build(tars, out, licence="CC0-1.0") == read_manifest(out)
    assert not left.exists()
    with pytest.raises(ManifestError, match="other settings"):
        build(tars, out, licence="MIT")


KILLED = """
import os, sys
from data_pipelines.prepare import graph, run, shard_files
point, tars, out = sys.argv[1:]

def killing(function, calls):
    left = [calls]
    def call(*arguments, **flags):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), 9)
        return function(*arguments, **flags)
    return call

if point == "reading":
    graph.stage = killing(graph.stage, 2)
elif point == "writing":
    shard_files.encode_record = killing(shard_files.encode_record, 30)
elif point == "publishing":
    run.publish = killing(run.publish, 0)
run.build(out, reader="webdataset", input=(tars,), splits="train=0.8,test=0.2", records_per_shard=8, licence="CC0-1.0")
"""


@pytest.mark.slow
def test_killed_three_times_it_continues_and_ends_with_the_same_bytes(tars, built, tmp_path):
    (tmp_path / "kill.py").write_text(KILLED)
    out, work = tmp_path / "set", tmp_path / ".set.preparing"

    def state(folder) -> dict:
        return {path.name: path.stat().st_mtime_ns for path in (work / folder).glob("[!.]*")}

    def start(point: str) -> int:
        command = [sys.executable, str(tmp_path / "kill.py"), point, str(tars), str(out)]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
        ).returncode

    assert start("reading") == -9
    units = state("units")
    assert len([name for name in units if name.endswith(".json")]) == 2
    assert not out.exists()
    assert start("writing") == -9
    assert units.items() <= state("units").items() and len(state("units")) == 6
    shards = state("shards")
    assert 1 <= len(shards) < 7 and not out.exists()
    assert start("publishing") == -9
    assert shards.items() <= state("shards").items() and not out.exists()
    assert start("never") == 0
    assert contents(out) == contents(built[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kill.py", "set"]


STOPPED = """
import os, signal, sys, time
from data_pipelines.prepare import __main__ as command_line, graph

number, sys.argv = int(sys.argv[1]), ["prepare", *sys.argv[2:]]
signal.signal(signal.SIGINT, signal.default_int_handler)  # which what runs in the background ignores
stage, calls = graph.stage, []

def stopping(*arguments, **flags):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), number)
        time.sleep(60)
    return stage(*arguments, **flags)

graph.stage = stopping
command_line.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_ends_it_with_one_line_and_what_is_finished_is_kept(tars, built, tmp_path, number, name, code):
    (tmp_path / "stop.py").write_text(STOPPED)
    out, work = tmp_path / "set", tmp_path / ".set.preparing"
    flags = [
        "--reader=webdataset",
        f"--input={tars}",
        f"--splits={SPLITS}",
        "--records_per_shard=8",
        "--licence=CC0-1.0",
    ]
    command = [sys.executable, str(tmp_path / "stop.py"), str(int(number)), f"--out={out}", *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert process.returncode == code
    lines = process.stderr.strip().splitlines()
    assert lines[-1] == f"{name}: stopped; what is finished is kept in {work}: the same command continues."
    assert "Traceback" not in process.stderr
    assert not out.exists() and len(list((work / "units").glob("[!.]*.json"))) == 1
    command_line.main([f"--out={out}", *flags])
    assert contents(out) == contents(built[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "stop.py"]


def test_two_runs_at_a_time_are_refused(tars, tmp_path):
    with run._only_one(tmp_path / ".set.preparing"):
        with pytest.raises(PipelineError, match="Another process is at work"):
            build(tars, tmp_path / "set")


def test_examples_that_are_lost_on_the_way_stop_the_publication():
    shards = [{"split": "train", "records": 8, "bytes": 1, "file": "x", "sha256": ""}]
    with pytest.raises(PipelineError, match="10 examples were read and 1 left out, but 8 records written"):
        account({"read": 10, "shards": shards, "events": [
            {"step": "decode", "cause": "x", "dropped": True, "count": 1, "samples": []}]})  # fmt: skip


@pytest.mark.slow
def test_the_command_line_takes_beams_flags_behind_two_dashes(tars, tmp_path, capsys):
    flags = ["--reader=webdataset", f"--input={tars}/0.tar,{tars}/1.tar", f"--out={tmp_path / 'set'}", "--splits=all=1"]
    flags += [f"--decontaminate={tmp_path / 'none'}"]
    with pytest.raises(SystemExit):
        command_line.main(flags)
    assert "is not a finished folder of records" in capsys.readouterr().err
    entries = tmp_path / "entries.txt"
    entries.write_text("picture\ndog\n")
    flags[-1:] = ["--same_caption=1", "--near_duplicates=3", f"--balance_entries={entries}", "--balance_limit=10"]
    command_line.main([*flags, "--shorter_side=32", "--", "--direct_num_workers=2"])
    assert "report.html" in capsys.readouterr().out
    report = json.loads((tmp_path / "set/report.json").read_text())
    steps = {step["step"]: step for step in report["steps"]}
    assert steps["same caption"]["dropped"]["caption used by others"]["count"] == 1
    assert steps["decode"]["noted"]["stored smaller"]["count"] == 40 - 4
    assert 4 <= report["written"] <= 20


def test_labels_that_are_no_classes_stop_it_in_one_line(tmp_path, caplog):
    members = {f"{i}.{kind}": data for i, label in enumerate((b"cat", b"1")) for kind, data in
               {"jpg": encoded(picture(i), "JPEG"), "txt": b"a good dog", "cls": label}.items()}  # fmt: skip
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    with pytest.raises(PipelineError, match="The pipeline failed: The input has numbers and texts as labels.*'0/0'"):
        build(tmp_path / "0.tar", tmp_path / "out")
    assert "Traceback" not in caplog.text and "numbers and texts" not in caplog.text


def test_nothing_left_is_an_error_that_says_why(tars, tmp_path):
    with pytest.raises(PipelineError, match="Nothing is left of 60 examples. .*57 captions: no caption left: too few"):
        build(tars, tmp_path / "set", min_words=9)
    assert not (tmp_path / "set").exists()
