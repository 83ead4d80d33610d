"""The lease of a remote workdir: one holder, taken over from a dead one, by the server's clock alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import jax
import pytest
from absl import logging

from clipjax import storage
from clipjax.runs import lock
from clipjax.runs.lock import RunLockError, run_lock
from clipjax.runs.spool import spooled
from clipjax.storage import lease as leases
from clipjax.storage import versions
from clipjax.storage.lease import Clock, LeaseHeldError, LeaseLostError, lease
from tests.storage import servers
from tests.storage.faults import faulty
from tests.waiting import until

PATH = "gs://bucket/run/run.lock"
HOLD = """
import sys, time
from clipjax.storage.lease import lease
with lease(sys.argv[1] + "/run.lock"):
    print("held", flush=True)
    time.sleep(60)
"""


class Server:
    """One object and a clock, as a store keeps them; `lost` answers are written and not told."""

    conditions = False

    def __init__(self) -> None:
        self.time, self.object, self.writes, self.lost, self.down = 1000.0, None, 0, 0, False

    def read(self, fs, bucket, key):
        self.check_up()
        if self.object is None:
            raise FileNotFoundError(key)
        text, name, changed = self.object
        return text, name, changed, self.time

    def write(self, fs, bucket, key, text, seen):
        self.check_up()
        if (self.object[1] if self.object else None) != seen:
            raise FileExistsError(key)
        self.writes += 1
        self.object = (text, str(self.writes), self.time)
        if self.lost:
            self.lost -= 1
            raise FileExistsError(key)  # what a client's own second try gets
        return self.object[1]

    def check_up(self):
        if self.down:
            raise storage.StorageError(f"{PATH}: the server failed", "server")


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(versions, "_ROWS", {"gs": made})
    monkeypatch.setattr(versions, "filesystem", lambda path: None)
    return made


@pytest.fixture
def lines(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
    return said


def machine(server, monkeypatch, *, ahead=0.0, during=lambda: None):
    """A machine's clock, on which sleeping lets the server's time pass; `during` happens in each pause."""

    def sleep(seconds):
        server.time += seconds
        during()

    return Clock(elapsed=lambda: server.time - 1000, now=lambda: server.time + ahead, sleep=sleep)


def elsewhere(server):
    """Makes the holder a process of another machine."""
    text, name, changed = server.object
    server.object = (json.dumps(json.loads(text) | {"machine": "another", "host": "vm-7", "pid": 12}), name, changed)


def hold(server, clock):
    """A holder that does not renew its lease by itself, on another machine."""
    held = leases.Lease(PATH, 60, clock)
    held.acquire()
    elsewhere(server)
    return held


def test_a_lease_is_free_after_its_block(server, monkeypatch, lines):
    clock = machine(server, monkeypatch)
    for _ in range(2):
        with lease(PATH, clock=clock, renew=False):
            assert json.loads(leases.owner_of(PATH))["pid"] == os.getpid()
        assert leases.owner_of(PATH) == ""
    assert server.time == 1000 and not lines


def test_a_second_one_on_this_machine_is_refused_at_once(server, monkeypatch):
    clock = machine(server, monkeypatch)
    with lease(PATH, clock=clock, renew=False), pytest.raises(LeaseHeldError, match=f'"pid": {os.getpid()}'):
        with lease(PATH, clock=clock, renew=False):
            pass
    assert server.time == 1000


def test_a_living_holder_elsewhere_is_known_by_its_next_renewal(server, monkeypatch, lines):
    first = hold(server, machine(server, monkeypatch))

    def renew():
        if server.time - 1000 >= 15:
            first._version = server.object[1]
            first.renew()
            elsewhere(server)

    with pytest.raises(LeaseHeldError, match="vm-7"):
        with lease(PATH, clock=machine(server, monkeypatch, during=renew), renew=False):
            pass
    assert server.time - 1000 <= 20
    assert len(lines) == 1 and "Waiting up to 61 s" in lines[0] and '"pid": 12' in lines[0]


def test_a_dead_holders_lease_is_waited_for_and_taken(server, monkeypatch, lines):
    hold(server, machine(server, monkeypatch))
    with lease(PATH, clock=machine(server, monkeypatch), renew=False):
        assert 60 < server.time - 1000 <= 70
    assert len(lines) == 1


def test_a_server_whose_clock_has_stopped_does_not_keep_a_dead_holders_lease(server, monkeypatch, lines):
    hold(server, machine(server, monkeypatch))
    slept = []
    with lease(PATH, clock=Clock(lambda: sum(slept), lambda: 1000.0, slept.append), renew=False):
        assert 60 < sum(slept) <= 70


@pytest.mark.parametrize("ahead", [-86_400.0, 86_400.0])
def test_a_clock_that_is_a_day_off_changes_nothing_but_a_line(server, monkeypatch, lines, ahead):
    first = hold(server, machine(server, monkeypatch))
    clock = machine(server, monkeypatch, ahead=ahead)
    taken = leases.Lease(PATH, 60, clock)
    taken.acquire()
    assert 60 < server.time - 1000 <= 70
    assert "86400 s " + ("ahead of" if ahead > 0 else "behind") + " the storage server's" in lines[-1]
    with pytest.raises(LeaseLostError):
        first.renew()
    taken.check()


def test_a_holder_that_was_suspended_finds_its_lease_taken_and_writes_nothing(server, monkeypatch):
    first = hold(server, machine(server, monkeypatch))
    server.time += 100
    with lease(PATH, clock=machine(server, monkeypatch), renew=False):
        writes = server.writes
        for _ in range(2):
            with pytest.raises(LeaseLostError, match=f'"pid": {os.getpid()}'):
                first.check()
        first.release()
        assert server.writes == writes
    assert leases.owner_of(PATH) == ""


def test_a_holder_that_was_suspended_keeps_a_lease_that_nobody_took(server, monkeypatch):
    with lease(PATH, clock=machine(server, monkeypatch), renew=False) as held:
        server.time += 1000
        held.check()
        assert leases.read_version(PATH).age == 0


def test_a_check_between_renewals_asks_the_server_nothing(server, monkeypatch):
    with lease(PATH, clock=machine(server, monkeypatch), renew=False) as held:
        server.down = True
        server.time += 20
        held.check()
        server.down = False


def test_a_lease_that_was_removed_is_lost_and_not_made_again(server, monkeypatch):
    with lease(PATH, clock=machine(server, monkeypatch), renew=False) as held:
        server.object = None
        with pytest.raises(LeaseLostError) as caught:
            held.renew()
        assert caught.value.owner == ""
    assert server.object is None


def test_a_write_whose_answer_was_lost_is_known_as_ones_own(server, monkeypatch):
    server.lost = 1
    with lease(PATH, clock=machine(server, monkeypatch), renew=False) as held:
        server.lost = 1
        held.renew()
        held.renew()
    assert leases.owner_of(PATH) == ""


def test_a_holder_waits_for_a_server_that_is_down_and_gives_up_after_a_bound(server, monkeypatch, lines):
    up = {"at": 1100.0}

    def during():
        server.down = server.time < up["at"]

    with lease(PATH, clock=machine(server, monkeypatch, during=during), renew=False) as held:
        server.time += 40
        server.down = True
        held.check()
        assert server.time >= 1100 and "Nothing is written until" in lines[0]
        up["at"] = float("inf")
        server.time += 40
        server.down = True
        with pytest.raises(storage.StorageError):
            held.check()
        server.down = False


def test_a_server_that_ignores_conditions_is_warned_about(server, monkeypatch, lines):
    real = server.write

    def write(fs, bucket, key, text, seen):
        return real(fs, bucket, key, text, server.object[1] if server.object else None)

    monkeypatch.setattr(server, "write", write)
    with lease(PATH, clock=machine(server, monkeypatch), renew=False) as held:
        held.renew()
        assert lines == [f"{PATH}: this server has no conditional writes, so a second run there would not be refused."]
        server.object = (json.dumps({"token": "another", "host": "b"}), "x", server.time)
        with pytest.raises(LeaseLostError, match="b"):
            held.renew()
        server.object = (json.dumps({"token": "another"}), "y", server.time)
    assert json.loads(server.object[0]) == {"token": "another"}


@pytest.mark.parametrize("value", ["", "[1]", '{"seconds": -3, "pid": "x"}', '{"seconds": true}', "{"])
def test_whatever_is_written_in_the_object_expires(server, monkeypatch, lines, value):
    server.object = (value, "0", 1000.0)
    with lease(PATH, clock=machine(server, monkeypatch), renew=False):
        assert 60 < server.time - 1000 <= 70


@pytest.fixture(params=sorted(servers.BUCKETS))
def bucket(request):
    with servers.BUCKETS[request.param]() as name:
        yield name


def test_a_second_run_in_a_bucket_is_refused_with_the_owners_name(bucket):
    owner = f'--workdir={bucket}/run is in use by another run: .*"pid": {os.getpid()}, "started"'
    with run_lock(f"{bucket}/run"), pytest.raises(RunLockError, match=owner), run_lock(f"{bucket}/run"):
        pass
    with run_lock(storage.as_path(f"{bucket}/run")) as check_held:
        check_held()
        assert json.loads(lock.lock_owner(f"{bucket}/run"))["pid"] == os.getpid()
    assert lock.lock_owner(f"{bucket}/run") == ""
    assert list(servers.objects(bucket)) == ["run/run.lock"]


def test_of_many_who_start_at_once_one_has_the_lease(bucket):
    held, refused = [], 0
    with contextlib.ExitStack() as stack:
        for found in (None, None, None):
            mine = leases.Lease(f"{bucket}/run.lock", 60, Clock())
            if mine._take(found):  # all have seen that there is none
                held.append(mine)
                stack.callback(mine.release)
            else:
                refused += 1
    assert (len(held), refused) == (1, 2)


def test_after_kill_9_the_same_machine_goes_on_at_once(bucket):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, f"{bucket}/run"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunLockError, match=f'"pid": {holder.pid}'), run_lock(f"{bucket}/run"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock(f"{bucket}/run"):
        assert json.loads(servers.objects(bucket)["run/run.lock"])["pid"] == os.getpid()


def test_a_lease_is_renewed_in_a_thread_and_a_removed_one_ends_the_run(bucket, monkeypatch):
    monkeypatch.setattr(leases, "SECONDS", 0.4)
    with run_lock(f"{bucket}/run") as check_held:
        path = f"{bucket}/run/run.lock"
        first = versions.read_version(path).name
        until(lambda: versions.read_version(path).name != first)
        storage.as_path(path).unlink()
        with pytest.raises(RunLockError, match="run.lock was removed under this run, so that a second run"):
            until(check_held)


def test_a_run_whose_lease_was_taken_is_told_by_whom_and_uploads_nothing(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = f"{bucket}/run/run.lock"
    other = {"host": "vm-7", "pid": 12, "started": "now", "token": "x"}
    with pytest.raises(RunLockError) as caught:
        with run_lock(f"{bucket}/run") as check_held, spooled(f"{bucket}/run", check_held) as spool:
            (spool.folder / "metrics.jsonl").write_text("{}\n")
            versions.write_version(path, other, versions.read_version(path).name)
            monkeypatch.setattr(leases.Lease, "check", leases.Lease.renew)  # as after a suspension
            spool.upload()
    assert 'was taken by {"host": "vm-7", "pid": 12, "started": "now"}' in str(caught.value)
    assert "It stopped and writes nothing more." in str(caught.value)
    assert list(servers.objects(bucket)) == ["run/run.lock"]
    assert json.loads(servers.objects(bucket)["run/run.lock"])["host"] == "vm-7"


def test_only_the_first_process_holds_a_lease(bucket, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with run_lock(f"{bucket}/run"):
        assert servers.objects(bucket) == {}


def test_a_lease_survives_a_server_that_fails_now_and_then():
    with faulty(servers.gcs_server()) as faults, servers.gcs_bucket(faults.url) as bucket:
        faults.add("POST", "/upload/", status=503)
        faults.add("GET", "run.lock", status=503)
        with lease(f"{bucket}/run.lock", renew=False) as held:
            faults.add("POST", "/upload/", lose=True)
            held.renew()
            held.renew()
        assert leases.owner_of(f"{bucket}/run.lock") == ""


def test_a_run_in_a_bucket_that_cannot_be_written_is_refused_in_one_line(bucket):
    with pytest.raises(storage.StorageError, match="there is no bucket"), run_lock(f"{bucket}-no/run"):
        pass
