"""Signals at any moment, full disks, folders that disappear: one line, a documented exit code, nothing half-written."""

import json
import os
import subprocess
import sys

import pytest

from clipjax.__main__ import COMMANDS
from tests.runs import ROOT

# How lines begin that every run prints; the table of where the time went is indented.
PROGRESS = ("step ", "Wrote ", "Memory: ", "Compiled programs: ", "Where the time went: ", "  ")


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    """{fault: (exit code, lines of the output without those of progress, steps of the checkpoints)}."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    env |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("jax")), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.reliability.faulty_commands", str(folder)]
    process = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    outcomes = json.loads(process.stdout.splitlines()[-1])
    kept = {
        name: [line for line in output.splitlines() if not line.startswith(PROGRESS)]
        for name, (_, output, _) in outcomes.items()
    }
    return {name: (code, kept[name], steps) for name, (code, _, steps) in outcomes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, code, line, steps",
    [
        ("Ctrl-C in step 4", 130, "Ctrl-C: saved step 4 in {}; the same command continues from there.", ["3", "4"]),
        ("SIGTERM in a callback", 0, "SIGTERM: saved step 4 in {}; the same command continues from there.", ["3", "4"]),
        ("SIGTERM while saving", 0, "SIGTERM: saved step 4 in {}; the same command continues from there.", ["3", "4"]),
        ("SIGTERM while compiling", 143, "SIGTERM: stopped before a new step; {} has no checkpoint, and the same "
         "command starts again.", []),
        ("SIGTERM in the report", 0, "SIGTERM: all 12 steps are saved in {}; clipjax report makes the report that is "
         "missing.", ["12", "3", "6", "9"]),
        ("workdir renamed", 1, "error: --workdir={} was removed or renamed under this run. It stopped and writes "
         "nothing more. Put the folder back and start the same command, which continues from the last checkpoint in "
         "it.", []),
        ("config.json full", 1, "error: {}/config.json: No space left on device. Make room and run the command again; "
         "what is complete is kept.", []),
        ("report.html full", 1, "error: {}/report.html: No space left on device. Make room and run the command again; "
         "what is complete is kept.", ["12", "3", "6", "9"]),
        ("metrics.jsonl full", 1, "error: {}/metrics.jsonl: No space left on device. Make room and run the command "
         "again; what is complete is kept.", []),
    ],
)  # fmt: skip
def test_a_signal_or_fault_in_training_gives_one_line_and_saves_what_it_can(found, folder, fault, code, line, steps):
    assert found[fault] == (code, [line.format(folder / "faulty")], steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, code, words",
    [
        ("SIGTERM twice in step 4", 143, "SIGTERM: stopped at once; "),
        ("a file in the way of checkpoints", 1, "Not a directory: '"),
        ("lock of another run", 1, "run.lock was replaced under this run: nobody holds it now. It stopped"),
        ("events full", 0, "warning: TensorBoard: No space left on device: "),
    ],
)
def test_a_fault_at_once_or_in_a_thread_gives_one_message_and_no_traceback(found, fault, code, words):
    found_code, lines, _ = found[fault]
    assert found_code == code and words in lines[0], lines
    assert len(lines) <= 2 and not any("Traceback" in line or "Exception" in line for line in lines), lines


@pytest.mark.slow
def test_sigusr2_profiles_the_next_steps_and_ends_nothing(found, folder):
    code, lines, steps = found["SIGUSR2 in step 4"]
    assert code == 0 and "12" in steps and lines[0] == "SIGUSR2: profiling steps 5 to 9", lines
    assert lines[1].startswith(f"profiled steps 5 to 9: {folder / 'faulty' / 'profile'}")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_every_command_with_130_and_one_line(found, command):
    assert found[command] == (130, [found[command][1][0]], [])
    assert found[command][1][0].startswith(("Ctrl-C: clipjax ", "Ctrl-C: stopped "))
