"""Every second of a run is in its accounts once: in steps that count, in something else, lost, or down."""

import contextlib
import dataclasses
import io
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from clipjax.commands import train
from clipjax.report.goodput import describe_goodput
from clipjax.runs.accounts import PHASES, Accounts, process_started
from clipjax.runs.goodput import FILE, GoodputLog, read_goodput, read_lines, summarise
from clipjax.runs.metrics_log import read_metrics

STATE = jnp.zeros(1)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def line(start, time, step, steps=0, /, **seconds):
    end = {"end": seconds.pop("end")} if "end" in seconds else {}
    return {"start": start, "time": float(time), "step": step, "steps": steps, "seconds": seconds} | end


def test_phases_inside_phases_are_counted_once():
    clock = Clock()
    accounts = Accounts(clock=clock)
    clock.passes(2)
    with accounts("evaluation"):
        clock.passes(3)
        with accounts("other"):
            clock.passes(5)
        clock.passes(7)
    accounts.enter("step")
    clock.passes(11)
    accounts.move(4, "data_wait")
    accounts.move(100, "compile")  # no more than there is
    assert accounts.take() == {"data_wait": 4, "start": 2, "compile": 7, "evaluation": 10, "other": 5}
    assert accounts.take() == {} and accounts.elapsed() == 28


def test_time_before_the_accounts_is_start():
    clock = Clock()
    accounts = Accounts(started=process_started(), clock=clock)
    taken = accounts.take()
    assert set(taken) == {"start"} and taken["start"] == pytest.approx(accounts.elapsed()) and taken["start"] > 0


def test_accounts_of_killed_and_restarted_starts_add_up_to_the_time_that_passed():
    lines = [
        line(1, 1000, 0), line(1, 1030, 0, start=10.0, compile=20.0), line(1, 1090, 6, 6, step=58.0, data_wait=2.0),
        line(1, 1100, 6, checkpoint=10.0), line(1, 1130, 9, 3, step=29.0, evaluation=1.0),  # killed
        line(2, 1200, 6), line(2, 1220, 6, start=5.0, restore=15.0), line(2, 1250, 9, 3, step=30.0),
        line(2, 1260, 9, checkpoint=10.0), line(2, 1262, 10, 1, step=2.0, end="stopped"),
        line(3, 1300, 9), line(3, 1310, 9, start=10.0), line(3, 1340, 12, 3, step=30.0, end="finished"),
    ]  # fmt: skip
    found = summarise(lines)
    assert found.wall == pytest.approx(340)
    assert found.seconds["down"] == pytest.approx(70 + 38)
    assert found.seconds["lost"] == pytest.approx(30 + 2) and found.lost_steps == 4
    assert found.seconds["step"] == pytest.approx(58 + 30 + 30) and found.goodput == pytest.approx(118 / 340)
    assert (found.starts, found.step, found.first_step) == (3, 12, 0)
    assert "4 steps made again after a restart" in describe_goodput(found)


def test_an_older_checkpoint_makes_steps_of_every_earlier_start_lost():
    lines = [
        line(1, 0, 0), line(1, 10, 3, 3, step=10.0), line(1, 20, 6, 3, step=10.0),
        line(2, 20, 6), line(2, 30, 9, 3, step=10.0),
        line(3, 30, 3), line(3, 40, 6, 3, step=10.0),
    ]  # fmt: skip
    found = summarise(lines)
    assert found.lost_steps == 6 and found.seconds["step"] == 20 and found.wall == 40


def test_the_time_between_a_finished_run_and_its_extension_is_nobodys_loss():
    lines = [
        line(1, 0, 0),
        line(1, 10, 5, 5, step=10.0, end="finished"),
        line(2, 5000, 5),
        line(2, 5010, 9, 4, step=10.0),
    ]
    found = summarise(lines)
    assert found.wall == 20 and found.goodput == 1 and found.seconds["down"] == 0


def test_a_clock_that_was_set_back_makes_no_negative_time():
    found = summarise([line(1, 1000, 0), line(1, 1010, 5, 5, step=10.0), line(2, 900, 5), line(2, 905, 5, start=5.0)])
    assert found.seconds["down"] == 0 and found.wall == 15


def test_the_log_writes_seldom_and_its_lines_hold_all_of_the_time(tmp_path):
    clock = Clock()
    with GoodputLog(tmp_path, Accounts(clock=clock), 0) as log:
        clock.passes(30)
        log.accounts.enter("step")
        save = log.during("checkpoint", lambda state: clock.passes(4))
        for step in range(1, 1001):
            clock.passes(0.1)
            log.step_done(step)
            if step % 500 == 0:
                save(STATE)
        log.finished = True
    lines = read_lines(tmp_path)
    assert len(lines) < 150 and lines[-1]["end"] == "finished"
    found = read_goodput(tmp_path)
    assert found.seconds["step"] == pytest.approx(100) and found.seconds["checkpoint"] == pytest.approx(8)
    assert found.wall == pytest.approx(138) == lines[-1]["time"] - lines[0]["time"]
    assert {entry["step"] for entry in lines if entry["seconds"].get("checkpoint")} == {500, 1000}


def test_lines_that_are_torn_or_damaged_are_left_out_and_a_new_start_goes_on(tmp_path):
    good = [line(1, 0, 0), line(1, 10, 5, 5, step=10.0)]
    bad = [
        '{"start": 1, "time": 11, "ste', '{"start": "x", "time": 1, "step": 2}', '{"start": 1, "time": -5, "step": 2}',
        '{"start": 1, "time": 1, "step": 2, "seconds": {"step": "a"}}',
        '{"start": 1, "time": 1, "step": 2, "seconds": {"sleep": 1}}',
        '{"start": 1, "time": 1, "step": 2, "seconds": 7}', '{"start": 1, "time": 1, "step": 2, "memory": [1]}', "[]",
    ]  # fmt: skip
    text = "".join(json.dumps(entry) + "\n" for entry in good) + "\n".join(bad)
    (tmp_path / FILE).write_text(text)
    assert read_goodput(tmp_path).wall == 10
    with GoodputLog(tmp_path, Accounts(), 5) as log:
        assert log.start == 2
    assert [entry["start"] for entry in read_lines(tmp_path)] == [1, 1, 2, 2]
    assert not any(piece in (tmp_path / FILE).read_text() for piece in ('"ste\n', "sleep"))


def test_an_error_of_the_run_is_told_and_not_that_of_its_accounts(tmp_path):
    held = [True]

    def check():
        if not held[0]:
            raise OSError("the workdir is gone")

    with pytest.raises(ValueError, match="of the run"):  # noqa: SIM117
        with GoodputLog(tmp_path, Accounts(), 0, check):
            held[0] = False
            raise ValueError("of the run")


def test_a_run_without_accounts_has_no_table(tmp_path):
    assert read_goodput(tmp_path) is None and describe_goodput(None) == ""


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with GoodputLog(tmp_path, Accounts(), 0) as log:
        log.step_done(1)
        log.write()
        assert log.share() == {}
    assert not (tmp_path / FILE).exists()


def test_while_devices_compute_nobody_waits_for_data():
    class Value:
        ready = False

        def is_ready(self):
            return self.ready

    log = GoodputLog.__new__(GoodputLog)
    log.last = None
    assert not log.busy()
    log.last = {"loss": Value()}
    assert log.busy()
    Value.ready = True
    assert not log.busy()


@pytest.fixture(scope="module")
def restarted(whole, config, tmp_path_factory):
    """(workdir, output): a run killed behind step 9, when checkpoint 6 was the last, and started again to be traced."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(whole, workdir)
    for step in ("9", "12"):
        shutil.rmtree(workdir / "checkpoints" / step)
    lines = [entry for entry in read_lines(workdir) if entry["step"] <= 9]
    (workdir / FILE).write_text("".join(json.dumps(entry) + "\n" for entry in lines) + '{"start": 1, "ti')
    log = dataclasses.replace(config.log, profile="5:8")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train.run(dataclasses.replace(config, log=log), workdir)
    return workdir, output.getvalue()


def test_a_run_accounts_for_all_of_its_time(whole):
    lines, found = read_lines(whole), read_goodput(whole)
    assert found.wall == pytest.approx(lines[-1]["time"] - lines[0]["time"], abs=1e-3)
    assert found.step == 12 and found.starts == 1 and found.lost_steps == 0
    assert sum(entry["steps"] for entry in lines) == 12 and lines[-1]["end"] == "finished"
    for phase in ("step", "start", "compile", "checkpoint"):
        assert found.seconds[phase] > 0, phase
    assert found.seconds["restore"] == found.seconds["down"] == found.seconds["lost"] == 0


def test_a_restart_after_a_kill_adds_up_too_and_knows_what_was_lost(restarted):
    workdir, output = restarted
    lines, found = read_lines(workdir), read_goodput(workdir)
    assert found.starts == 2 and found.step == 12
    assert found.lost_steps == sum(entry["steps"] for entry in lines if entry["start"] == 1 and entry["step"] > 6) > 0
    assert found.seconds["restore"] > 0 and found.seconds["lost"] > 0
    assert found.wall == pytest.approx(lines[-1]["time"] - lines[0]["time"], abs=1e-3)
    table = output[output.index("Where the time went") :]
    assert " in 2 starts\n" in table and "  lost steps " in table and "  peak memory: " in table


def test_metrics_say_flops_memory_and_goodput_and_no_mfu_of_a_processor(whole):
    lines = [entry for entry in read_metrics(whole) if "loss" in entry]
    assert len(lines) == 12
    for entry in lines:
        assert entry["model_flops_per_second"] > 0 and entry["peak_host_bytes"] > 1e7 and 0 <= entry["goodput"] <= 1
        assert "mfu" not in entry and "peak_device_bytes" not in entry


def test_a_profile_window_that_a_restart_begins_inside_traces_the_rest_and_names_its_steps(restarted):
    workdir, output = restarted
    assert "the run goes on after step 6, so that steps 7 to 8 are traced.\n" in output
    assert "profiling steps 7 to 8" in output
    (file,) = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
    events = itertools.chain.from_iterable(
        plane_line.events
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for plane_line in plane.lines
    )
    assert {dict(event.stats)["step_num"] for event in events if event.name == "train"} == {7, 8}


def test_every_phase_has_a_row():
    from clipjax.report.goodput import LABELS
    from clipjax.runs.goodput import ROWS

    assert tuple(LABELS) == ROWS and set(PHASES) <= set(ROWS)
