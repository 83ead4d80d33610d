"""Processes meet before JAX connects them: who is missing, and why process 0 cannot be reached, is said in one line."""

import os
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipjax.config import ConfigError
from clipjax.machine import joining, rendezvous
from clipjax.machine.host import StartError
from clipjax.machine.placement import Placement
from clipjax.machine.rendezvous import find_process_0, is_own_address, wait_for_others
from tests.ports import free_port
from tests.runs import ROOT

JOIN = """
import sys
from clipjax.commands import flags as cli

def body():
    import jax
    from clipjax.processes import gather_json
    print("gathered", gather_json(jax.process_index()), flush=True)

cli.run_command(cli.parse(sys.argv, "joins", lambda values: None, config=False), body, cache=False)
"""


@pytest.fixture
def address():
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def others():
    """Calls others' part in threads of their own."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda *args, seconds=60.0: pool.submit(find_process_0, *args, seconds)


def test_processes_meet_whoever_comes_first_and_process_0_hears_of_all(address, others):
    first = others(address, 3, 2, {"host": "c"})
    second = others(address, 3, 1, {"host": "b"})
    facts = wait_for_others(address, 3, {"host": "a"}, 60.0)
    assert [of["host"] for of in facts] == ["a", "b", "c"]
    assert first.result() is None and second.result() is None


def test_process_0_names_who_is_missing_and_those_who_came_hear_it(address, others):
    came = others(address, 4, 2, {"host": "c"})
    with pytest.raises(StartError, match=f"Of 4 processes, 1, 3 did not come to {address} within 2 s"):
        wait_for_others(address, 4, {}, 2.0)
    with pytest.raises(StartError, match="Of 4 processes, 1, 3 did not come within 2 s"):
        came.result()


def test_a_port_that_nobody_serves_is_named_with_the_reason(address):
    with pytest.raises(StartError, match=f"Process 1 of 2 could not meet process 0 at {address} .*nothing listens"):
        find_process_0(address, 2, 1, {}, 0.1)


def test_a_name_that_is_not_known_is_told_as_such(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(rendezvous.socket, "create_connection", unknown)
    with pytest.raises(StartError, match="the name node7 is not known here"):
        find_process_0("node7:8482", 2, 1, {}, 0.1)
    monkeypatch.undo()
    with pytest.raises(StartError, match=r"the name a\.\.b is not known here"):
        find_process_0("a..b:8482", 2, 1, {}, 0.1)


def test_a_port_that_a_firewall_drops_is_told_with_the_port_of_cloud_tpu(monkeypatch):
    def dropped(*args, **kwargs):
        raise TimeoutError

    monkeypatch.setattr(rendezvous.socket, "create_connection", dropped)
    with pytest.raises(StartError, match="no answer: .*firewall.*JAX_COORDINATOR_PORT=8476 on all hosts"):
        find_process_0("10.0.0.1:8482", 2, 1, {}, 0.1)
    with pytest.raises(StartError, match="JAX_COORDINATOR_PORT, the same on all hosts, chooses another"):
        find_process_0("10.0.0.1:61500", 2, 1, {}, 0.1)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"[1]\n", b"\xff\n"])
def test_something_else_at_the_port_is_told_as_such(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    guest, _ = server.accept()
                except OSError:
                    return
                with guest:
                    guest.recv(4096)
                    guest.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(StartError, match="something else listens there"):
            find_process_0(f"127.0.0.1:{server.getsockname()[1]}", 2, 1, {}, 0.1)
        server.shutdown(socket.SHUT_RDWR)


def test_a_port_that_is_taken_is_refused_by_process_0():
    with socket.create_server(("", 0)) as taken, pytest.raises(StartError, match="cannot listen at port .*earlier run"):
        wait_for_others(f"127.0.0.1:{taken.getsockname()[1]}", 2, {}, 1.0)


def test_processes_that_were_told_another_count_or_the_same_number_are_refused(address, others):
    wrong = others(address, 4, 1, {"host": "w"})
    waiting = threading.Thread(target=lambda: wait_for_others(address, 3, {}, 60.0))
    waiting.start()
    with pytest.raises(
        StartError, match="process 1 on w was told that there are 4 processes, and process 0 that there"
    ):
        wrong.result()
    twice = [others(address, 3, 1, {"host": host}) for host in ("b", "d")]
    with pytest.raises(StartError, match="process 1 on [bd] came twice, the first time from [bd]: two processes have"):
        next(done for done in _in_order(twice)).result()
    others(address, 3, 2, {}).result()
    waiting.join(60)
    assert not waiting.is_alive()


def _in_order(futures):
    from concurrent.futures import as_completed

    return as_completed(futures)


def test_a_stranger_that_connects_disturbs_nobody(address, others):
    came = others(address, 2, 1, {"host": "b"})

    def stray():
        for said in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff\xff\n", b'{"process": "x"}\n', b"[]\n", b"1" * 70000):
            while True:
                try:
                    with socket.create_connection(tuple(address.split(":")), timeout=5) as guest:
                        guest.sendall(said)
                        break
                except ConnectionRefusedError:
                    if came.done():
                        return
                except OSError:
                    break

    strangers = threading.Thread(target=stray)
    strangers.start()
    assert len(wait_for_others(address, 2, {}, 60.0)) == 2
    strangers.join()


def test_process_0_says_after_a_while_who_is_missing(address, others, monkeypatch):
    monkeypatch.setattr(rendezvous, "TELL_SECONDS", 0.0)
    said = []
    with pytest.raises(StartError):
        wait_for_others(address, 2, {}, 0.3, said.append)
    assert said == [f"Waiting for other processes at {address}. Missing of 2: 1"]
    said.clear()
    with pytest.raises(StartError):
        find_process_0(address, 2, 1, {}, 0.3, said.append)
    assert said[0].startswith(f"Process 1 waits for process 0 at {address}: nothing listens there")


def test_an_address_that_is_not_process_0s_own_is_told():
    assert is_own_address("127.0.0.1") and is_own_address("localhost")
    assert is_own_address("192.0.2.77") is False  # an address of documentation
    place = Placement("TPUs on GKE", 2, 0, "192.0.2.77:8482")
    assert "look for it at 192.0.2.77, which is no address of this machine" in joining.elsewhere(place)[0]
    assert joining.elsewhere(Placement("Slurm", 2, 1, "192.0.2.77:8482")) == []


def test_versions_that_differ_between_processes_are_told():
    facts = [
        {"jax": "0.10.2", "python": "3.11"},
        {"jax": "0.10.2", "python": "3.11"},
        {"jax": "0.12", "python": "3.11"},
    ]
    assert joining.different(facts) == [
        "the processes have different versions of jax: 0.10.2 on process 0, 1; 0.12 on process 2. Install the same on "
        "all hosts."
    ]
    assert joining.different(facts[:2]) == []


def test_what_was_found_is_told_with_who_is_missing(address):
    place = Placement("TPUs on GKE", 4, 1, address, read="TPU_WORKER_ID=1, MEGASCALE_NUM_SLICES=2")
    with pytest.raises(StartError, match="Found by TPUs on GKE: TPU_WORKER_ID=1.* After a preemption, .* lost slices"):
        joining.meet(place, 0.1)


def test_a_web_proxy_is_not_asked_for_process_0():
    environ = {"https_proxy": "http://proxy:3128", "no_proxy": "localhost"}
    assert joining.bypass_proxy("10.0.0.1", environ) and environ["no_grpc_proxy"] == "localhost,10.0.0.1"
    assert not joining.bypass_proxy("10.0.0.1", untouched := {}) and untouched == {}


def test_a_timeout_that_is_none_is_refused():
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--start_timeout="):
            joining.join(seconds=seconds)


def start(*flags, **environ):
    clean = {name: value for name, value in os.environ.items() if not re.match("SLURM|JAX_COORD|WORLD_SIZE|TPU_", name)}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, *flags],
        cwd=ROOT, env=clean | environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_two_real_processes_find_each_other_by_slurms_variables_behind_a_web_proxy(address):
    environ = dict(
        SLURM_JOB_ID="9", SLURM_NTASKS="2", SLURM_STEP_ID="0", SLURM_STEP_NODELIST="localhost,other",
        JAX_COORDINATOR_PORT=address.split(":")[1], http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9",
    )  # fmt: skip
    started = [start(**environ, SLURM_PROCID=str(index)) for index in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert all("gathered [0, 1]" in output for output in outputs), outputs


def test_real_processes_without_the_others_end_with_one_line(address):
    flags = (f"--coordinator_address={address}", "--num_processes=3", "--start_timeout=0.5")
    started = [start(*flags, "--process_id=1"), start("--process_id=1"), start(SLURM_NTASKS="2")]
    outputs = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [1, 2, 1], outputs
    assert all(output.count("\n") == 1 and output.startswith("error: ") for output in outputs), outputs
    assert address in outputs[0] and "go together" in outputs[1] and "srun" in outputs[2]
