"""A run that goes on with another number of processes sees the examples that it would have seen."""

import collections

import numpy as np
import pytest
from absl import logging

from clipjax.config import ConfigError, DataConfig
from clipjax.runs.bad_records_log import add_causes
from clipjax.runs.resume import own_data_state
from tests.data.samples import FaultySource
from tests.data.test_pipeline import BATCH, joined, stream

DATA = DataConfig(max_bad_share=0.5)
BAD = {2, 9, 21}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging, "warning", lambda *_: None)


def trained(counts, steps, source):
    """(global batches, states of the last processes) of a run of `steps` steps with each of `counts` processes."""
    batches, states = [], None
    for count in counts:
        processes = [stream(source, data=DATA, process=(p, count)) for p in range(count)]
        if states is not None:
            for p, process in enumerate(processes):
                process.set_state(own_data_state(states, p, count))
        for _ in range(steps):
            parts, states = zip(*[next(process) for process in processes], strict=True)
            batches.append(joined(parts))
    return batches, states


@pytest.mark.parametrize("counts", [(8, 4, 6, 1, 3), (1, 2, 24), (6, 8), (12, 1, 12, 4)])
@pytest.mark.parametrize("steps", [1, 3])
def test_examples_are_those_of_a_run_of_one_process_whatever_the_numbers_of_processes(counts, steps):
    """Images, texts, the records that replace bad ones, and the counts of these."""
    source = FaultySource(40, bad=BAD)
    expected, ((state, *_)) = trained((1,), steps * len(counts), source)
    found, states = trained(counts, steps, source)
    for a, b in zip(found, expected, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert {s["step"] for s in states} == {state["step"]} == {steps * len(counts)}
    assert sum(s["read"] for s in states) == state["read"]
    assert add_causes(s["bad"] for s in states) == state["bad"]


def test_each_example_of_an_epoch_is_seen_once_across_a_change_of_processes():
    source = FaultySource(BATCH * 4, bad=set())
    batches, _ = trained((8, 4, 6, 1), 1, source)
    assert collections.Counter(np.concatenate([b["pair_id"] for b in batches])) == dict.fromkeys(range(BATCH * 4), 1)


def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused_and_changes_nothing():
    source = FaultySource(40, bad=BAD)
    _, states = trained((8,), 1, source)
    with pytest.raises(ConfigError, match="global_batch_size=24 does not divide over 5 processes; use a multiple of 5"):
        trained((5,), 1, source)
    assert [own_data_state(states, p, 8) for p in range(8)] == list(states)


def test_processes_that_read_the_same_rows_count_their_bad_records_once():
    source = FaultySource(40, bad=BAD)
    twice = [stream(source, data=DATA, process=(p // 2, 2)) for p in range(4)]  # as with a tensor axis over two
    states = [[next(process)[1] for _ in range(3)][-1] for process in twice]
    once = [stream(source, data=DATA, process=(p, 2)) for p in range(2)]
    expected = [[next(process)[1] for _ in range(3)][-1] for process in once]
    assert own_data_state(states, 0, 1)["read"] == sum(state["read"] for state in expected)
    assert own_data_state(states, 0, 1)["bad"] == add_causes(state["bad"] for state in expected)
