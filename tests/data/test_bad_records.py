"""A bad record is replaced the same way every time, counted once, named, and too many of them stop the run."""

import numpy as np
import pytest
from absl import logging

from clipjax.config import DataConfig
from clipjax.data.bad_records import DataError
from clipjax.data.records import encode_record
from tests.data.samples import FaultySource, encoded, example, open_folder, picture, record, write_folder
from tests.data.test_pipeline import assert_equal, joined, stream, take

TOLERANT = DataConfig(max_bad_share=0.5)


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    return lines


def test_a_bad_record_is_replaced_counted_and_named(warnings):
    source = FaultySource(30, bad={4, 17})
    iterator = stream(source, data=TOLERANT, batch=30)
    batch, state = next(iterator)  # one epoch
    assert state == {"step": 1, "read": 32, "bad": {"corrupt image": 2}, "first_row": 0, "records": 30, "sha256": {}}
    assert len(batch["image"]) == 30 and not {4, 17} & set(batch["pair_id"])
    assert sorted(warnings) == [
        "Bad record replaced: shard0 record 4: made unreadable (corrupt image)",
        "Bad record replaced: shard1 record 7: made unreadable (corrupt image)",
    ]


@pytest.mark.parametrize("threads", [1, 8])
def test_replacements_and_counts_do_not_depend_on_threads_hosts_or_restarts(threads, warnings):
    source = FaultySource(30, bad=set(range(0, 30, 5)))
    data = DataConfig(max_bad_share=0.5, num_threads=threads)
    iterator = stream(source, data=data)
    batches, states = zip(*[next(iterator) for _ in range(6)], strict=True)
    hosts = [stream(source, data=data, process=(p, 2)) for p in range(2)]
    assert_equal([joined([next(host)[0] for host in hosts]) for _ in range(6)], batches)
    counts = [host.get_state()["bad"]["corrupt image"] for host in hosts]
    assert sum(counts) == states[-1]["bad"]["corrupt image"] > 20
    resumed = stream(source, data=data)
    resumed.set_state(states[2])
    assert_equal(take(resumed, 3), batches[3:])
    assert resumed.get_state() == states[-1]


def test_what_is_read_ahead_is_not_counted_before_it_is_used(warnings):
    source = FaultySource(30, bad=set(range(0, 30, 2)))
    iterator = stream(source, data=TOLERANT, batch=2)
    counts = [next(iterator)[1]["bad"].get("corrupt image", 0) for _ in range(5)]
    assert counts[0] <= 4 < counts[-1] + 4 and counts == sorted(counts)


def test_too_many_bad_records_stop_the_run_and_the_worst_files_are_named(warnings):
    iterator = stream(FaultySource(100, bad={41, 42, 43, 91}), data=DataConfig(max_bad_share=0.03), batch=50)
    with pytest.raises(DataError, match=r"4 of the 10\d records .*max_bad_share=0.03.*shard4 \(3\), shard9 \(1\)"):
        take(iterator, 2)


def test_a_few_early_bad_records_do_not_stop_the_run(warnings):
    iterator = stream(FaultySource(1000, bad=set()), data=DataConfig(max_bad_share=0.01), batch=50)
    order = [int(iterator.examples.order[i]) for i in range(50)]
    source = FaultySource(1000, bad={order[3]})
    iterator = stream(source, data=DataConfig(max_bad_share=0.01), batch=50)
    states = [next(iterator)[1] for _ in range(4)]
    assert states[0]["bad"] == states[-1]["bad"] == {"corrupt image": 1}


def test_a_source_of_nothing_but_bad_records_stops_at_once(warnings):
    with pytest.raises(DataError, match="16 records drawn in a row are bad; the last: shard"):
        next(stream(FaultySource(30, bad=set(range(30))), data=TOLERANT))


def test_an_error_of_the_source_itself_is_not_taken_for_a_bad_record():
    class Broken(list):
        def __getitem__(self, index):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(stream(Broken([0])))


def test_warnings_end_but_counting_goes_on(warnings):
    iterator = stream(FaultySource(100, bad=set(range(0, 100, 3))), data=DataConfig(max_bad_share=1.0), batch=100)
    _, state = next(iterator)
    assert state["bad"]["corrupt image"] >= 34
    assert len(warnings) == 20 and warnings[-1].endswith("further ones are counted only")


def test_real_damage_in_shards_is_counted_by_cause(tmp_path, warnings):
    records = [record(i) for i in range(12)]
    records[1] = b"not msgpack"
    records[2] = encode_record(b"", ["a"], key="empty")
    records[3] = encode_record(b"GIF89a", ["a"], key="wrong")
    records[4] = encode_record(encoded(picture(), "JPEG")[:-200], ["a"], key="cut")
    folder = write_folder(tmp_path / "set", records)
    shard = folder / "train-00000-of-00002.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[data.index(b"key5")] ^= 1
    shard.write_bytes(data)
    batch, state = next(stream(open_folder(folder), data=TOLERANT, batch=12))
    assert set(batch["pair_id"]) <= {0, 6, 7, 8, 9, 10, 11}
    assert set(state["bad"]) == {"corrupt record", "empty image", "not an image", "corrupt image", "unreadable record"}
    assert any(f"{shard} record 5: " in line and "hash mismatch" in line for line in warnings)


def test_replacements_keep_image_and_caption_together(warnings):
    batch = joined(take(stream(FaultySource(30, bad=set(range(15))), data=DataConfig(max_bad_share=1.0)), 3))
    assert (batch["text"][:, 1] == batch["pair_id"]).all()
    assert np.isin(batch["pair_id"], [example(i)["pair_id"] for i in range(15, 30)]).all()
