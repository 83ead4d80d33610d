"""When one of two processes fails, the other reports it and stops in bounded time, and a restart loses nothing."""

import json
import socket
import time

import numpy as np
import pytest

from clipjax.processes import HEARTBEAT_SECONDS
from tests import runs
from tests.ports import free_port
from tests.reliability.faulty import write_faulty_experiment

START = 400  # seconds that two processes may take to reach their fault, even on a loaded machine


class Pair:
    def __init__(self, folder, workdir):
        self.folder, self.workdir = folder, workdir
        self.experiment = write_faulty_experiment(folder)

    def run(self, fault, limit):
        """[(exit status, output)] of both processes, which suffer `fault` and must end within `limit` seconds of it."""
        (self.folder / "fault.json").write_text(json.dumps(fault))
        port = free_port()
        processes = [
            runs.start("train", f"--config={self.experiment}", f"--workdir={self.workdir}",
                       f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}", devices=4)
            for i in range(2)
        ]  # fmt: skip
        first_end = None
        deadline = time.monotonic() + START
        try:
            while any(process.poll() is None for process in processes):
                if first_end is None and any(process.poll() is not None for process in processes):
                    first_end = time.monotonic()
                    deadline = first_end + limit
                assert time.monotonic() < deadline, f"{limit} s after {fault} not both have ended"
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
        return [(process.returncode, process.communicate()[0]) for process in processes]


@pytest.mark.slow
def test_a_process_that_fails_dies_or_is_preempted_ends_the_run_and_a_restart_goes_on(folder, whole):
    pair = Pair(folder, folder / "pair")

    (status, output), (failed, why) = pair.run({"process": 1, "batch": 4, "what": "DataError"}, limit=15)
    assert failed == 1 and "error: half of the records are bad" in why
    assert status == 1 and f"error: process 1 on {socket.gethostname()} stopped: DataError: half of the" in output

    (failed, why), (status, output) = pair.run({"process": 0, "batch": 6, "what": "DataError"}, limit=15)
    assert failed == 1 and "error: half of the records are bad" in why
    assert status == 1 and f"error: process 0 on {socket.gethostname()} stopped: DataError: half of the" in output

    # A killed process leaves no message: the service names the task whose heartbeat is missing.
    bound = HEARTBEAT_SECONDS + 30
    (status, output), (killed, _) = pair.run({"process": 1, "batch": 7, "what": "SIGKILL"}, limit=bound)
    assert killed == -9 and status != 0
    assert "tasks are unhealthy (stopped sending heartbeats):\n1\n" in output, output

    # After one SIGTERM both save the same step and exit; the service needs a second or two to agree on it.
    (status, output), (other, why) = pair.run({"process": 1, "batch": 7, "what": "SIGTERM", "seconds": 3.0}, limit=15)
    assert (status, other) == (0, 0), output + why
    assert "SIGTERM: saved step" in output

    (status, output), (other, why) = pair.run({}, limit=30)
    assert (status, other) == (0, 0), output + why
    found, expected = runs.losses(pair.workdir), runs.losses(whole)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
