"""A batch is a function of the seed and its number: not of threads, processes, hosts or where a run was resumed."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from clipjax.config import AugmentConfig, ConfigError, DataConfig, PixelConfig
from clipjax.data.bad_records import DataError
from clipjax.data.images.transforms import eval_image
from clipjax.data.pipeline import make_train_iterator
from clipjax.data.read_ahead import CHUNK
from tests.data.samples import LengthTokenizer, example, open_folder, run_script, write_folder
from tests.waiting import until

SIZE, BATCH = 16, 24
DATA = DataConfig(augment=AugmentConfig(scale=(0.3, 1.0), flip=0.5))


def stream(source, *, data=DATA, batch=BATCH, seed=0, process=(0, 1)):
    return make_train_iterator(
        data,
        source=source,
        tokenizer=LengthTokenizer(),
        image_size=SIZE,
        global_batch_size=batch,
        seed=seed,
        process_index=process[0],
        process_count=process[1],
    )


def take(iterator, count):
    return [next(iterator)[0] for _ in range(count)]


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def source(folder):
    return open_folder(folder)


@pytest.fixture(scope="module")
def reference(source):
    """The first six global batches of seed 0."""
    return take(stream(source), 6)


def test_a_batch_has_the_documented_columns(reference):
    batch = reference[0]
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "image": ((BATCH, SIZE, SIZE, 3), np.uint8),
        "text": ((BATCH, 2), np.int32),
        "pair_id": ((BATCH,), np.int32),
    }


def test_image_and_caption_of_a_row_belong_to_the_same_record(source):
    data = DataConfig(augment=AugmentConfig(name="none"))
    for batch in take(stream(source, data=data), 2):
        for image, text, i in zip(batch["image"], batch["text"], batch["pair_id"], strict=True):
            assert text[1] == i
            assert (image == eval_image(example(int(i))["image"], SIZE, PixelConfig())).all()


def test_an_epoch_has_every_record_once_in_an_order_of_its_own(source):
    ids = np.concatenate([batch["pair_id"] for batch in take(stream(source), 5)])
    first, second = ids[:37], ids[37:74]  # epochs begin and end inside batches
    assert sorted(first) == sorted(second) == list(range(37))
    assert not (first == second).all() and not (first == np.arange(37)).all()


def test_captions_and_crops_change_from_epoch_to_epoch(source):
    data = DataConfig(augment=AugmentConfig(scale=(0.3, 1.0)))
    batches = joined(take(stream(source, data=data), 16))
    record = batches["pair_id"] == 2  # has three captions
    assert record.sum() >= 10
    assert set(batches["text"][record, 0]) == {0, 1, 2}
    assert len(np.unique(batches["image"][record], axis=0)) == record.sum()


def test_another_seed_gives_other_batches(source, reference):
    assert (take(stream(source, seed=1), 1)[0]["pair_id"] != reference[0]["pair_id"]).any()


def test_a_record_without_a_pair_id_has_one_of_its_own_so_that_it_is_known_when_it_comes_twice():
    records = [{**example(i), "pair_id": i if i == 2 else -1} for i in range(5)]
    batch = take(stream(records), 1)[0]
    of_record = {0: -2, 1: -3, 2: 2, 3: -5, 4: -6}
    assert batch["pair_id"].tolist() == [of_record[record] for record in batch["text"][:, 1].tolist()]
    assert len(set(batch["pair_id"].tolist())) == 5 < BATCH


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_hosts_sees_the_same_global_batches(source, reference, processes):
    parts = [take(stream(source, process=(p, processes)), 6) for p in range(processes)]
    assert_equal([joined(part) for part in zip(*parts, strict=True)], reference)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_any_number_of_threads_gives_the_same_batches(source, reference, threads):
    data = DataConfig(augment=DATA.augment, num_threads=threads)
    assert_equal(take(stream(source, data=data), 6), reference)


WORKERS = """
import multiprocessing, os, signal, sys, time
import numpy as np
from clipjax.config import DataConfig
from tests.data.samples import open_folder
from tests.data.test_pipeline import DATA, joined, stream, take

if __name__ == "__main__":
    data = DataConfig(augment=DATA.augment, worker_count=2)
    iterator = stream(open_folder(sys.argv[1]), data=data)
    iterator.set_state({"step": 2, "read": 48, "bad": {}})
    np.savez(sys.argv[2], **joined(take(iterator, 4)))
    workers = multiprocessing.active_children()
    if sys.argv[3] == "kill all":
        print(*[worker.pid for worker in workers], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(workers[0].pid, signal.SIGKILL)
    started = time.monotonic()
    try:
        take(iterator, 1_000_000)
    except RuntimeError as error:
        print(len(workers), "workers:", error)
    print("seconds:", time.monotonic() - started)
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_and_a_killed_one_is_an_error(folder, reference, tmp_path):
    """In a script of its own, without a test runner's flags: the way people start it."""
    script = tmp_path / "read.py"
    script.write_text(WORKERS)
    done = run_script(script, folder, tmp_path / "found.npz", "kill one")
    assert done.returncode == 0, done.stderr
    assert_equal([dict(np.load(tmp_path / "found.npz"))], [joined(reference[2:])])
    assert "2 workers: Worker process was terminated unexpectedly with exit code -9" in done.stdout
    assert float(done.stdout.split("seconds:")[1]) < 20


@pytest.mark.slow
def test_workers_of_a_killed_run_end_with_it(folder, tmp_path):
    script = tmp_path / "read.py"
    script.write_text(WORKERS)
    done = run_script(script, folder, tmp_path / "found.npz", "kill all")
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    until(lambda: not any(alive(pid) for pid in workers))


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("batch", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_batches_of_any_size_are_cut_from_the_same_sequence_of_examples(source, batch):
    found = joined(take(stream(source, batch=batch), 2))
    expected = joined(take(stream(source, batch=1), 2 * batch))
    assert_equal([found], [expected])


def test_a_batch_may_be_larger_than_the_data(tmp_path):
    source = open_folder(write_folder(tmp_path / "set", 5))
    ids = take(stream(source, batch=12), 1)[0]["pair_id"]
    assert sorted(ids[:5]) == sorted(ids[5:10]) == list(range(5))


def test_a_list_of_examples_is_a_source():
    examples = [example(i) for i in range(10)]
    assert sorted(take(stream(examples, batch=10), 1)[0]["pair_id"]) == list(range(10))


def test_resuming_at_any_step_gives_the_uninterrupted_batches(source, reference):
    iterator = stream(source)
    states = [next(iterator)[1] for _ in range(5)]
    for step in (1, 3, 5):
        resumed = stream(source)
        resumed.set_state(json.loads(json.dumps(states[step - 1])))
        assert resumed.get_state() == states[step - 1]
        assert_equal(take(resumed, 6 - step), reference[step:])


def test_a_used_iterator_can_be_set_back(source, reference):
    iterator = stream(source)
    take(iterator, 4)
    iterator.set_state({"step": 1, "read": 24, "bad": {}})
    assert_equal(take(iterator, 2), reference[1:3])


def test_a_run_of_four_hosts_goes_on_with_two(source, reference):
    iterator = stream(source, process=(3, 4))
    state = [next(iterator)[1] for _ in range(3)][-1]
    resumed = [stream(source, process=(p, 2)) for p in range(2)]
    for iterator in resumed:
        iterator.set_state(state)
    assert_equal([joined([next(i)[0] for i in resumed]) for _ in range(3)], reference[3:])


def test_resuming_late_reads_nothing_of_what_came_before():
    reads = []

    class Counted(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    iterator = stream(Counted(example(i) for i in range(10)))
    iterator.set_state({"step": 10_000_000, "read": 0, "bad": {}})
    next(iterator)
    assert len(reads) <= BATCH * 6  # this batch and what is read ahead


def test_a_checkpoint_of_a_source_with_another_number_of_records_is_refused():
    _, state = next(stream([example(i) for i in range(10)]))
    with pytest.raises(DataError, match="trained on 10 records, but the data now has 11"):
        stream([example(i) for i in range(11)]).set_state(state)


def test_an_empty_source_and_an_indivisible_batch_are_refused(source):
    with pytest.raises(DataError, match="no records"):
        stream([])
    with pytest.raises(ConfigError, match="global_batch_size=24 does not divide over 5 processes"):
        stream(source, process=(0, 5))
