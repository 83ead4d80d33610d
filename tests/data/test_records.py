"""Records survive the round trip; a folder is whole or not there."""

import itertools
import json
import os
import re
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest

from clipjax.data.records import ManifestError, RecordError, decode_record, encode_record, read_manifest
from clipjax.data.write import write_records
from tests.data.samples import ROOT, encoded, open_folder, picture, record, run_script, write_folder

GOOD = {"image": b"x", "texts": ["a dog"], "key": "k"}


def test_a_record_is_read_back_as_written():
    data = encode_record(b"\x00\xff", ["ein Hündchen 🐶", ""], key="a/b", label=3, pair_id=7)
    fields = {"image": b"\x00\xff", "texts": ["ein Hündchen 🐶", ""], "key": "a/b", "label": 3, "pair_id": 7}
    assert decode_record(data) == fields


def test_a_record_is_plain_msgpack_and_absent_numbers_are_minus_one():
    assert msgpack.unpackb(encode_record(b"x", ["a dog"], key="k")) == GOOD
    assert decode_record(msgpack.packb({**GOOD, "label": None})) == {**GOOD, "label": -1, "pair_id": -1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a msgpack map"),
        (b"\xff\xff\xff", "not a msgpack map"),
        (msgpack.packb(GOOD)[:-3], "not a msgpack map"),
        (msgpack.packb(GOOD) + b"x", "not a msgpack map"),
        (msgpack.packb([1]), "a msgpack list"),
        (msgpack.packb({**GOOD, "image": "text"}), "field 'image' is str, expected bytes"),
        (msgpack.packb({"image": b"x", "key": "k"}), "field 'texts' is NoneType, expected list"),
        (msgpack.packb({**GOOD, "texts": []}), "record 'k' has no caption"),
        (msgpack.packb({**GOOD, "texts": [b"\xff"]}), "record 'k' has no caption"),
        (msgpack.packb(GOOD).replace(b"a dog", b"a\xff\xfeog"), "not a msgpack map"),  # not UTF-8
        (msgpack.packb({**GOOD, "label": "cat"}), "field 'label' is 'cat', expected an integer"),
        (msgpack.packb({**GOOD, "pair_id": 2**31}), "field 'pair_id' is 2147483648"),
        (msgpack.packb(msgpack.ExtType(1, b"x")), "a msgpack ExtType"),
    ],
)
def test_anything_else_is_a_record_error_saying_what_was_found(data, message):
    with pytest.raises(RecordError, match=message):
        decode_record(data)


def test_records_that_readers_would_refuse_cannot_be_written():
    with pytest.raises(RecordError, match="no caption"):
        encode_record(b"x", [], key="k")
    with pytest.raises(RecordError, match="pair_id"):
        encode_record(b"x", ["a"], key="k", pair_id=1 << 40)
    for pair_id in (1.5, "7", True):
        with pytest.raises(RecordError, match="field 'pair_id'"):
            encode_record(b"x", ["a"], key="k", pair_id=pair_id)
    for texts, message in ((["", " "], "has no caption"), (["a\ud83d"], "record 'k': 'utf-8' codec can't encode")):
        with pytest.raises(RecordError, match=message):
            encode_record(b"x", texts, key="k")
    assert decode_record(encode_record(b"x", "a dog", key="k", pair_id=7.0))["texts"] == ["a dog"]


def test_names_that_are_one_text_and_splits_that_are_paths_are_refused(tmp_path):
    records = [encode_record(b"x", "a dog", key="k")]
    for splits, names, message in (("train", "cat", "class_names='cat'"), ("a/b", (), "'a/b'"), ("", (), "''")):
        with pytest.raises(ManifestError, match=message):
            write_records(tmp_path / "out", {splits: records}, name="n", class_names=names, source={})
    assert not list(tmp_path.iterdir())


def test_a_folder_has_the_manifest_its_shards_say(tmp_path):
    folder = write_folder(tmp_path / "set", 37, records_per_shard=10)
    manifest = read_manifest(folder)
    shards = manifest["splits"]["train"]["shards"]
    assert [s["file"] for s in shards] == [f"train-0000{i}-of-00004.arrayrecord" for i in range(4)]
    assert [s["records"] for s in shards] == [10, 10, 10, 7]
    assert all((folder / s["file"]).stat().st_size == s["bytes"] for s in shards)
    sums = subprocess.run(["sha256sum", *(folder / s["file"] for s in shards)], capture_output=True, text=True)
    assert [line.split()[0] for line in sums.stdout.splitlines()] == [s["sha256"] for s in shards]
    assert sorted(os.listdir(folder)) == sorted(["manifest.json", *(s["file"] for s in shards)])
    source = open_folder(folder)
    assert [source[i]["key"] for i in range(len(source))] == [f"key{i}" for i in range(37)]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def records():
        yield record(0)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_records(tmp_path / "set", {"train": records()}, name="x", source={})
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_killed_leaves_no_folder_and_the_next_run_makes_it(tmp_path):
    script = tmp_path / "write.py"
    script.write_text(
        "import os, sys; from clipjax.data.write import write_records; from tests.data.samples import record\n"
        "def records():\n    for i in range(40):\n        yield record(i % 3)\n    os.kill(os.getpid(), 9)\n"
        "write_records(sys.argv[1], {'train': records()}, name='x', records_per_shard=10, source={})"
    )
    assert run_script(script, tmp_path / "set").returncode == -9
    assert not (tmp_path / "set").exists()
    with pytest.raises(ManifestError, match="not a finished folder of records"):
        read_manifest(tmp_path / "set")
    (left,) = tmp_path.glob(".set.unfinished-*")
    assert len(list(left.iterdir())) == 4
    write_folder(tmp_path / "set", 5)
    assert len(open_folder(tmp_path / "set")) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "write.py"]


def test_only_what_dead_writers_of_the_same_folder_left_is_removed(tmp_path):
    host, dead = socket.gethostname(), subprocess.Popen(["true"])
    dead.wait()
    kept = [
        f".set.unfinished-{host}-{os.getppid()}",  # at work
        f".set.unfinished-elsewhere-{dead.pid}",  # perhaps at work
        f".other.unfinished-{host}-{dead.pid}",
        f".set.unfinished-{host}-mine",
        f".set.more.unfinished-{host}-{dead.pid}",
    ]
    removed = [f".set.unfinished-{host}-{dead.pid}", ".set.unfinished-elsewhere-1", f".set.replaced-{host}-{dead.pid}"]
    write_folder(tmp_path / "set", 5)
    for name in kept + removed:
        (tmp_path / name).mkdir()
        (tmp_path / name / "train-00000").write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86400
    for path in (tmp_path / removed[1] / "train-00000", tmp_path / removed[1]):
        os.utime(path, (two_days_ago, two_days_ago))
    write_folder(tmp_path / "set", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "set"])


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_folder(tmp_path / "set", 5)
    (tmp_path / "set").rename(tmp_path / f".set.replaced-{socket.gethostname()}-{dead.pid}")
    # The same settings: found finished, not written again.
    write_records(tmp_path / "set", {"train": ()}, name="samples", source={"records": 5})
    assert len(open_folder(tmp_path / "set")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_finished_folder_is_found_again_and_other_settings_are_refused(tmp_path):
    def build(source, **options):
        return write_records(tmp_path / "set", {"train": records}, name="x", source=source, **options)

    records = [record(0)]
    first = build({"seed": 0, "shape": (1, 2)})
    records = (pytest.fail("read again") for _ in range(1))
    assert build({"seed": 0, "shape": (1, 2)}) == first
    with pytest.raises(ManifestError, match="(?s)other settings.*seed: 0 there, 1 now.*--overwrite"):
        build({"seed": 1})
    records = [record(0), record(1)]
    assert build({"seed": 1}, overwrite=True)["splits"]["train"]["records"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def write_together(parts, disturb=lambda: None, **options):
    """write_records of as many processes as parts, each a thread; [what it returns or raises]. disturb: between the
    writing and what follows."""
    met, values, lock = threading.Barrier(len(parts), timeout=300), {}, threading.Lock()

    def process(p):
        calls = itertools.count()

        def gather(value):
            call = next(calls)
            if call == 1 and p == 1:
                disturb()
            with lock:
                values[call, p] = json.dumps(value)
            met.wait()
            return [json.loads(values[call, q]) for q in range(len(parts))]

        try:
            return write_records(splits={"train": parts[p]}, name="x", process_index=p, gather=gather, **options)
        except ManifestError as error:
            met.abort()  # as clipjax.processes.stopping_together ends the others
            return error
        except threading.BrokenBarrierError:
            return None

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(process, range(len(parts))))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stops", [(37,), (20, 37), (0, 10, 30, 37), (20, 37, 37)])
def test_several_processes_write_the_files_that_one_writes(tmp_path, stops):
    records = [record(i % 5) for i in range(37)]
    options = {"source": {"seed": 0}, "records_per_shard": 10}
    manifest = write_records(tmp_path / "one", {"train": records}, name="x", **options)
    parts = [iter(records[start:stop]) for start, stop in zip((0, *stops), stops, strict=False)]
    found = write_together(parts, folder=tmp_path / "set", **options)
    assert found == [manifest] * len(stops)
    assert contents(tmp_path / "set") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "set")) == 5
    # Nothing is read when it is finished.
    unread = [(pytest.fail("read again") for _ in range(1)) for _ in stops]
    assert [m["splits"] for m in write_together(unread, folder=tmp_path / "set", **options)] == [
        manifest["splits"]
    ] * len(stops)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "set"]


@pytest.mark.parametrize("what", ["missing", "short"])
def test_what_the_first_process_does_not_see_is_named_and_nothing_is_published(tmp_path, what):
    def disturb():
        (unfinished,) = tmp_path.glob(".set.unfinished-*")
        lost = unfinished / "train-00001-00001"
        lost.unlink() if what == "missing" else lost.write_bytes(lost.read_bytes()[:-1])

    parts = [[record(0)] * 10, [record(1)] * 20]
    found = write_together(parts, disturb, folder=tmp_path / "set", source={}, records_per_shard=10)
    assert found[1] is None
    assert re.search(
        r"^1 shards .* train-00001-00001 of process 1\. Nothing was published.*all processes see", str(found[0])
    )
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_does_not_see_the_folder_of_the_first_says_so(tmp_path):
    def gather(value):  # of process 1, which has a folder of the same name on a disk of its own
        return [".set.unfinished-elsewhere-1", value]

    with pytest.raises(ManifestError, match=r"Process 1 on .*\.set\.unfinished-elsewhere-1, which process 0 made"):
        write_records(tmp_path / "set", {"train": [record(0)]}, name="x", source={}, process_index=1, gather=gather)
    assert list(tmp_path.iterdir()) == []


def test_overwrite_never_removes_a_folder_of_other_things(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"precious")
    with pytest.raises(ManifestError, match="photos holds other files than records.*another --out"):
        write_records(tmp_path / "photos", {"train": [record(0)]}, name="x", source={}, overwrite=True)
    assert (tmp_path / "photos" / "me.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has format 'list', expected 'clipjax-records/1'"),
        ('{"format": "clipjax-records/9"}', "has format 'clipjax-records/9'"),
        ('{"format": "clipjax-records/1"}', "is incomplete: .* needs a list 'shards'"),
        (
            json.dumps(
                {
                    "format": "clipjax-records/1",
                    "splits": {"train": {"shards": [{"file": "../x", "records": 1, "bytes": 1}]}},
                }
            ),
            "is incomplete: .*name in this folder",
        ),
        ('{"format": "clipjax-records/1", "splits": {}, "class_names": 0}', "is incomplete: .*class_names is a list"),
        (
            '{"format": "clipjax-records/1", "splits": {"train": {"shards": '
            '[{"file": "a", "records": 9999999999999999999, "bytes": 1}]}}}',
            'is incomplete: .*"records": number',
        ),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch):
    blocks = (ROOT / "docs" / "data.md").read_text().split("```python\n")[1:]
    (code,) = [block.split("```")[0] for block in blocks if "write_records" in block.split("```")[0]]
    (tmp_path / "photos").mkdir()
    for i in (1, 2):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG"))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    source = open_folder(tmp_path / "data" / "mine")
    assert [e["texts"] for e in source] == [["a dog asleep on a beach", "a sleeping dog"], ["two cats"]]
