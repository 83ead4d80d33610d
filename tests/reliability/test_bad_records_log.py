"""The list of bad records holds each once, agrees with the checkpoints, and is complete after any kill."""

import collections
import dataclasses
import json
import shutil

import pytest

from clipjax.commands import train
from clipjax.data.bad_records import BadRecord, DataError
from clipjax.data.records import encode_record
from clipjax.runs import bad_records_log
from clipjax.runs.bad_records_log import BadRecordsLog, add_causes, describe_bad_records, read_bad_records
from clipjax.runs.resume import own_data_state
from tests.data.samples import record, write_folder


def bad(position, cause="corrupt image", file="a"):
    return BadRecord(cause, file, position, "made bad", f"key{position}")


def log_of(workdir, met=(), *, resume_step=0, process_index=0):
    return BadRecordsLog(workdir, collections.deque(met), resume_step=resume_step, process_index=process_index)


def positions(workdir):
    return [(line["step"], line["position"]) for line in read_bad_records(workdir)]


def test_a_line_says_what_is_known_and_comes_once(tmp_path):
    log = log_of(tmp_path, [(1, [bad(4), bad(4)]), (2, [bad(7), bad(4)])])
    log.write(2)
    assert read_bad_records(tmp_path) == [
        {"cause": "corrupt image", "file": "a", "position": n, "error": "made bad", "key": f"key{n}", "step": step}
        for step, n in ((1, 4), (2, 7))
    ]


def test_what_was_read_ahead_is_not_written_before_its_step(tmp_path):
    log = log_of(tmp_path, [(1, [bad(1)]), (3, [bad(3)])])
    log.write(2)
    assert positions(tmp_path) == [(1, 1)]
    log.write(3)
    assert positions(tmp_path) == [(1, 1), (3, 3)]


def test_lines_after_the_checkpoint_are_dropped_and_found_again(tmp_path):
    log_of(tmp_path, [(1, [bad(1)]), (4, [bad(4)])]).write(5)
    (tmp_path / "bad_records.jsonl").open("a").write('{"file": "a", "positi')  # torn by a kill
    log = log_of(tmp_path, [(4, [bad(4)]), (5, [bad(1), bad(5)])], resume_step=3)
    assert positions(tmp_path) == [(1, 1)]
    log.write(5)
    assert positions(tmp_path) == [(1, 1), (4, 4), (5, 5)]
    assert all(json.loads(line) for line in (tmp_path / "bad_records.jsonl").read_text().splitlines())


def test_processes_write_files_of_their_own_that_are_read_as_one(tmp_path):
    log_of(tmp_path, [(1, [bad(1)]), (3, [bad(3)])]).write(3)
    log_of(tmp_path, [(2, [bad(2)]), (3, [bad(3)])], process_index=1).write(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad_records-1.jsonl", "bad_records.jsonl"]
    assert positions(tmp_path) == [(1, 1), (2, 2), (3, 3)]


def test_the_list_is_bounded_over_restarts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_records_log, "MAX_ENTRIES", 3)
    log_of(tmp_path, [(1, [bad(n) for n in range(2)])]).write(1)
    log_of(tmp_path, [(2, [bad(n) for n in range(10)])], resume_step=1).write(2)
    assert positions(tmp_path) == [(1, 0), (1, 1), (2, 2)]


def test_a_run_without_bad_records_leaves_no_file_and_says_nothing(tmp_path):
    log_of(tmp_path).write(3)
    assert list(tmp_path.iterdir()) == []
    assert describe_bad_records(tmp_path, {}) == ""


def test_the_last_line_of_a_run_counts_by_cause_and_names_the_worst_files(tmp_path):
    log_of(tmp_path, [(1, [bad(1), bad(2), bad(9, "empty image", "b")])]).write(1)
    assert describe_bad_records(tmp_path, {"empty image": 2, "corrupt image": 5}) == (
        "Bad records: 7 replaced (corrupt image 5, empty image 2), 3 different ones in 2 files, most in a (2), b (1); "
        f"{tmp_path}/bad_records.jsonl lists them."
    )


def test_counts_of_another_number_of_processes_are_neither_lost_nor_doubled():
    states = [{"step": 6, "read": 50 + p, "bad": {"corrupt image": p, f"only {p}": 1}} for p in range(4)]
    for count in (1, 2, 4, 8):
        own = [own_data_state(states, p, count) for p in range(count)]
        assert {state["step"] for state in own} == {6}
        assert sum(state["read"] for state in own) == 206
        assert add_causes(state["bad"] for state in own) == {"corrupt image": 6, **{f"only {p}": 1 for p in range(4)}}


@pytest.fixture(scope="module")
def damaged(folder, config, tmp_path_factory):
    """config on 64 records, four of which are no images, and the workdir of a whole run on them."""
    path = tmp_path_factory.mktemp("damaged")
    records = [record(n) for n in range(64)]
    for n in range(5, 64, 16):
        records[n] = encode_record(b"GIF89a", ["an image that is none"], key=f"key{n}")
    write_folder(path / "data", records)
    source = dataclasses.replace(config.data.train, path=str(path / "data"))
    data = dataclasses.replace(config.data, train=source, max_bad_share=0.5)
    config = dataclasses.replace(config, data=data)
    train.run(config, path / "whole")
    return config, path / "whole"


@pytest.mark.slow
def test_counts_and_list_after_a_restart_are_those_of_the_uninterrupted_run(damaged, tmp_path, capsys):
    config, whole = damaged
    shutil.copytree(whole / "checkpoints" / "6", tmp_path / "checkpoints" / "6")
    for name in ("metrics.jsonl", "bad_records.jsonl"):  # as a kill after step 11 leaves them
        lines = (whole / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(line for line in lines if json.loads(line)["step"] < 12) + '{"step": 12')
    train.run(config, tmp_path)
    assert (tmp_path / "bad_records.jsonl").read_bytes() == (whole / "bad_records.jsonl").read_bytes()
    counts = [bad_counts(workdir) for workdir in (tmp_path, whole)]
    assert counts[0] == counts[1]
    assert counts[0][12]["bad_records/not an image"] >= 8, "twelve batches of 16 are three epochs"
    entries = read_bad_records(tmp_path)
    assert sorted(entry["key"] for entry in entries) == ["key21", "key37", "key5", "key53"]
    assert "4 different ones in 4 files" in capsys.readouterr().out


def test_a_run_that_its_data_stop_leaves_the_list_of_what_stopped_it(damaged, tmp_path):
    config, _ = damaged
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad_share=0.01))
    with pytest.raises(DataError, match="max_bad_share=0.01"):
        train.run(config, tmp_path)
    assert sorted(entry["key"] for entry in read_bad_records(tmp_path)) == ["key21", "key37", "key5", "key53"]


def bad_counts(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {k: v for k, v in line.items() if k.startswith("bad_records/")} for line in lines}


def test_a_line_whose_file_is_no_text_is_left_out(tmp_path):
    line = {"file": "a.tar", "position": 1, "key": "k", "cause": "corrupt image", "error": "x", "step": 2}
    lines = [line, line | {"file": ["a"]}, line | {"position": {}}, line | {"cause": None}]
    (tmp_path / "bad_records.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_bad_records(tmp_path) == [line]
