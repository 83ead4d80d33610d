"""Batches reach the mesh ahead of their use; errors arrive where they belong; closing ends the thread."""

import itertools
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clipjax.data.prefetch import prefetch_to_mesh
from tests.waiting import until


@pytest.fixture(scope="module")
def sharding():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2, 1), ("data", "fsdp", "tensor"))
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def numbered(count, made=None):
    for i in range(count):
        if made is not None:
            made.append(i)
        yield {"image": np.full((16, 2, 2, 3), i, np.uint8), "text": np.arange(16, dtype=np.int32) + i}, {"step": i}


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "prefetch_to_mesh"]


def test_batches_are_global_arrays_with_the_state_that_came_with_them(sharding):
    found = list(prefetch_to_mesh(numbered(5), sharding, 2))
    assert [state["step"] for _, state, _ in found] == [0, 1, 2, 3, 4]
    for i, (batch, _, _) in enumerate(found):
        assert batch["image"].dtype == np.uint8 and batch["text"].sharding == sharding
        assert [s.data.shape for s in batch["image"].addressable_shards] == [(2, 2, 2, 3)] * 8
        assert np.asarray(batch["text"]).tolist() == list(range(i, 16 + i))
    assert until(lambda: not prefetch_threads())


def test_depth_batches_are_ready_before_they_are_asked_for(sharding):
    made = []
    stream = prefetch_to_mesh(numbered(20, made), sharding, 3)
    next(stream)
    assert until(lambda: len(made) >= 4)
    time.sleep(0.3)
    assert len(made) <= 6  # the one given, three ready, one on its way
    stream.close()


def test_the_time_waited_is_the_sources_and_not_the_consumers(sharding, monkeypatch):
    now, asked = [0.0], threading.Event()
    monkeypatch.setattr("clipjax.data.prefetch.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow():
        for batch in numbered(4):
            asked.wait()
            asked.clear()
            now[0] += 0.5
            yield batch

    assert [wait for *_, wait in prefetch_to_mesh(slow(), sharding, 2, asked.set)] == [0.5] * 4
    waits = []
    for *_, wait in prefetch_to_mesh(numbered(5), sharding, 2):
        waits.append(wait)
        now[0] += 0.5
    assert waits == [0.0] * 5


def test_an_error_arrives_after_the_batches_before_it(sharding):
    def failing():
        yield from numbered(2)
        raise ValueError("disk gone")

    stream = prefetch_to_mesh(failing(), sharding, 4)
    assert [next(stream)[1]["step"] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="disk gone"):
        next(stream)
    assert until(lambda: not prefetch_threads())


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_close_ends_the_thread_also_when_the_queue_is_full(sharding, taken):
    stream = prefetch_to_mesh(numbered(1000), sharding, 2)
    assert len(list(itertools.islice(stream, taken))) == taken
    stream.close()
    assert until(lambda: not prefetch_threads())


def test_only_idle_devices_wait_for_a_batch(sharding):
    made = threading.Event()
    asked = []

    def late():
        for batch in numbered(2):
            made.wait()
            yield batch

    def busy():
        asked.append(len(asked))
        if len(asked) == 5:
            made.set()
        return True

    stream = prefetch_to_mesh(late(), sharding, 1, busy)
    assert next(stream)[2] == 0.0 and len(asked) >= 5  # as long as the devices compute, the wait costs nothing
    stream.close()
    made.clear()
    stream = prefetch_to_mesh(late(), sharding, 1, lambda: False)
    threading.Timer(0.05, made.set).start()
    assert next(stream)[2] > 0.0
    stream.close()
