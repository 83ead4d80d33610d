"""Blocks of objects are kept on a disk within a limit, whole or not at all, and only for the version they are of."""

import multiprocessing
import os
import pickle
import threading
import time

import numpy as np
import pytest

from clipjax.storage.block_cache import BLOCK, Blob, BlockCache, room_on

SIZE = 300_000
BLOCK_OF_TEST = 1 << 16
CONTENT = np.random.default_rng(0).bytes(SIZE)
BLOB = Blob("gs://bucket/a.tar", SIZE, "1")


class Bucket:
    """Counts what is fetched from it."""

    def __init__(self, content=CONTENT):
        self.content, self.calls = content, []

    def __call__(self, blob, start, size):
        self.calls.append((start, size))
        return self.content[start : start + size]


def make(folder, bucket, limit=10 << 20, block=BLOCK_OF_TEST):
    return BlockCache(folder, limit, bucket, block)


def kept(folder):
    return [path for path in (folder / "blocks").rglob("*") if path.is_file()]


def test_every_piece_of_an_object_is_read_as_it_is_and_each_block_fetched_once(tmp_path):
    bucket = Bucket()
    cache = make(tmp_path / "cache", bucket)
    rng = np.random.default_rng(1)
    for _ in range(200):
        start = int(rng.integers(SIZE))
        size = int(rng.integers(SIZE - start + 1))
        assert cache.read(BLOB, start, size) == CONTENT[start : start + size]
    assert len(bucket.calls) == len(set(bucket.calls)) == -(-SIZE // BLOCK_OF_TEST)
    assert make(tmp_path / "cache", Bucket(b"")).read(BLOB, 0, SIZE) == CONTENT  # of the next process, from the disk


def test_another_version_of_an_object_is_fetched_anew(tmp_path):
    make(tmp_path, Bucket()).read(BLOB, 0, SIZE)
    other = CONTENT[::-1]
    assert make(tmp_path, Bucket(other)).read(BLOB._replace(version="2"), 0, SIZE) == other
    assert make(tmp_path, Bucket(b"")).read(BLOB, 0, SIZE) == CONTENT


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
        lambda data: bytes(len(data)),
        lambda data: b"",
        lambda data: data[:-40] + bytes(24) + data[-16:],
        lambda data: data + b"x",
    ],
)
def test_a_damaged_block_is_fetched_again(tmp_path, damage):
    cache = make(tmp_path, Bucket(), block=BLOCK)
    cache.read(BLOB, 0, SIZE)
    (path,) = kept(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    again = Bucket()
    assert make(tmp_path, again, block=BLOCK).read(BLOB, 0, SIZE) == CONTENT
    assert again.calls == [(0, SIZE)]


def test_a_block_under_the_name_of_another_is_not_taken_for_it(tmp_path):
    cache = make(tmp_path, Bucket())
    cache.read(BLOB, 0, 2 * BLOCK_OF_TEST)
    one, two = sorted(kept(tmp_path))
    one.write_bytes(two.read_bytes())
    assert cache.read(BLOB, 0, 2 * BLOCK_OF_TEST) == CONTENT[: 2 * BLOCK_OF_TEST]


def test_the_limit_holds_and_what_was_read_longest_ago_goes_first(tmp_path):
    limit = 4 * (BLOCK_OF_TEST + 100)
    bucket = Bucket()
    cache = make(tmp_path, bucket, limit)
    for number in range(4):
        cache.keep(BLOB, number)
    for path in kept(tmp_path):
        os.utime(path, (1, 1))
    cache.keep(BLOB, 0)  # is read, and so newer than the others
    cache.keep(BLOB, 4)
    assert sum(path.stat().st_size for path in kept(tmp_path)) <= limit
    bucket.calls.clear()
    cache.keep(BLOB, 0)
    cache.keep(BLOB, 4)
    assert not bucket.calls


def test_an_object_larger_than_the_limit_is_still_read(tmp_path):
    cache = make(tmp_path, Bucket(), limit=BLOCK_OF_TEST // 2)
    assert cache.read(BLOB, 5, 1000) == CONTENT[5:1005] and not kept(tmp_path)
    with pytest.raises(OSError, match="no room for gs://bucket/a.tar"):
        cache.whole(BLOB)


def test_what_a_killed_process_left_half_written_is_removed_and_never_read(tmp_path):
    cache = make(tmp_path, Bucket(), limit=2 * BLOCK_OF_TEST)
    cache.keep(BLOB, 0)
    left = kept(tmp_path)[0].with_name(".x.1-1.part")
    left.write_bytes(bytes(1000))
    os.utime(left, (1, 1))
    cache.keep(BLOB, 1)
    assert not left.exists() and cache.read(BLOB, 0, SIZE) == CONTENT


def test_threads_fetch_a_block_once(tmp_path):
    class Slow(Bucket):
        def __call__(self, *call):
            time.sleep(0.02)
            return super().__call__(*call)

    bucket = Slow()
    cache = make(tmp_path, bucket)
    threads = [threading.Thread(target=cache.read, args=(BLOB, 0, SIZE)) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(bucket.calls) == len(set(bucket.calls))


def counted(blob, start, size):
    """The bytes of CONTENT; each call leaves a file in the folder that the object's address names."""
    open(f"{blob.url}/{start}-{os.getpid()}", "x").close()
    time.sleep(0.02)
    return CONTENT[start : start + size]


def read_all(cache, url):
    assert cache.read(BLOB._replace(url=url), 0, SIZE) == CONTENT


def test_processes_of_a_host_share_the_blocks_and_fetch_each_once(tmp_path):
    (tmp_path / "calls").mkdir()
    cache = make(tmp_path / "cache", counted)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=read_all, args=(cache, str(tmp_path / "calls"))) for _ in range(3)]
    [process.start() for process in processes]
    [process.join() for process in processes]
    assert [process.exitcode for process in processes] == [0, 0, 0]
    fetched = [path.name.split("-")[0] for path in (tmp_path / "calls").iterdir()]
    assert len(fetched) == len(set(fetched)) == -(-SIZE // BLOCK_OF_TEST)


def test_a_folder_that_cannot_be_written_costs_fetches_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = make(tmp_path / "file" / "cache", Bucket())
    for _ in range(2):
        assert cache.read(BLOB, 10, SIZE - 10) == CONTENT[10:]
    assert "cannot keep data from buckets" in caplog.text and "config.data.cache_dir" in caplog.text


def test_errors_of_the_bucket_go_to_the_reader_and_leave_no_block(tmp_path):
    def failing(*call):
        raise ConnectionError("gs://bucket/a.tar: gone")

    with pytest.raises(ConnectionError, match=r"a\.tar"):
        make(tmp_path, failing).read(BLOB, 0, 10)
    assert not kept(tmp_path) and make(tmp_path, Bucket()).read(BLOB, 0, 10) == CONTENT[:10]


def test_a_whole_object_is_one_file_that_is_fetched_once(tmp_path):
    bucket = Bucket()
    path = make(tmp_path, bucket).whole(BLOB)
    assert path.read_bytes() == CONTENT and path.name == "a.tar"
    calls = len(bucket.calls)
    assert make(tmp_path, bucket).whole(BLOB) == path and len(bucket.calls) == calls
    path.write_bytes(CONTENT[:100])  # as a full disk leaves it
    assert make(tmp_path, bucket).whole(BLOB).read_bytes() == CONTENT


def test_a_pickled_cache_reads_the_same_folder(tmp_path):
    cache = make(tmp_path, Bucket())
    cache.read(BLOB, 0, SIZE)
    copy = pickle.loads(pickle.dumps(cache))
    copy.fetch = None
    assert copy.read(BLOB, 0, SIZE) == CONTENT


def test_half_of_the_free_disk_is_the_most_that_a_cache_takes(tmp_path):
    assert room_on(tmp_path / "not" / "there", 1000) == 1000
    assert room_on(tmp_path, 1 << 60) < 1 << 60
