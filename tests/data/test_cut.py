"""Texts are cut to the shortest length that the global batch needs, and nothing that a tower reads is lost."""

import itertools
import queue
import threading

import jax
import numpy as np
import pytest

from clipjax import processes
from clipjax.data.cut import REST, WHOLE, TextCut, cut_texts, ladder
from clipjax.models.towers.text import through_end

END = 99


def needed(ids):
    return through_end(ids, END)


def batch_of(lengths, whole=64):
    """Texts of these lengths, [B, whole]: numbers of the row and END; every other column names its row."""
    text = np.zeros((len(lengths), whole), np.int32)
    for row, length in enumerate(lengths):
        text[row, : length - 1], text[row, length - 1] = row + 1, END
    return {"image": np.arange(len(lengths)), "text": text, "pair_id": np.arange(len(lengths)) + 7}


def cut_one(batch, cut, **options):
    ((found, extra),) = cut_texts(iter([(batch, "state")]), cut, **{"shards": 1, **options})
    assert extra == "state"
    return found


@pytest.mark.parametrize(("whole", "expected"), [
    (77, (16, 24, 32, 48, 77)), (64, (16, 24, 32, 48, 64)), (248, (16, 32, 64, 128, 248)),
    (512, (32, 64, 128, 256, 512)), (24, (16, 24)), (20, (20,)), (16, (16,)), (8, (8,)),
])  # fmt: skip
def test_lengths_are_few_multiples_of_eight_that_end_with_the_whole(whole, expected):
    assert ladder(whole, 5) == expected


def test_a_batch_is_cut_to_the_shortest_length_that_its_longest_text_fits():
    cut = TextCut((16, 32, 64), needed)
    for longest, length in [(2, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64)]:
        batch = batch_of([5, longest, 3])
        found = cut_one(batch, cut)
        assert found["text"].shape == (3, length)
        np.testing.assert_array_equal(found["text"], batch["text"][:, :length])
        np.testing.assert_array_equal(found["image"], batch["image"])


def test_all_captions_of_an_image_count():
    batch = batch_of([5, 40])
    batch["text"] = np.stack([batch["text"], batch_of([30, 3])["text"]], axis=1)
    assert cut_one(batch, TextCut((16, 32, 64), needed))["text"].shape == (2, 2, 64)


def test_the_short_texts_of_every_shard_get_a_length_of_their_own_and_no_column_loses_its_row():
    lengths = np.random.default_rng(0).integers(3, 15, 64)
    lengths[[3, 20, 63]] = 60
    batch = batch_of(lengths)
    found = cut_one(batch, TextCut((16, 32, 64), needed, short=0.75), shards=2)
    assert found["text"].shape == (48, 16)
    assert found[REST].shape == (16, 64)
    # Rows of each shard of 32: 24 short ones, then 8 others.
    rows = found["image"].reshape(2, 32)
    assert [sorted(shard) for shard in rows.tolist()] == [list(range(32)), list(range(32, 64))]
    np.testing.assert_array_equal(found["pair_id"], found["image"] + 7)
    np.testing.assert_array_equal(found["text"], batch["text"][rows[:, :24].ravel(), :16])
    np.testing.assert_array_equal(found[REST], batch["text"][rows[:, 24:].ravel()])


def test_two_lengths_that_save_little_become_one():
    lengths = [20] * 24 + [30] * 8
    assert REST not in cut_one(batch_of(lengths), TextCut((24, 32, 64), needed, short=0.75))
    assert REST in cut_one(batch_of(lengths), TextCut((24, 64), needed, short=0.75))
    few = batch_of([3] * 9 + [60])
    assert REST not in cut_one(few, TextCut((16, 64), needed, short=0.75)), (
        "ten rows are too few for two programs' work"
    )


def test_a_teacher_that_reads_the_padding_gets_whole_texts_in_the_rows_order():
    batch = batch_of([3] * 15 + [60] + [3] * 15 + [62])
    found = cut_one(batch, TextCut((16, 64), needed, short=0.75, keep_whole=True))
    np.testing.assert_array_equal(found[WHOLE], batch["text"][found["image"]])
    np.testing.assert_array_equal(found[WHOLE][:24, :16], found["text"])


class Store:
    """The key-value store of the coordination service, among threads."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no such key")
            return self.values[key]

    def key_value_delete(self, prefix):
        with self.changed:
            self.values = {key: value for key, value in self.values.items() if not key.startswith(prefix)}


@pytest.fixture
def three_processes(monkeypatch):
    """run(work) -> [work(largest) of each of three processes], which are threads with one store."""
    store, own = Store(), threading.local()
    monkeypatch.setattr(processes, "store", lambda: store)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.jax, "process_index", lambda: own.index)

    def run(work):
        found = queue.Queue()

        def one(index):
            own.index = index
            monkeypatch.setattr(processes, "_waits", itertools.count(5))  # each process counts for itself
            found.put((index, work(processes.Largest(), index)))

        threads = [threading.Thread(target=one, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
            thread.join(0.01)
        for thread in threads:
            thread.join(300)
        return [value for _, value in sorted(found.get_nowait() for _ in range(3))]

    return run, store


def test_processes_cut_their_rows_of_a_batch_to_the_same_lengths_as_one_process_would(three_processes):
    run, store = three_processes
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, (5, 3, 32))
    for step, process, length in [(1, 0, 30), (2, 2, 60), (4, 1, 17)]:
        lengths[step, process, :20] = length
    cut = TextCut((16, 32, 64), needed, short=0.75)

    def work(largest, index):
        batches = ((batch_of(own[index]), None) for own in lengths)
        found = list(cut_texts(batches, cut, shards=2, largest=largest))
        return [(batch["text"].shape, batch[REST].shape if REST in batch else None) for batch, _ in found]

    first, *others = run(work)
    assert all(other == first for other in others)
    whole = cut_texts(((batch_of(own.ravel()), None) for own in lengths), cut, shards=6)
    assert [shape[1] for shape, _ in first] == [batch["text"].shape[1] for batch, _ in whole]
    assert {key.split("/")[3] for key in store.values} == {"4"}, "only the last exchange is still in the store"


def test_a_wait_for_other_processes_ends_when_the_stream_is_closed(three_processes):
    run, _ = three_processes

    def work(largest, index):
        if index == 1:  # the others have all batches that they will ever make
            return None
        threading.Timer(0.1, largest.close).start()
        with pytest.raises(processes.PeersError, match="Closed"):
            largest([1, 2])

    assert run(work) == [None] * 3
