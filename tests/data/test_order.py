"""Orders of one source: every record once an epoch, whatever the blocks, and a function of the seed and i alone."""

import pickle
import time

import numpy as np
import pytest

from clipjax.data.order import Shuffled, Windowed

BLOCKS = {
    "equal": [5] * 12,
    "one": [40],
    "uneven": [1, 30, 2, 2, 17, 3, 8, 1],
    "empty ones": [0, 4, 0, 0, 9, 3, 0],
}


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("sizes", BLOCKS.values(), ids=BLOCKS)
def test_every_record_comes_once_an_epoch_in_windows_of_whole_blocks(sizes, window):
    starts = np.cumsum([0, *sizes])
    order, size = Windowed(starts, window, seed=0), int(starts[-1])
    block_of = np.repeat(np.arange(len(sizes)), sizes)
    orders = []
    for epoch in range(3):
        drawn = [order[epoch * size + place] for place in range(size)]
        assert sorted(drawn) == list(range(size))
        orders.append(tuple(drawn))
        # A block's records lie within one window: no further apart than the sizes of `window` blocks.
        for block, n in enumerate(sizes):
            places = np.flatnonzero(block_of[drawn] == block)
            if n:
                assert places[-1] - places[0] < sum(sorted(sizes)[-window:])
    assert len(set(orders)) == 3
    assert tuple(range(size)) not in orders


def test_records_of_a_window_are_mixed_and_windows_are_not_the_same_blocks_each_epoch():
    order = Windowed(np.arange(0, 1001, 10), 10, seed=0)
    blocks = [np.array([order[e * 1000 + place] // 10 for place in range(100)]) for e in range(2)]
    assert len(set(blocks[0])) == len(set(blocks[1])) == 10 and set(blocks[0]) != set(blocks[1])
    assert (np.diff(blocks[0]) == 0).mean() < 0.25, "neighbours are mostly of different blocks"


def test_the_order_is_a_function_of_seed_and_place_for_copies_and_in_any_sequence():
    order = Windowed(np.arange(0, 301, 7), 4, seed=5)
    places = np.random.default_rng(0).permutation(900)
    expected = {i: order[i] for i in range(900)}
    copy = pickle.loads(pickle.dumps(order))
    assert {int(i): copy[int(i)] for i in places} == expected
    other = Windowed(np.arange(0, 301, 7), 4, seed=6)
    assert [other[i] for i in range(50)] != [expected[i] for i in range(50)]


@pytest.mark.parametrize(
    "order", [Shuffled(10**8, 0), Windowed(np.arange(0, 10**8 + 1, 1000), 100, 0)], ids=["all", "w"]
)
def test_far_examples_are_found_at_once(order):
    started = time.process_time()
    found = [order[10**11 + k] for k in range(100)]
    assert time.process_time() - started < 0.5
    assert len(set(found)) == 100 and all(0 <= index < 10**8 for index in found)
    assert order.progress(10**11) == {"epoch": 1000.0}
