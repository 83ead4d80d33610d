"""TensorBoard, W&B and MLflow get the lines of metrics.jsonl, each step once whatever a run goes through."""

import importlib.util
import json
import struct
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, LogConfig
from clipjax.runs.metrics_log import MetricsLog, read_metrics
from clipjax.runs.sinks import SINKS, GivesUp, Row, check_sinks, open_sinks
from clipjax.runs.sinks.delivery import LAST_SECONDS, Delivery
from tests.tiny import tiny_config

PIXELS = np.zeros((4, 4, 3), np.uint8)
ON = {"tensorboard": True, "wandb": "people/clip", "mlflow": "clip"}
AT_ONCE = (0.0, 0.0)


@pytest.fixture(autouse=True)
def local(monkeypatch, tmp_path):
    """Neither W&B nor MLflow knows a server, and both have time."""
    for status in LAST_SECONDS:
        monkeypatch.setitem(LAST_SECONDS, status, 300.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    for name in ("WANDB_DIR", "WANDB_NAME", "MLFLOW_RUN_NAME"):
        monkeypatch.delenv(name, raising=False)


def logging_to(*names, **options):
    log = LogConfig(**{name: ON[name] if name in names else type(ON[name])() for name in SINKS})
    return replace(tiny_config(), log=log, **options)


def start(config, workdir, lines, resume_step=0, *, status="finished", rows=SINKS, say=pytest.fail):
    """One start of a run: these lines of metrics.jsonl, and its end. status None: the process is killed."""
    workdir.mkdir(exist_ok=True)
    sinks = open_sinks(config, workdir, resume_step=resume_step, rows=rows, say=say)
    with MetricsLogClosed(workdir, resume_step, sinks) as log:
        for step, values in lines:
            log.write(step, values)
    sinks.close(status)


class MetricsLogClosed(MetricsLog):
    def __init__(self, workdir, resume_step, sinks):
        super().__init__(workdir, resume_step=resume_step, also=(sinks.write,))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def lines_at(*steps):
    return [(step, {"loss": 1 / step, "zoo/top1": step / 100}) for step in steps]


def records_of(workdir):
    """The records in W&B's own files, in order. W&B's service ends a file soon after a run has finished."""
    found = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        records = read_wandb(path)
        while not any(record.WhichOneof("record_type") == "exit" for record in records):
            time.sleep(0.05)
            records = read_wandb(path)
        found += records
    return found


def read_wandb(path):
    """The records of a .wandb file: LevelDB's log format, around W&B's protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = path.read_bytes(), 7, b"", []
    assert data[:4] in (b":W&B", b"")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4) and at <= len(data):
            found.append(Record.FromString(whole))
            whole = b""
    return found


def wandb_history(workdir):
    rows = []
    for record in records_of(workdir):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append((items["_step"], {name: value for name, value in items.items() if not name.startswith("_")}))
    return rows


def mlflow_client():
    from mlflow import MlflowClient

    return MlflowClient()


def mlflow_run():
    client = mlflow_client()
    (run,) = client.search_runs([client.get_experiment_by_name("clip").experiment_id])
    return run


def mlflow_history(name):
    return [
        (metric.step, metric.value) for metric in mlflow_client().get_metric_history(mlflow_run().info.run_id, name)
    ]


def test_every_sink_is_a_field_of_the_log_section_that_is_off_or_a_local_file_by_default():
    assert {name for name in SINKS if getattr(LogConfig(), name)} == {"tensorboard"}


def test_tensorboard_events_hold_the_numbers_of_metrics_jsonl(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    start(logging_to("tensorboard"), tmp_path, [(3, {"loss": 0.5, "zoo/top1": 0.25})])
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[12 + size + 4 :]
    assert found == {"loss": (3, 0.5), "zoo/top1": (3, 0.25)}


def test_wandb_has_the_steps_of_metrics_jsonl_once_in_one_run_after_a_restart(tmp_path):
    pytest.importorskip("wandb")
    config, workdir = logging_to("wandb"), tmp_path / "emoji"
    start(config, workdir, lines_at(10, 20, 30), status="killed")
    start(config, workdir, [*lines_at(20, 30, 40), (40, {"zoo/r1": 0.5})], resume_step=10)
    assert wandb_history(workdir) == [
        *lines_at(10, 20, 30),
        (40, {"loss": 1 / 40, "zoo/top1": 0.4, "zoo/r1": 0.5}),
    ]
    runs = [record.run for record in records_of(workdir) if record.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.project, run.entity, run.display_name) for run in runs} == {
        (runs[0].run_id, "clip", "people", "emoji")
    }
    keys = [{item.key for item in run.config.update} for run in runs]
    assert "optimizer.learning_rate" in keys[0] and not any("optimizer.learning_rate" in later for later in keys[1:])
    kinds = [record.WhichOneof("record_type") for record in records_of(workdir)]
    exits = [record.exit.exit_code for record in records_of(workdir) if record.WhichOneof("record_type") == "exit"]
    assert exits == [143, 0] and "preempting" in kinds


def test_mlflow_has_the_steps_of_metrics_jsonl_once_in_one_run_after_a_restart(tmp_path):
    pytest.importorskip("mlflow")
    config, workdir = logging_to("mlflow"), tmp_path / "emoji"
    start(config, workdir, lines_at(10, 20, 30), status="killed")
    assert mlflow_run().info.status == "KILLED"
    start(config, workdir, [*lines_at(20, 30, 40), (40, {"bad_records/not (a) picture": 2.0})], resume_step=10)
    assert mlflow_history("loss") == [(step, values["loss"]) for step, values in lines_at(10, 20, 30, 40)]
    assert mlflow_history("bad_records/not _a_ picture") == [(40, 2.0)]
    run = mlflow_run()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "emoji")
    assert run.data.params["optimizer.learning_rate"] == "0.001" and run.data.params["loss.name"] == "sigmoid"


def test_mlflow_gets_pictures_and_the_files_of_the_end(tmp_path):
    pytest.importorskip("mlflow")
    (tmp_path / "report.html").write_text("<p>")
    with open_sinks(logging_to("mlflow"), tmp_path, resume_step=0, say=pytest.fail) as sinks:
        sinks.picture("held_out/similarity", 5, PIXELS)
        sinks.file(tmp_path / "report.html")
        sinks.file(tmp_path / "summary.png")
    client, run = mlflow_client(), mlflow_run().info.run_id
    assert {file.path for file in client.list_artifacts(run)} == {"held_out", "report.html"}
    assert [file.path for file in client.list_artifacts(run, "held_out/similarity")] == ["held_out/similarity/5.png"]


def test_wandb_gets_pictures_also_of_earlier_steps_and_the_files_of_the_end(tmp_path):
    pytest.importorskip("wandb")
    (tmp_path / "report.html").write_text("<p>")
    with open_sinks(logging_to("wandb"), tmp_path, resume_step=0, say=pytest.fail) as sinks:
        sinks.write(5, {"loss": 0.5})
        sinks.picture("held_out/projection", 0, PIXELS)
        sinks.file(tmp_path / "report.html")
    ((step, values),) = wandb_history(tmp_path)
    assert step == 5 and values["loss"] == 0.5
    (picture,) = tmp_path.glob("wandb/offline-run-*/files/media/images/held_out/*.png")
    (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/report*.html")
    assert picture.stat().st_size and page.stat().st_size


def test_a_run_that_begins_again_with_another_configuration_is_another_run_and_with_other_logs_the_same(tmp_path):
    pytest.importorskip("mlflow")
    workdir, config = tmp_path / "run", logging_to("mlflow")
    start(config, workdir, lines_at(1, 2), status="killed")
    first = mlflow_run().info.run_id
    start(replace(config, log=replace(config.log, every_steps=1)), workdir, lines_at(1, 2, 3))
    assert mlflow_run().info.run_id == first and [step for step, _ in mlflow_history("loss")] == [1, 2, 3]
    start(replace(config, seed=1), workdir, lines_at(1))
    client = mlflow_client()
    assert len(client.search_runs([client.get_experiment_by_name("clip").experiment_id])) == 2


@pytest.mark.parametrize(
    "error, status",
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_an_exception_marks_the_run_as_failed_and_an_interrupt_as_killed(tmp_path, error, status):
    ends = []
    with pytest.raises(error) if error else open_sinks(logging_to(), tmp_path, resume_step=0):
        with open_sinks(
            logging_to("mlflow"), tmp_path, resume_step=0, rows={"mlflow": Row("Fake", "", lambda *_: Fake(ends))}
        ):
            if error:
                raise error("why")
    assert [end.upper() for end in ends] == [status]


class Fake:
    """A sink that keeps what it gets, after failures."""

    def __init__(self, ends=None, failures=(), got=None):
        self.ends, self.failures, self.got = [] if ends is None else ends, list(failures), [] if got is None else got

    def write(self, step, values, at):
        if self.failures and (failure := self.failures.pop(0)):
            raise failure
        self.got.append((step, values))

    def picture(self, name, step, pixels):
        raise OSError("no space")

    file = picture

    def close(self, status):
        self.ends.append(status)


def deliver(sink, steps, told, **options):
    delivery = Delivery("Fake", sink if callable(sink) else lambda: sink, say=told.append, retry=AT_ONCE, **options)
    for step in steps:
        delivery.write(step, {"loss": float(step)})
        delivery.picture("a", step, PIXELS)
    delivery.close("finished")
    delivery.join("finished")
    return told


def test_lines_wait_while_a_sink_fails_and_arrive_in_order():
    told, sink = [], Fake(failures=[OSError("down")] * 5)
    delivery = Delivery("Fake", lambda: sink, say=told.append, retry=AT_ONCE)
    for step in (1, 2, 3):
        delivery.write(step, {})
    while delivery.calls:  # the thread takes them as fast as it can
        time.sleep(0.01)
    delivery.close("finished")
    delivery.join("finished")
    assert [step for step, _ in sink.got] == [1, 2, 3] and sink.ends == ["finished"]
    assert told == ["Fake: down; training goes on, and it is tried again later.", "Fake: it works again."]


def test_a_sink_that_gives_up_is_told_of_once_and_nothing_else_happens():
    sink = Fake(failures=[GivesUp("No space left on device.")])
    assert deliver(sink, [1, 2, 3], []) == [
        "Fake: No space left on device; training goes on without it, and metrics.jsonl has everything."
    ]
    assert not sink.got


def test_a_sink_that_cannot_be_opened_never_stops_a_run_and_the_end_counts_what_is_missing():
    def refuse():
        raise ConnectionError("Max retries exceeded\nwith a long story")

    assert deliver(refuse, [1, 2], []) == [
        "Fake: Max retries exceeded; training goes on, and it is tried again later.",
        "Fake: 2 lines were not delivered; metrics.jsonl has them.",
    ]


def test_a_picture_that_fails_is_left_out_and_told_of_once():
    sink, told = Fake(), []
    deliver(sink, [1, 2, 3], told)
    assert [step for step, _ in sink.got] == [1, 2, 3] and told == ["Fake: a picture was left out: no space"]


def test_a_full_disk_ends_tensorboard_alone(tmp_path, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    write, calls = EventsWriter.write_event, []

    def full(self, event):
        calls.append(event)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return write(self, event)

    monkeypatch.setattr(EventsWriter, "write_event", full)
    told = []
    start(logging_to("tensorboard"), tmp_path, lines_at(1, 2, 3, 4), say=told.append)
    assert told == [
        f"TensorBoard: No space left on device: '{tmp_path}/tensorboard'; training goes on without it, and "
        "metrics.jsonl has everything."
    ]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_wandb_without_a_login_or_a_network_writes_local_files_and_says_so_once(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")
    init = wandb.init

    def without_login(**options):
        if options.get("mode") != "offline":
            raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")
        return init(**options)

    monkeypatch.setattr(wandb, "init", without_login)
    monkeypatch.delenv("WANDB_MODE")
    start(logging_to("wandb"), tmp_path / "run", lines_at(1))
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("warning: W&B: No API key configured. Use `wandb login`"), lines
    assert "wandb/ in --workdir keeps what W&B would get; `wandb sync` sends it" in lines[0]
    assert wandb_history(tmp_path / "run") == lines_at(1)


def test_a_missing_package_is_refused_by_name_with_the_command_that_installs_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("wandb", "mlflow") else find(name))
    for name in ("wandb", "mlflow"):
        with pytest.raises(ConfigError, match=rf"pip install 'clipjax\[{name}\]'"):
            check_sinks(logging_to(name).log)
    assert check_sinks(logging_to("tensorboard").log) == "tensorboard"


def test_only_the_first_process_has_sinks(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with open_sinks(logging_to(*SINKS), tmp_path, resume_step=0) as sinks:
        sinks.write(1, {"loss": 1.0})
        assert not sinks.deliveries
    assert list(tmp_path.iterdir()) == []
