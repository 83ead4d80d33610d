"""Parquet rows are what pyarrow reads, row groups are decoded once while they are kept, and damage has a name."""

import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.config import DataConfig
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import ParquetConfig, open_source, parquet_groups
from clipjax.data.sources import parquet as parquet_source
from tests.data.samples import ROOT, encoded, example, picture
from tests.data.test_pipeline import assert_equal, joined, stream, take

ROWS, GROUP = 23, 4


def open_parquet(path, **changes):
    return open_source(ParquetConfig(path=str(path), **changes))


def write(path, columns, group=GROUP, **options):
    pq.write_table(pa.table(columns), path, row_group_size=group, **options)
    return path


def cause_of(source, index):
    with pytest.raises(RecordError) as caught:
        source[index]
    return caught.value.cause


def columns_of(numbers):
    rows = [example(i) for i in numbers]
    return {
        "url": [f"https://host/{row['key']}" for row in rows],
        "image": pa.array([row["image"] for row in rows], pa.binary()),
        "text": pa.array([row["texts"] for row in rows], pa.list_(pa.string())),
        "label": pa.array([row["label"] for row in rows], pa.int64()),
        "pair_id": pa.array([row["pair_id"] for row in rows], pa.int64()),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    write(folder / "train-00000-of-00002.parquet", columns_of(range(10)))
    write(folder / "train-00001-of-00002.parquet", columns_of(range(10, ROWS)))
    return folder


def test_every_row_is_what_pyarrow_reads(folder):
    source = open_parquet(folder)
    rows = [row for file in sorted(folder.iterdir()) for row in pq.read_table(file).to_pylist()]
    assert len(source) == len(rows) == ROWS
    for i, row in enumerate(rows):
        found = source[i]
        assert {**found, "key": ""} == {
            "image": row["image"], "texts": row["text"], "label": row["label"], "pair_id": row["pair_id"], "key": ""
        }  # fmt: skip
    assert source[12]["key"] == "train-00001-of-00002.parquet/2"
    assert source.where(22) == (str(folder / "train-00001-of-00002.parquet"), 12)
    for beyond in (-1, ROWS):
        with pytest.raises(IndexError):
            source[beyond]


HF_FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def test_hugging_faces_images_and_class_names_are_read(tmp_path):
    images = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "/etc/passwd"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": [1, 0, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": HF_FEATURES}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "0.parquet")
    source = open_parquet(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert (source[0]["image"], source[0]["texts"], source[0]["label"]) == (b"one", ["dog"], 1)
    assert [cause_of(source, 1), cause_of(source, 2)] == ["path outside the folder", "no image"]


def test_captions_of_several_and_of_inner_columns(tmp_path):
    columns = {
        "image": [b"x", b"y"],
        "text": ["plain", None],
        "large": pa.array(["large", "other"], pa.large_string()),
        "items": [[{"t": "1"}, {"t": "2"}], []],
    }
    write(tmp_path / "0.parquet", columns)
    assert open_parquet(tmp_path)[0]["texts"] == ["plain"]
    assert open_parquet(tmp_path, text_key="text,large")[0]["texts"] == ["plain", "large"]
    assert open_parquet(tmp_path, text_key="text, large")[1]["texts"] == ["other"]
    assert open_parquet(tmp_path, text_key="items/t")[0]["texts"] == ["1", "2"]
    assert (
        cause_of(open_parquet(tmp_path, text_key="items/t"), 1) == cause_of(open_parquet(tmp_path), 1) == "no caption"
    )


def test_columns_that_are_not_there_are_named_with_those_that_are(folder, tmp_path):
    with pytest.raises(
        ManifestError, match="no column 'caption'. It has 'url', 'image', 'text', 'label', 'pair_id'.*Set .* text_key"
    ):
        open_parquet(folder, text_key="caption")
    with pytest.raises(ManifestError, match="no column 'images'.*Did you mean 'image'.*image_key"):
        open_parquet(folder, image_key="images")
    write(tmp_path / "0.parquet", columns_of(range(3)))
    write(tmp_path / "1.parquet", {"image": [b"x"], "txt": ["a"]})
    with pytest.raises(ManifestError, match="1.parquet has no column 'text'"):
        open_parquet(tmp_path)


def test_invalid_utf8_and_rows_without_image_are_bad_records(tmp_path):
    # Arrow itself writes what it is told is text.
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"caf\xe9", b"also"], pa.binary()).buffers())
    write(tmp_path / "0.parquet", {"image": pa.array([b"x", b"y", None]), "text": bad, "label": [0, 1, 2**40]})
    source = open_parquet(tmp_path)
    assert source[0]["texts"] == ["good"]
    assert [cause_of(source, 1), cause_of(source, 2)] == ["not UTF-8", "no image"]
    write(tmp_path / "0.parquet", {"image": [b"x"], "text": ["a"], "label": [2**40]})
    assert cause_of(open_parquet(tmp_path), 0) == "unusable label"


def test_a_row_group_is_decoded_once_by_all_threads_while_it_is_kept(folder, monkeypatch):
    reads, lock = [], threading.Lock()
    original = parquet_groups.read_file_group

    def counted(path, number, columns, bucket=None):
        with lock:
            reads.append((path, number))
        return original(path, number, columns, bucket)

    monkeypatch.setattr(parquet_groups, "read_file_group", counted)
    source = open_parquet(folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: source[i * 7 % ROWS]["pair_id"], range(400)))
    assert found == [i * 7 % ROWS for i in range(400)]
    assert sorted(reads) == sorted(set(reads)) and len(reads) == 3 + 4
    reads.clear()
    monkeypatch.setattr(parquet_groups, "KEPT_BYTES", 1)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i]["pair_id"] for i in (0, 1, 4, 10, 0)] == [0, 1, 4, 10, 0]
    assert len(copy.cache.tables) == 2 and len(reads) == 4


def test_what_is_kept_stays_below_the_bound(tmp_path, monkeypatch):
    write(tmp_path / "0.parquet", {"image": [bytes(10_000)] * 40, "text": ["a"] * 40})
    monkeypatch.setattr(parquet_groups, "KEPT_BYTES", 150_000)  # three groups of four images
    source = open_parquet(tmp_path)
    for i in range(40):
        source[i]
        assert sum(table.nbytes for table in source.cache.tables.values()) <= 150_000
    assert len(source.cache.tables) == 3


def test_only_the_columns_that_are_needed_are_decoded(tmp_path):
    write(tmp_path / "0.parquet", {**columns_of(range(4)), "embedding": [bytes(10_000)] * 4})
    source = open_parquet(tmp_path)
    source[0]
    assert source.cache.tables[0].column_names == ["image", "text", "label", "pair_id"]


def test_training_on_parquet_is_the_same_on_any_number_of_hosts_and_has_each_row_once_an_epoch(folder):
    expected = take(stream(open_parquet(folder), batch=23), 2)
    for batch in expected:
        assert sorted(batch["pair_id"]) == list(range(ROWS))
    assert (expected[0]["pair_id"] != expected[1]["pair_id"]).any()
    whole = joined(take(stream(open_parquet(folder), batch=24), 2))
    parts = [take(stream(open_parquet(folder), batch=24, process=(p, 4)), 2) for p in range(4)]
    assert_equal([joined([joined(part) for part in zip(*parts, strict=True)])], [whole])


def test_a_row_group_is_decoded_once_an_epoch_where_its_window_is_kept(tmp_path, monkeypatch):
    write(tmp_path / "0.parquet", {"image": [bytes(10_000)] * 400, "text": ["a"] * 400}, group=10, use_dictionary=False)
    monkeypatch.setattr(parquet_source, "WINDOW_BYTES", 500_000)  # four groups of ten images
    monkeypatch.setattr(parquet_groups, "KEPT_BYTES", 1_000_000)
    reads, original = [], parquet_groups.read_file_group

    def counted(path, number, columns, bucket=None):
        reads.append(number)
        return original(path, number, columns, bucket)

    monkeypatch.setattr(parquet_groups, "read_file_group", counted)
    source = open_parquet(tmp_path)
    assert source.window == 4
    order = source.order(seed=3)
    for i in range(400):
        source[order[i]]
    assert sorted(reads) == list(range(40)) != reads
    first = list(reads)
    for i in range(400, 800):
        source[order[i]]
    # What the first epoch ended with may still be there.
    assert 32 <= len(reads) - 40 <= 40 and len(set(reads[40:])) == len(reads) - 40 and reads[40:] != first


def test_damaged_pages_cost_their_row_group_and_are_named(tmp_path):
    columns = {"image": [bytes([i]) * 500 for i in range(12)], "text": [f"caption 0 of record {i}" for i in range(12)]}
    path = write(tmp_path / "0.parquet", columns, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[data.index(bytes([5]) * 500) + 100] ^= 1  # in the second row group
    path.write_bytes(data)
    source = open_parquet(path)
    assert [cause_of(source, i) for i in range(4, 8)] == ["unreadable record"] * 4
    assert [source[i]["image"][0] for i in (0, 3, 8, 11)] == [0, 3, 8, 11]
    with pytest.raises(RecordError, match=f"{path} row group 1: .*CRC"):
        source[4]


def test_cut_empty_and_foreign_files_are_refused_by_name(tmp_path):
    path = write(tmp_path / "0.parquet", columns_of(range(5)))
    sound = path.read_bytes()
    for content in (sound[:-10], sound[: len(sound) // 2], b"", b"PAR1", b"not parquet at all"):
        path.write_bytes(content)
        with pytest.raises(ManifestError, match="0.parquet cannot be read"):
            open_parquet(tmp_path)
    path.write_bytes(sound)
    source = open_parquet(tmp_path)
    path.unlink()
    assert cause_of(source, 0) == "unreadable record"
    write(path, {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())})
    with pytest.raises(ManifestError, match="has no records"):
        open_parquet(tmp_path)


def test_row_groups_too_large_to_decode_for_a_row_are_refused(folder, monkeypatch):
    monkeypatch.setattr(parquet_source, "MAX_GROUP", 1000)
    with pytest.raises(ManifestError, match="has a row group of .* bytes.*smaller row groups, or build records"):
        open_parquet(folder)


def test_bad_rows_in_a_run_are_replaced_and_counted(tmp_path):
    image = [encoded(picture(i)) for i in range(12)]
    texts = [f"caption 0 of record {i}" for i in range(12)]
    image[3], texts[7] = None, ""
    write(tmp_path / "0.parquet", {"image": image, "text": texts})
    batch, state = next(stream(open_parquet(tmp_path), data=DataConfig(max_bad_share=1.0), batch=12))
    assert set(state["bad"]) == {"no image", "no caption"}
    assert not {3, 7} & set(batch["text"][:, 1])


def test_pyarrow_is_imported_by_the_source_alone():
    code = (
        "import sys, clipjax.data.sources, clipjax.data.pipeline\n"
        "assert 'pyarrow' not in sys.modules\n"
        "sys.modules['pyarrow'] = None\n"
        "from clipjax.data.sources.parquet_groups import _import_parquet\n"
        "try: _import_parquet()\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert "Source 'parquet' cannot import pyarrow" in done.stdout, done.stderr


def test_a_footer_whose_numbers_of_rows_are_impossible_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", columns_of(range(3)), group=2)
    data = path.read_bytes()
    tried = [place + 1 for place in range(len(data)) if data[place : place + 2] == b"\x16\x04"]  # Thrift: 2 as 64 bits
    damaged = [data[:place] + b"\x49" + data[place + 1 :] for place in tried]  # -37
    found = [some for some in damaged if rows_of_first_group(some) == -37]
    path.write_bytes(found[0])
    with pytest.raises(ManifestError, match=r"a\.parquet is damaged: .* 3 rows, and -37 to 1"):
        open_parquet(path)


def rows_of_first_group(data):
    with suppress(OSError, pa.ArrowException):
        return pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).num_rows
    return None
