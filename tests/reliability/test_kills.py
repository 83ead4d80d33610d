"""benchmarks.kills at a small size; docs/reliability.md is about the long runs."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILL, TERM = signal.SIGKILL, signal.SIGTERM


@pytest.fixture(scope="module")
def kills():
    """The script, which sets variables of JAX's import: they are put back."""
    before = dict(os.environ)
    from benchmarks import kills

    os.environ.clear()
    os.environ.update(before)
    return kills


def finished_run(folder, step=24):
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"total_steps": 24}))
    return folder


def test_a_life_that_ends_by_itself_must_have_reached_the_last_step(kills, tmp_path):
    done, other = finished_run(tmp_path / "done"), finished_run(tmp_path / "other", step=21)
    assert kills.judge(done, [0, 0], None, None) == kills.End(True, None, "")
    assert not kills.judge(other, [0, 0], None, None).finished
    assert "[0, 1]" in kills.judge(done, [0, 1], None, None).wrong
    assert kills.judge(done, [-TERM], None, None).wrong, "no signal was sent"


def test_a_killed_process_counts_and_one_that_claims_success_beside_it_does_not(kills, tmp_path):
    other = finished_run(tmp_path / "other", step=21)
    spared = kills.Kill(KILL, 1, "step", 0.1, spare_others=True)
    assert kills.judge(other, [1, -KILL], spared, "step") == kills.End(False, "step", "")
    assert "all was well" in kills.judge(other, [0, -KILL], spared, "step").wrong
    assert kills.judge(other, [-KILL, 0], spared, "step").wrong, "the wrong process was killed"


def test_sigterm_ends_in_143_or_zero(kills, tmp_path):
    kill = kills.Kill(TERM, 0, "step", 0.1, spare_others=True)
    folder = finished_run(tmp_path / "run", step=21)
    assert kills.judge(folder, [0, 0], kill, "step") == kills.End(False, "step", "")
    assert kills.judge(folder, [143, 143], kill, "compile").wrong == ""
    assert kills.judge(folder, [143, 1], kill, "compile") == kills.End(False, "compile", "")
    assert kills.judge(folder, [0, 1], kill, "compile").wrong, "all processes save together"
    assert not kills.judge(finished_run(tmp_path / "done"), [0, -signal.SIGABRT], kill, "report").wrong
    assert kills.judge(folder, [1, 0], kill, "step").wrong
    assert kills.judge(folder, [-TERM], kill, "step").wrong, "nobody handled the signal"


def test_every_phase_and_both_signals_are_drawn(kills):
    rng = random.Random(0)
    drawn = [kills.draw_kill(rng, 4, figures=True) for _ in range(300)]
    assert {kill.phase for kill in drawn} == {"", *kills.PHASES}
    assert {kill.index for kill in drawn} == set(range(4))
    assert 60 < sum(kill.number == TERM for kill in drawn) < 140
    assert "report" not in {kills.draw_kill(rng, 1, figures=False).phase for _ in range(100)}


def test_every_difference_is_named(kills):
    one = {"state": {"params/a": "1", "step": "2"}, "curve": [{"step": 1}], "bad_records": ""}
    assert kills.compare(one, one) == []
    other = {"state": {"params/a": "1", "step": "3"}, "curve": [{"step": 2}], "bad_records": "x"}
    assert kills.compare(one, other) == ["step", "curve", "bad_records"]
    assert kills.compare(one, {**one, "state": {"step": "2"}}) == ["params/a"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_killed_at_random_moments_end_as_one_left_alone(processes, tmp_path):
    out = tmp_path / "kills.json"
    command = f"-m benchmarks.kills --workdir={tmp_path}/kills --processes={processes} --kills=4 --out={out}"
    process = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    found = json.loads(out.read_text())
    assert found["equal"] and found["kills"] == 4 and found["steps"] == 24 and found["bad_records"] > 0
