"""A run that makes no steps says so once, with the stacks of all threads, and again when it goes on."""

import threading
import time

import jax
import pytest

from clipjax import processes
from clipjax.config import LogConfig
from clipjax.runs.accounts import Accounts
from clipjax.runs.watchdog import FIRST_PATIENCE, KEY, PATIENCE, Watchdog

FLOOR = 100.0


class Clock:
    """A clock that is set by hand, and a watchdog that looks at it every second."""

    def __init__(self, workdir, **log):
        self.now, self.lines, self.left = 0.0, [], []
        self.accounts = Accounts(clock=lambda: self.now)
        log = LogConfig(**{"watchdog": 20.0, "watchdog_seconds": FLOOR, **log})
        self.dog = Watchdog(
            log, workdir, self.accounts, clock=lambda: self.now, say=self.lines.append, leave=self.left.append
        )

    def passes(self, seconds):
        for _ in range(int(seconds)):
            self.now += 1.0
            self.dog.look()

    def steps(self, count, seconds=2.0):
        """The stream of a loop that has made `count` steps, with the batch of another."""
        self.accounts.enter("step")
        stream = self.dog.waiting(iter([({"image": n}, {}, 0.0) for n in range(count + 1)]))
        for step in range(1, count + 1):
            next(stream)
            self.passes(seconds)
            self.dog.step_done(step)
        return stream


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


def test_a_step_beyond_the_floor_is_told_once_with_the_stacks_and_again_when_it_goes_on(clock, tmp_path):
    stream = clock.steps(5)
    next(stream)
    clock.passes(FLOOR)
    assert clock.lines == []
    clock.passes(3 * FLOOR)
    (line,) = clock.lines
    assert line.startswith("nothing has moved for 1m 4") and "(the median step took 2 s)" in line
    assert "is in step 6, with its batch." in line and line.endswith(f"{tmp_path}/stalls/step_5_process_0.txt.")
    text = (tmp_path / "stalls" / "step_5_process_0.txt").read_text()
    assert line in text and "last step made: 5" in text
    assert "MainThread" in text and "(most recent call first)" in text and "in stacks" in text
    clock.dog.step_done(6)
    clock.passes(2)
    assert len(clock.lines) == 2 and clock.lines[1].startswith("the run goes on after 6m 4")
    assert clock.left == [], "it only tells"


def test_waiting_for_data_is_named_and_each_stall_is_told(clock):
    stream = clock.steps(5)
    next(stream)
    clock.dog.step_done(6)
    waiting = clock.dog.waiting(iter([]))
    for _ in waiting:
        pass
    clock.passes(2 * FLOOR)
    assert "waiting for the data of step 7" in clock.lines[0]
    clock.dog.at = "step"
    clock.passes(2 * FLOOR)
    assert ["in step 7" in line for line in clock.lines] == [False, True, True]


def test_slow_steps_are_measured_by_their_median(clock):
    stream = clock.steps(5, seconds=30)
    next(stream)
    clock.passes(20 * 30)
    assert clock.lines == []
    clock.passes(30)
    assert len(clock.lines) == 1


@pytest.mark.parametrize("phase", ["start", "compile", "restore", "evaluation", "checkpoint", "other"])
def test_what_is_no_step_has_patience(clock, phase):
    clock.steps(5)
    clock.accounts.enter(phase)
    clock.passes(PATIENCE * FLOOR)
    assert clock.lines == []
    clock.passes(10)
    assert len(clock.lines) == 1


def test_a_step_that_compiles_has_patience_and_is_no_measure(clock):
    class Steps:
        def compile(self, shapes):
            clock.passes(1000)
            return 3.0

    steps = Steps()
    assert clock.dog.compiling(None) is None and clock.dog.compiling(steps) is steps
    stream = clock.steps(5)
    next(stream)
    assert steps.compile({}) == 3.0
    clock.passes(1000)  # the other processes still compile
    clock.dog.step_done(6)
    assert clock.lines == [] and max(clock.dog.durations) < 10
    clock.passes(2 * FLOOR)
    assert len(clock.lines) == 1, "from then on, steps are steps"


def test_the_first_steps_have_no_median_and_some_patience(clock):
    stream = clock.steps(1)
    next(stream)
    clock.passes(FIRST_PATIENCE * FLOOR)
    assert clock.lines == []
    clock.passes(10)
    assert len(clock.lines) == 1


def test_a_machine_that_was_asleep_is_no_stall(clock):
    clock.steps(5)
    clock.passes(10)
    clock.now += 50 * FLOOR
    clock.passes(10)
    assert clock.lines == []


def test_the_run_is_ended_where_the_configuration_says_so_and_after_the_stacks_are_written(tmp_path):
    clock = Clock(tmp_path, watchdog_action="exit")
    clock.dog.leave = lambda reason: clock.left.append((reason, len(list((tmp_path / "stalls").iterdir()))))
    clock.steps(5)
    clock.passes(FLOOR + 10)
    ((reason, files),) = clock.left
    assert reason.startswith("nothing has moved for 1m 4") and files == 1
    assert clock.lines[0].endswith("; the run ends, because config.log.watchdog_action='exit'.")


def test_stacks_that_cannot_be_written_are_printed(tmp_path):
    (tmp_path / "stalls").write_text("a file in the way")
    clock = Clock(tmp_path)
    clock.steps(5)
    clock.passes(FLOOR + 10)
    assert "could not be written" in clock.lines[1] and "(most recent call first)" in clock.lines[1]


def test_process_0_names_the_processes_that_hold_a_step_up(clock, tmp_path, monkeypatch):
    kept = {}

    class Store:
        def key_value_set(self, key, value, allow_overwrite=False):
            assert allow_overwrite
            kept[key] = value

        def key_value_dir_get(self, folder):
            return [(key, value) for key, value in kept.items() if key.startswith(folder)]

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes, "store", Store)
    other = Clock(tmp_path)
    other.steps(5)
    other.dog.at = "data"
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    other.passes(FLOOR)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    next(clock.steps(5))
    clock.passes(2 * FLOOR)
    assert "It waits for others: process 2 on " in clock.lines[0]
    assert "is waiting for the data of step 6. The stacks" in clock.lines[0] and f"{KEY}/0" in kept
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    other.dog.at = "step"
    other.passes(1)
    assert '"where": ""' in kept[f"{KEY}/2"], "it has gone on"


def test_0_turns_it_off_and_its_thread_ends_with_the_block(tmp_path):
    names = lambda: [thread.name for thread in threading.enumerate()]  # noqa: E731
    with Watchdog(LogConfig(watchdog=0.0), tmp_path, Accounts()):
        assert "watchdog" not in names()
    with Watchdog(LogConfig(), tmp_path, Accounts()):
        assert "watchdog" in names()
    while "watchdog" in names():
        time.sleep(0.05)


def test_a_real_stall_of_the_data_is_told_by_the_thread(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("clipjax.runs.watchdog.POLL_SECONDS", 0.02)
    told = threading.Event()

    def batches():
        for number in range(5):
            yield {"image": number}, {}, 0.0
        assert told.wait(60), "the source sleeps until somebody notices"
        yield {"image": 5}, {}, 0.0

    accounts = Accounts()
    with Watchdog(LogConfig(watchdog_seconds=0.2), tmp_path, accounts) as dog:
        say, lines = dog.say, []

        def heard(line):
            say(line)
            lines.append(line)
            told.set()

        dog.say = heard
        accounts.enter("step")
        for step, _ in enumerate(dog.waiting(batches()), 1):
            dog.step_done(step)
        while len(lines) < 2:
            time.sleep(0.01)
    assert "waiting for the data of step 6" in lines[0] and lines[1].startswith("the run goes on")
    assert "in batches" in (tmp_path / "stalls" / "step_5_process_0.txt").read_text()
    assert capfd.readouterr().err.startswith("watchdog: nothing has moved for ")
