"""Every shard is checked against the manifest before training; records are checked by their hash when read."""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipjax.config import ConfigError, SourceConfig, default_config, from_config_dict, from_json_dict
from clipjax.config.fields import declarations
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import SOURCES, FolderConfig, ParquetConfig, TfdsConfig, WebDatasetConfig, open_source
from tests.data.samples import example, open_folder, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def copy(tmp_path):
    return write_folder(tmp_path / "set")


def test_a_source_gives_every_record_its_class_names_and_its_place(folder):
    source = open_folder(folder)
    assert list(source) == [example(i) for i in range(37)]
    assert source.class_names == ("even", "odd")
    assert source.where(23) == (str(folder / "train-00002-of-00004.arrayrecord"), 3)


def test_threads_and_a_pickled_copy_read_the_same(folder):
    source = open_folder(folder)
    keys = [f"key{i * 7 % 37}" for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: source[i * 7 % 37]["key"], range(400))) == keys
    assert pickle.loads(pickle.dumps(source))[11] == source[11]


def test_shards_are_opened_when_first_read(copy):
    source = open_folder(copy)
    for shard in copy.glob("train-00003*"):
        shard.unlink()
    assert source[0]["key"] == "key0"
    with pytest.raises(RecordError, match="No such file"):
        source[36]


def test_a_missing_shard_is_named(copy):
    (copy / "train-00002-of-00004.arrayrecord").unlink()
    with pytest.raises(ManifestError, match="train-00002-of-00004.arrayrecord: expected .* bytes.*found no file"):
        open_folder(copy)


def test_a_truncated_shard_is_named_with_both_sizes(copy):
    path = copy / "train-00001-of-00004.arrayrecord"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(ManifestError, match=f"00001.*expected {size} bytes by the manifest, found {size // 2}"):
        open_folder(copy)


def test_a_flipped_bit_costs_one_record_and_is_never_silent(copy):
    path = copy / "train-00000-of-00004.arrayrecord"
    data = bytearray(path.read_bytes())
    data[data.index(b"key4")] ^= 1
    path.write_bytes(data)
    source = open_folder(copy)
    for i in range(37):
        if i == 4:
            with pytest.raises(RecordError, match="hash mismatch") as caught:
                source[i]
            assert caught.value.cause == "unreadable record"
        else:
            assert source[i] == example(i)


def test_an_unknown_split_or_source_names_the_nearest(folder):
    with pytest.raises(ManifestError, match="no split 'trian'. Did you mean 'train'"):
        open_source(SourceConfig(path=str(folder), split="trian"))
    with pytest.raises(ConfigError, match="'array_records' is unknown. Did you mean 'array_record'"):
        open_source(SourceConfig(name="array_records"))
    with pytest.raises(ManifestError, match="nowhere is not a finished folder"):
        open_source(SourceConfig(path="nowhere"))


def test_a_source_has_its_own_options_and_no_others():
    for name, row in SOURCES.items():
        assert row.config().name == name
        assert all(declaration.role for _, _, declaration in declarations(row.config()))
    config = default_config()
    config.data.train.name = "webdataset"
    config.data.train.text_key = "alt"
    assert from_config_dict(config).data.train == WebDatasetConfig(text_key="alt")
    with pytest.raises(ConfigError, match="config.data.train.text_key: 'array_record' has no such field, 'folder'"):
        from_json_dict({"data": {"train": {"text_key": "alt"}}})
    with pytest.raises(ConfigError, match="Source 'webdataset' needs a WebDatasetConfig, but got a SourceConfig"):
        open_source(SourceConfig(name="webdataset"))


def test_a_split_without_records_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"] = []
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="split 'train', has no records"):
        open_folder(copy)


def test_tfds_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ManifestError, match="pip install tensorflow-datasets importlib_resources"):
        open_source(TfdsConfig(path="mnist"))


def test_any_damage_to_a_shard_costs_records_and_is_never_silent(copy):
    path = copy / "train-00000-of-00004.arrayrecord"
    sound, rng, lost = path.read_bytes(), np.random.default_rng(0), 0
    used = sound.rindex(b"key9") + 100  # the rest is the padding of ArrayRecord's blocks and the index
    for _ in range(30):
        data = bytearray(sound)
        at, length = int(rng.integers(used)), int(rng.integers(1, 600))
        data[at : at + length] = rng.bytes(length)
        path.write_bytes(data[: len(sound)])
        source = open_folder(copy)
        for i in range(12):
            try:
                assert source[i] == example(i)
            except RecordError as error:
                assert error.cause == "unreadable record" and i < 10
                lost += 1
    assert 30 <= lost < 30 * 10


@pytest.mark.parametrize("config", [SourceConfig, FolderConfig, ParquetConfig, WebDatasetConfig])
def test_an_empty_path_is_not_the_current_folder(config):
    with pytest.raises(ConfigError, match="needs a path"):
        open_source(config(path=""))
