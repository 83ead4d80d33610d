"""The fuzzing script on a few inputs of every reader: a right value or one of clipjax's errors, the same each time."""

import json
import logging
import random
import signal
import subprocess
import sys

import pytest

from benchmarks import fuzz
from benchmarks.fuzzing import mutations
from benchmarks.fuzzing.readers import READERS
from tests.runs import ROOT

COUNT = {"model_directories": 40, "experiments": 30}  # others: 150


@pytest.fixture(autouse=True)
def limits():
    before = signal.signal(signal.SIGPROF, fuzz._too_long)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    signal.signal(signal.SIGPROF, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_give_a_value_or_one_clean_line(reader, tmp_path):
    cases, seen = READERS[reader][0](), set()
    for index in range(COUNT.get(reader, 150)):
        case, name, folder = fuzz.read_input(reader, cases, 7, 0, index, tmp_path)
        outcome, kind, what = fuzz.judge(case, folder)
        assert outcome != "fault", f"{fuzz.again_command(7, reader, 0, index)}\n{what}"
        seen.add(outcome)
        (folder / name).write_bytes(case.files[name])
    assert "value" in seen


@pytest.mark.parametrize("reader", ["captions", "annotations"])
def test_an_input_is_the_same_each_time(reader, tmp_path):
    cases = READERS[reader][0]()
    found = []
    for place in ("a", "b"):
        case, name, folder = fuzz.read_input(reader, cases, 3, 1, 5, tmp_path / place)
        found.append((case.label, name, (folder / name).read_bytes()))
    assert found[0] == found[1]


def test_mutations_change_a_file_and_depend_on_the_generator_alone():
    data = bytes(range(200))
    changed = [mutations.mutate_bytes(data, random.Random(seed)) for seed in range(50)]
    assert changed == [mutations.mutate_bytes(data, random.Random(seed)) for seed in range(50)]
    assert sum(one != data for one in changed) > 40
    for mutate in (mutations.of_json, mutations.of_lines, mutations.of_tar, mutations.of_safetensors):
        assert isinstance(mutate(b"", random.Random(0)), bytes)


def fault(read):
    case = type("Case", (), {"read": staticmethod(read)})
    return fuzz.judge(case, None)


def test_what_counts_as_a_fault():
    class OursError(ValueError):
        __module__ = "clipjax.tests"

    class Panic(BaseException):
        pass

    def raising(error):
        def read(folder):
            raise error

        return read

    assert fault(raising(OursError("what to do")))[:2] == ("refused", "OursError")
    assert fault(raising(FileNotFoundError(2, "no such file", "x")))[0] == "refused"
    assert fault(raising(OursError("")))[0] == "fault"
    assert fault(raising(OursError("a line\n" * 1000)))[0] == "fault"
    for error in (KeyError("x"), RecursionError(), MemoryError(), Panic(), AssertionError("wrong")):
        assert fault(raising(error))[:2] == ("fault", type(error).__name__)
    assert fault(lambda folder: None) == ("value", "", "")


def test_work_is_divided_in_shards_and_goes_on_where_it_stopped(tmp_path):
    tasks = fuzz.plan(["captions"], 5000, tmp_path)
    assert tasks == [("captions", 0, 0, 2000), ("captions", 1, 0, 2000), ("captions", 2, 0, 1000)]
    counts = {"value": 1, "refused": 1, "fault": 0, "errors": {"RecordError": 1}, "slowest": 0.1, "memory": 5}
    fuzz._add(tmp_path, "captions", 0, counts)
    fuzz._add(tmp_path, "captions", 1, counts, until=700)
    fuzz._add(tmp_path, "captions", 1, counts, until=800)
    assert fuzz.plan(["captions"], 5000, tmp_path) == [("captions", 1, 800, 2000), ("captions", 2, 0, 1000)]
    row = fuzz.summary(tmp_path)["captions"]
    assert (row["value"], row["refused"], row["errors"]) == (3, 3, {"RecordError": 3})
    assert "captions" in fuzz.show({"captions": row})


def test_the_committed_result_has_no_fault():
    document = json.loads(fuzz.RESULTS.read_text()) if fuzz.RESULTS.exists() else {"faults": 0, "readers": {}}
    assert document["faults"] == 0
    assert set(document["readers"]) <= set(READERS)


@pytest.mark.slow
def test_the_command_runs_workers_and_writes_its_result(tmp_path):
    command = [sys.executable, "-m", "benchmarks.fuzz", "--count=400", "--readers=captions", "--workers=2"]
    where = [f"--out={tmp_path / 'out'}", f"--results={tmp_path / 'fuzz.json'}"]
    done = subprocess.run([*command, *where], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "fuzz.json").read_text())
    assert document["inputs"] == 400 and document["faults"] == 0 and document["seed"] == 0
