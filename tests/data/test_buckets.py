"""Data in buckets are the data: the same records and batches as from local files, whatever fails on the way."""

import dataclasses
import logging
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax import storage
from clipjax.config import AugmentConfig, ConfigError, DataConfig, MixturePart, SourceConfig
from clipjax.data.finding import find_data
from clipjax.data.mixture import open_train
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import (
    SOURCES,
    FolderConfig,
    HardNegativesConfig,
    HeldOutConfig,
    MultilingualConfig,
    ParquetConfig,
    TfdsConfig,
    WebDatasetConfig,
    open_source,
)
from clipjax.data.sources import bucket_files as bucket_files_module
from clipjax.inference.looking import find_source
from clipjax.inference.provenance import files_of
from clipjax.storage import StorageError, block_cache, data_cache, ranges
from data_pipelines import csv
from tests.data.samples import example, write_folder
from tests.data.test_pipeline import assert_equal, stream, take
from tests.data.test_webdataset import samples, write_tar
from tests.storage.servers import BUCKETS

RECORDS = 30
GIB = 1 << 30
KINDS = {"tars": WebDatasetConfig, "parquet": ParquetConfig, "records": SourceConfig}
DATA = DataConfig(augment=AugmentConfig(scale=(0.3, 1.0), flip=0.5))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder with the same examples as tars, Parquet files and records."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "tars").mkdir()
    (folder / "parquet").mkdir()
    for shard in range(3):
        numbers = range(shard * 10, shard * 10 + 10)
        write_tar(folder / "tars" / f"{shard:05d}.tar", samples(numbers))
        rows = [example(i) for i in numbers]
        table = {"image": [row["image"] for row in rows], "text": [row["texts"][0] for row in rows]}
        pq.write_table(pa.table(table), folder / "parquet" / f"{shard}.parquet", row_group_size=4)
    write_folder(folder / "records", RECORDS, records_per_shard=8)
    return folder


def upload(folder, url):
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file() and "clipjax-index" not in path.name):
        storage.upload_file(file, f"{url}/{file.relative_to(folder)}")


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request, local):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with BUCKETS[request.param]() as url:
        upload(local, url)
        yield url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Sets the cache's limit for a test: cache(gibibytes)."""
    monkeypatch.setattr(data_cache, "_settings", data_cache._Settings())

    def use(gibibytes):
        data_cache.use_cache(str(tmp_path / "cache"), gibibytes)

    use(1)
    return use


@pytest.fixture
def requests(monkeypatch):
    """(object, first byte, bytes) of each range that is asked for, in no order."""
    asked = []
    for scheme, read in ranges._READERS.items():

        def counted(blob, start, size, read=read):
            asked.append((blob.url, start, size))
            return read(blob, start, size)

        monkeypatch.setitem(ranges._READERS, scheme, counted)
    return asked


def all_of(source):
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize(
    ("kind", "gibibytes"), [("tars", 1), ("tars", 0), ("parquet", 1), ("parquet", 0), ("records", 1)]
)
def test_batches_from_a_bucket_equal_those_from_local_files_also_after_a_resume(bucket, local, cache, kind, gibibytes):
    cache(gibibytes)
    here, there = (open_source(KINDS[kind](path=f"{root}/{kind}")) for root in (local, bucket))
    assert len(there) == RECORDS and there.where(11)[0].startswith(bucket)
    expected = take(stream(here, batch=8), 4)
    iterator = stream(there, batch=8)
    assert_equal(take(iterator, 2), expected[:2])
    resumed = stream(open_source(KINDS[kind](path=f"{bucket}/{kind}")), batch=8)
    resumed.set_state(iterator.get_state())
    assert_equal(take(resumed, 2), expected[2:])
    assert all_of(pickle.loads(pickle.dumps(there))) == all_of(here)  # as worker processes get it


def test_what_fits_into_the_cache_is_fetched_once_in_blocks_and_stays(bucket, requests, monkeypatch):
    monkeypatch.setattr(block_cache, "BLOCK", 1 << 14)
    sizes = {blob.url: blob.size for blob in open_source(WebDatasetConfig(path=f"{bucket}/tars")).bucket.blobs.values()}
    for _ in range(2):
        all_of(open_source(WebDatasetConfig(path=f"{bucket}/tars")))
    assert len(requests) == len(set(requests))
    assert sum(size for _, _, size in requests) == sum(sizes.values())
    requests.clear()
    all_of(open_source(WebDatasetConfig(path=f"{bucket}/tars")))
    assert not requests  # neither for the indexes nor for the data


def test_what_does_not_fit_is_one_request_of_a_sample_and_nothing_is_kept(bucket, cache, requests, tmp_path, caplog):
    cache(20_000 / GIB)
    source = open_source(WebDatasetConfig(path=f"{bucket}/tars"))
    assert "every read is a request" in caplog.text and "config.data.cache_gib" in caplog.text
    requests.clear()
    source.fetch_ahead(range(8))
    spans = {(source.files[0], start, end - start) for start, end in source.indexes[0][0][:8].tolist()}
    assert set(requests) == spans and len(requests) == 8
    all_of(source)
    assert len(requests) == RECORDS  # the eight were not asked for again
    assert not (tmp_path / "cache" / "blocks").exists()


def test_indexes_are_kept_in_the_cache_by_version_or_in_a_folder_that_is_named(bucket, local, tmp_path, requests):
    url = f"{bucket}/own"
    upload(local / "tars", url)
    open_source(WebDatasetConfig(path=url))
    kept = list((tmp_path / "cache" / "indexes").iterdir())
    assert len(kept) == 3 and not any("index" in name for name in storage.filesystem(bucket).ls(url, detail=False))
    config = WebDatasetConfig(path=url, data_dir=f"{bucket}/indexes")
    assert len(open_source(config)) == RECORDS
    assert len(storage.filesystem(bucket).ls(f"{bucket}/indexes")) == 3
    requests.clear()
    data_cache.use_cache(str(tmp_path / "other"), 0)  # as another host of a pod
    open_source(config)
    assert not requests
    write_tar(tmp_path / "new.tar", samples(range(50, 57)))
    storage.upload_file(tmp_path / "new.tar", f"{url}/00001.tar")
    source = open_source(config)
    assert len(source) == 27 and source[10]["key"] == "000050"


def test_an_object_written_over_during_a_run_gives_bad_records_that_say_so(bucket, local, cache, tmp_path):
    cache(0)
    url = f"{bucket}/changing"
    upload(local / "tars", url)
    source = open_source(WebDatasetConfig(path=url))
    with storage.as_path(f"{local}/tars/00000.tar").open("rb") as file:
        (tmp_path / "again.tar").write_bytes(file.read())
    storage.upload_file(tmp_path / "again.tar", f"{url}/00001.tar")
    assert source[3]["key"] == "000003"
    with pytest.raises(RecordError, match=rf"{url}/00001\.tar has changed") as caught:
        source[10]
    assert caught.value.cause == "changed object"
    storage.as_path(f"{url}/00002.tar").unlink()
    with pytest.raises(RecordError, match=rf"{url}/00002\.tar has changed"):
        source[20]


def failing(times, blob_of_failure=""):
    """A reader that fails so often, and then reads."""
    left = [times]

    def wrap(read):
        def fail(blob, start, size):
            if left[0] and blob_of_failure in blob.url:
                left[0] -= 1
                raise StorageError(f"{blob.url}: the storage server failed or did not answer (503).", "server")
            return read(blob, start, size)

        return fail

    return wrap


def test_a_server_that_fails_for_a_while_costs_no_record(bucket, local, cache, monkeypatch):
    cache(0)
    monkeypatch.setattr(ranges.time, "sleep", lambda seconds: None)
    here, there = (open_source(WebDatasetConfig(path=f"{root}/tars")) for root in (local, bucket))
    scheme = bucket.split(":")[0]
    monkeypatch.setitem(ranges._READERS, scheme, failing(5)(ranges._READERS[scheme]))
    iterator = stream(there, batch=8)
    assert_equal(take(iterator, 2), take(stream(here, batch=8), 2))
    assert iterator.get_state()["bad"] == {}


@pytest.mark.parametrize("kind", ["tars", "parquet", "records"])
def test_a_server_that_stays_away_stops_the_run_with_the_objects_name_and_no_bad_record(
    bucket, cache, monkeypatch, kind
):
    monkeypatch.setattr(ranges, "PATIENCE", 0)
    cache(0 if kind != "records" else 1)
    source = open_source(KINDS[kind](path=f"{bucket}/{kind}"))
    scheme = bucket.split(":")[0]
    monkeypatch.setitem(ranges._READERS, scheme, failing(10**6)(ranges._READERS[scheme]))
    iterator = stream(source, batch=8)
    with pytest.raises(StorageError, match=rf"^{bucket}/{kind}/\S+: the storage server failed"):
        take(iterator, 1)
    assert iterator.get_state()["bad"] == {}


def test_a_bad_sample_in_a_bucket_is_the_same_bad_record_as_in_a_local_file(bucket, tmp_path, cache):
    files = samples(range(3)) + [("000003.jpg", b"no image"), ("000003.txt", b"a text")] + [("000004.txt", b"alone")]
    write_tar(tmp_path / "bad.tar", files + samples(range(5, 20)))
    storage.upload_file(tmp_path / "bad.tar", f"{bucket}/bad/bad.tar")
    data = dataclasses.replace(DATA, max_bad_share=0.5)
    found = []
    for root in (tmp_path, f"{bucket}/bad"):
        iterator = stream(open_source(WebDatasetConfig(path=f"{root}/bad.tar")), data=data, batch=8)
        batches = take(iterator, 5)
        found.append((batches, iterator.get_state()["bad"]))
    assert_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] and set(found[0][1]) == {"not an image", "no image"}


def test_patterns_are_expanded_by_listing_and_what_is_missing_is_named(bucket):
    def length(pattern):
        return len(open_source(WebDatasetConfig(path=f"{bucket}/{pattern}")))

    assert length("tars/{00000..00002}.tar") == length("tars/*.tar") == length("tars") == RECORDS
    assert length("tars/{00000,00002}.tar") == length("tars/0000[02].tar") == 20 and length("tars/00001.tar") == 10
    for path, problem in {
        "tars/{00001..00003}.tar": rf"There is no file '{bucket}/tars/00003\.tar', of '",
        "tars/9*.tar": rf"There is no file '{bucket}/tars/9\*\.tar'",
        "none": rf"There is no file '{bucket}/none'",
        "records": "has no .tar file",
    }.items():
        with pytest.raises(ManifestError, match=problem):
            length(path)
    with pytest.raises(ManifestError, match="not a finished folder of records"):
        open_source(SourceConfig(path=f"{bucket}/none"))


@pytest.mark.parametrize("path", ["a.tar", "{0..40}.tar", "*.tar", "folder/*.tar"])
def test_a_bucket_that_is_not_there_is_named(bucket, path):
    with pytest.raises(StorageError, match=rf"there is no bucket {bucket}-none\b") as caught:
        open_source(WebDatasetConfig(path=f"{bucket}-none/{path}"))
    assert caught.value.kind == "bucket"
    with pytest.raises(StorageError, match=rf"there is no bucket {bucket}-none\b"):
        open_source(SourceConfig(path=f"{bucket}-none/records"))


def test_many_shards_are_looked_up_by_one_list(bucket, local, monkeypatch):
    monkeypatch.setattr(ranges, "LOOKED_UP", 2)
    monkeypatch.setattr(ranges, "_look_up", lambda url: pytest.fail(f"asked for {url} alone"))
    assert len(open_source(WebDatasetConfig(path=f"{bucket}/tars/{{00000..00002}}.tar"))) == RECORDS
    with pytest.raises(ManifestError, match=r"There is no file '.*/tars/00003\.tar', of '"):
        open_source(WebDatasetConfig(path=f"{bucket}/tars/{{00000..00003}}.tar"))


def test_class_names_beside_tars_in_a_bucket_are_read(bucket, tmp_path):
    write_tar(tmp_path / "a.tar", [(f"{i}.{name}", data) for i in range(4) for name, data in
                                   (("jpg", example(i)["image"]), ("cls", str(i % 2).encode()))])  # fmt: skip
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    upload(tmp_path, f"{bucket}/classes")
    source = open_source(WebDatasetConfig(path=f"{bucket}/classes/a.tar"))
    assert source.class_names == ("cat", "dog") and source[1]["texts"] == ["dog"]


def test_a_mixture_and_a_held_out_part_of_buckets_are_those_of_local_files(bucket, local):
    def mixed(tars):
        every = HeldOutConfig(path=f"{tars}/tars", every=3, source=WebDatasetConfig())
        parts = {"a": every, "b": ParquetConfig(path=f"{local}/parquet"), "c": SourceConfig(path=f"{tars}/records")}
        mixture = {name: MixturePart(source, 1.0) for name, source in parts.items()}
        return open_train(dataclasses.replace(DATA, mixture=mixture, cache_dir=str(data_cache.cache_folder())))

    assert_equal(take(stream(mixed(bucket), batch=8), 3), take(stream(mixed(local), batch=8), 3))


def test_records_that_do_not_fit_into_the_cache_are_refused_with_the_cure(bucket, cache):
    cache(0)
    with pytest.raises(ManifestError, match=r"config\.data\.cache_gib.*mount the bucket"):
        open_source(SourceConfig(path=f"{bucket}/records"))


def test_a_truncated_shard_in_a_bucket_is_refused_by_its_name(bucket, local, tmp_path):
    url = f"{bucket}/short"
    upload(local / "records", url)
    name = "train-00001-of-00004.arrayrecord"
    (tmp_path / name).write_bytes((local / "records" / name).read_bytes()[:-1])
    storage.upload_file(tmp_path / name, f"{url}/{name}")
    with pytest.raises(ManifestError, match=rf"Shard {url}/{name}: expected \d+ bytes"):
        open_source(SourceConfig(path=url))


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("kind", [IMAGE, pa.struct([("path", pa.string())])], ids=["bytes and path", "path"])
def test_parquet_in_a_bucket_that_only_names_its_images_is_refused_with_the_cure(bucket, tmp_path, kind):
    rows = {"image": pa.array([{"path": "a.png"}] * 5, kind), "text": ["a"] * 5}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet", row_group_size=2)
    storage.upload_file(tmp_path / "0.parquet", url := f"{bucket}/names_{kind.num_fields}/0.parquet")
    with pytest.raises(ManifestError, match=rf"{url}, column 'image', has paths .* Mount the bucket or copy it"):
        open_source(ParquetConfig(path=url))


def test_a_row_in_a_bucket_that_only_names_its_image_is_a_bad_record(bucket, tmp_path):
    images = pa.array([{"bytes": example(0)["image"], "path": "a.png"}, {"path": "b.png"}], IMAGE)
    pq.write_table(pa.table({"image": images, "text": ["a", "b"]}), tmp_path / "0.parquet")
    storage.upload_file(tmp_path / "0.parquet", url := f"{bucket}/some_names/0.parquet")
    source = open_source(ParquetConfig(path=url))
    assert source[0]["image"] == example(0)["image"]
    with pytest.raises(RecordError, match="names a file"):
        source[1]


def test_checksums_of_shards_in_a_bucket_are_those_of_their_copies(bucket):
    assert open_source(SourceConfig(path=f"{bucket}/records")).damaged_files() == []


def test_stored_results_know_the_version_of_data_in_a_bucket(bucket):
    config = WebDatasetConfig(path=f"{bucket}/tars")
    files = files_of(config, open_source(config))
    assert [row[0] for row in files] == [f"{bucket}/tars/0000{n}.tar" for n in range(3)] and all(
        row[2] for row in files
    )


LOCAL_ONLY = {FolderConfig: {}, HardNegativesConfig: {}, MultilingualConfig: {}, TfdsConfig: {}}


@pytest.mark.parametrize("make", LOCAL_ONLY)
def test_sources_that_read_no_buckets_say_so_and_name_those_that_do(make):
    with pytest.raises(ManifestError, match=r"does not read from buckets.*array_record, held_out, parquet, webdataset"):
        open_source(make(path="gs://bucket/data"))
    if hasattr(make, "data_dir"):
        with pytest.raises(ManifestError, match="s3://bucket/data is in one"):
            open_source(make(path="table.csv", data_dir="s3://bucket/data"))


def test_every_source_either_reads_buckets_or_says_that_it_does_not():
    assert {name for name, row in SOURCES.items() if row.config in LOCAL_ONLY} == set(SOURCES) - {
        "array_record", "held_out", "parquet", "webdataset",
    }  # fmt: skip


@pytest.mark.parametrize("make", [*KINDS.values(), FolderConfig, TfdsConfig, HardNegativesConfig])
@pytest.mark.parametrize("path", ["hdfs://name/x", "az://bucket/x", "https://host/x.tar", "gs:/bucket/x", "gs:///x"])
def test_other_schemes_are_refused_by_name_before_anything_is_made(make, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=r"scheme (hdfs|az|https)://|write gs://bucket/x|no bucket"):
        open_source(make(path=path))
    assert not [found for found in tmp_path.iterdir() if found.name != "cache"]


def test_the_cache_must_be_on_a_local_disk():
    with pytest.raises(StorageError, match=r"config\.data\.cache_dir=gs://bucket/x must be on a local disk"):
        data_cache.use_cache("gs://bucket/x", 1)


def test_sources_share_the_limit_of_the_cache(tmp_path, cache):
    cache(1000 / GIB)
    blobs = [block_cache.Blob(f"gs://b/{n}", 400, "1") for n in range(3)]
    assert data_cache.claim(blobs[:2]) and data_cache.claim(blobs[:1])  # opened again: counts once
    assert data_cache.claim(blobs[2:]) is None


def test_a_stream_reads_as_a_file_does():
    content = np.random.default_rng(0).bytes(1000)
    for window in (0, 7, 64, 5000):
        file = bucket_files_module.BucketStream(lambda start, size: content[start : start + size], 1000, window)
        for start, size in ((0, 10), (5, 3), (990, 20), (1000, 1), (63, 130), (0, 1000)):
            assert file.seek(start) == start and file.read(size) == content[start : start + size]
        assert file.seek(-4, 2) == 996 and file.read() == content[996:] and file.tell() == 1000


def test_what_a_bucket_holds_is_found_by_looking_into_it(bucket, tmp_path):
    found = find_data(f"{bucket}/tars")
    assert found.train == WebDatasetConfig(path=f"{bucket}/tars") and found.what.startswith("3 .tar files of")
    assert find_data(f"{bucket}/tars/*.tar").train == WebDatasetConfig(path=f"{bucket}/tars/*.tar")
    parquet = ParquetConfig(path=f"{bucket}/parquet", label_key="")
    assert (
        find_data(f"{bucket}/parquet").train
        == find_source(f"{bucket}/parquet")
        == dataclasses.replace(parquet, split="train")
    )
    assert find_data(f"{bucket}/records").train == SourceConfig(path=f"{bucket}/records")
    assert find_source(f"{bucket}/records", "train").path == f"{bucket}/records"
    storage.as_path(f"{bucket}/photos/a.jpg").write_bytes(example(0)["image"])
    for find in (find_data, find_source):
        with pytest.raises(ConfigError, match=r"Copy other data to a local disk, or mount the bucket"):
            find(f"{bucket}/photos")
    with pytest.raises(ConfigError, match=r"holds no files"):
        find_data(f"{bucket}/none")


def test_records_that_were_written_into_a_bucket_are_read_from_it(bucket):
    write_folder(storage.as_path(f"{bucket}/written"), 5)
    assert [record["key"] for record in all_of(open_source(SourceConfig(path=f"{bucket}/written")))] == [
        f"key{i}" for i in range(5)
    ]


def test_inputs_of_pipelines_are_local_and_no_folder_called_gs_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        csv.main(["--table=gs://bucket/t.csv", "--out=out"])
    assert "gs://bucket/t.csv is in a bucket" in capsys.readouterr().err
    assert not list(tmp_path.glob("[gs]*"))
