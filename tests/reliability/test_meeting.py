"""Processes wait for one another before their first collective, and name who is missing."""

import os

import pytest

from clipjax import processes
from tests import runs
from tests.ports import free_port


class Store:
    """A key-value store in which process 1 appears at the third look."""

    def __init__(self, comes: bool):
        self.found, self.looks, self.comes = {}, 0, comes

    def key_value_set(self, key, value):
        self.found[key] = value

    def key_value_dir_get(self, folder):
        self.looks += 1
        if self.looks == 3 and self.comes:
            self.found[f"{folder}/1"] = "host"
        return list(self.found.items())


@pytest.fixture
def two(monkeypatch):
    clock = [0.0]

    def sleep(seconds):
        clock[0] += 40.0

    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(processes.time, "sleep", sleep)
    monkeypatch.setattr(processes, "_met", set())
    return lambda store: monkeypatch.setattr(processes, "store", lambda: store)


def test_a_process_waits_for_the_others_once_and_names_them(two, capsys):
    store = Store(comes=True)
    two(store)
    processes.meet("the first step")
    assert capsys.readouterr().out == "Waiting for other processes before the first step. Missing of 2: 1\n"
    processes.meet("the first step")
    assert store.looks == 3


def test_a_process_that_never_comes_ends_the_wait_by_name(two):
    two(Store(comes=False))
    with pytest.raises(processes.PeersError, match="did not reach the first step in 2h 00m: 1"):
        processes.meet("the first step")


@pytest.mark.slow
def test_processes_that_reach_their_first_collective_35_seconds_apart_train(folder):
    experiment, workdir = folder / "late_experiment.py", folder / "late"
    experiment.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "import clipjax.mesh as mesh\n"
        "from tests.reliability.faulty import faulty_config\n\n\n"
        "def get_config():\n"
        "    meet = mesh.meet\n"
        "    if os.environ['LATE'] == '1':\n"
        "        mesh.meet = lambda what: (time.sleep(35), meet(what))\n"
        f"    return faulty_config(Path({str(folder)!r}))\n"
    )
    (folder / "fault.json").write_text("{}")
    port = free_port()
    started = []
    for i in range(2):
        os.environ["LATE"] = str(i)
        started.append(
            runs.start("train", f"--config={experiment}", f"--workdir={workdir}", "--config.total_steps=2",
                       f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}", devices=4)
        )  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "Waiting for other processes before the first collective. Missing of 2: 1" in outputs[0]
