"""One run per workdir, whatever happened to the previous one; an unwritable workdir is reported at once."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest
from absl import logging

from clipjax.commands import train
from clipjax.runs.lock import RunLockError, run_lock

HOLD = """
import sys, time
from clipjax.runs.lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def refuse_to_compile(monkeypatch):
    monkeypatch.setattr(train, "compile_step", lambda *_: pytest.fail("compiled before the workdir was looked at"))


def test_a_second_run_is_refused_before_compiling_and_told_who_has_the_workdir(tmp_path, config, monkeypatch):
    refuse_to_compile(monkeypatch)
    owner = f'in use by another run: .*"pid": {os.getpid()}, "started"'
    with run_lock(tmp_path), pytest.raises(RunLockError, match=owner):
        train.run(config, tmp_path)
    with run_lock(tmp_path):
        pass


def test_a_lock_is_free_at_once_after_kill_9_and_its_file_stays(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunLockError, match=f'"pid": {holder.pid}'), run_lock(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == holder.pid
    with run_lock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_what_stands_in_the_file_and_how_old_it_is_decide_nothing(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text("torn {")
    tomorrow = time.time() + 86_400
    os.utime(path, (tomorrow, tomorrow))
    with run_lock(tmp_path), pytest.raises(RunLockError, match="in use"), run_lock(tmp_path):
        pass


def test_the_first_process_holds_the_lock_for_all_of_a_run(tmp_path, monkeypatch):
    with run_lock(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with run_lock(tmp_path):
            pass


def test_a_read_only_workdir_is_told_before_compiling(tmp_path, config, monkeypatch):
    refuse_to_compile(monkeypatch)
    monkeypatch.chdir(tmp_path)
    os.chmod(tmp_path, 0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # a user whom permissions bind
    try:
        with pytest.raises(RunLockError, match=r"--workdir=run cannot be written to \(Permission denied\)"):
            train.run(config, "run")
    finally:
        if root:
            os.seteuid(0)
        os.chmod(tmp_path, 0o755)


def test_a_file_system_without_locks_is_warned_about_and_used(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    lines = []
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    with run_lock(tmp_path):
        assert lines == [f"{tmp_path} is on a file system without locks: a second run in it would not be refused."]


def test_an_error_of_the_run_passes_through_as_it_is(tmp_path):
    with pytest.raises(OSError, match="disk gone"), run_lock(tmp_path):
        raise OSError("disk gone")
