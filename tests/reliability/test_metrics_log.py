"""metrics.jsonl has one curve whatever the run went through, in whole lines of JSON that every reader accepts."""

import json
import math
import re
from contextlib import closing

import jax
import pytest

from clipjax.runs.bad_records_log import read_bad_records
from clipjax.runs.metrics_log import MetricsLog, read_metrics


def lines_of(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def test_a_line_is_in_the_file_when_write_returns(tmp_path):
    with closing(MetricsLog(tmp_path, resume_step=0)) as log:
        log.write(10, {"loss": 0.5, "zoo/top1": 0.25})
        assert [json.loads(line) for line in lines_of(tmp_path)] == [{"step": 10, "loss": 0.5, "zoo/top1": 0.25}]
        log.write(11, {})
        assert len(lines_of(tmp_path)) == 1, "nothing to say is no line"


def test_resuming_leaves_finished_steps_byte_for_byte(tmp_path):
    with closing(MetricsLog(tmp_path, resume_step=0)) as log:
        for step in (10, 20, 20, 30):  # a step has a training line and an evaluation line
            log.write(step, {"loss": 1 / step, "rate": 1234.5678901234567})
    before = lines_of(tmp_path)
    MetricsLog(tmp_path, resume_step=20).close()
    assert lines_of(tmp_path) == before[:3]


@pytest.mark.parametrize("torn", ['{"step": 40, "lo', '{"step": 40', "{", ""])
def test_a_torn_last_line_is_dropped_wherever_it_was_cut(tmp_path, torn):
    with closing(MetricsLog(tmp_path, resume_step=0)) as log:
        log.write(10, {"loss": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10]
    with closing(MetricsLog(tmp_path, resume_step=30)) as log:
        log.write(40, {"loss": 0.25})
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 40]
    assert all(json.loads(line) for line in lines_of(tmp_path))


def test_what_is_no_number_is_null_in_the_file_and_nan_when_read(tmp_path):
    values = {"loss": math.nan, "scale": math.inf, "rate": 1.5}
    with closing(MetricsLog(tmp_path, resume_step=0)) as log:
        log.write(1, values)
    (line,) = lines_of(tmp_path)
    refuse = {"parse_constant": lambda name: pytest.fail(f"{name} is not JSON")}
    assert json.loads(line, **refuse) == {"step": 1, "loss": None, "scale": None, "rate": 1.5}
    (read,) = read_metrics(tmp_path)
    assert math.isnan(read["loss"]) and math.isnan(read["scale"]) and read["rate"] == 1.5
    MetricsLog(tmp_path, resume_step=1).close()
    assert lines_of(tmp_path) == [line], "still so after resuming"


def test_a_failing_rewrite_leaves_the_old_file(tmp_path, monkeypatch):
    with closing(MetricsLog(tmp_path, resume_step=0)) as log:
        log.write(10, {"loss": 0.5})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("clipjax.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        MetricsLog(tmp_path, resume_step=5)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert [line["step"] for line in read_metrics(tmp_path)] == [10]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with closing(MetricsLog(tmp_path, resume_step=0)) as log:
        log.write(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []
    assert read_metrics(tmp_path) == []


def test_lines_that_are_torn_not_utf_8_or_without_a_step_are_left_out_and_named_once(tmp_path, caplog):
    log = b'{"step": 1, "loss": 2.0, "note": "text"}\n{"step": 2, "loss": "\xff"}\n{"loss": 3.0}\n\n{"step": "4"}\n{"st'
    (tmp_path / "metrics.jsonl").write_bytes(log)
    for _ in range(2):
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/metrics.jsonl: lines 2, 3, 6 are left out: torn, not UTF-8, or not one of this file's lines."
    ]
    MetricsLog(tmp_path, resume_step=3).close()
    assert lines_of(tmp_path) == ['{"step": 1, "loss": 2.0}']


def test_bad_records_with_unreadable_lines_are_read_without_them(tmp_path):
    whole = {"file": "a.tar", "position": 3, "key": "", "cause": "empty", "error": "", "step": 2}
    (tmp_path / "bad_records.jsonl").write_bytes(json.dumps(whole).encode() + b'\n{"step": 1}\n\xc3\n[1]\n{"file": "b')
    assert read_bad_records(tmp_path) == [whole]


def test_a_full_disk_is_named_with_its_file(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    log.file.close()
    log.file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path}/metrics.jsonl'")):
        log.write(1, {"loss": 1.0})
