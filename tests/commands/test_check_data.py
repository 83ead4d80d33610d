"""`clipjax check-data` reads everything and names what is bad."""

import dataclasses

import pytest

from clipjax.commands import check_data
from clipjax.config import ConfigError, DataConfig, MixturePart, SourceConfig
from clipjax.data.records import encode_record
from clipjax.data.sources import WebDatasetConfig
from clipjax.eval import ZeroShotConfig
from tests.data.samples import encoded, picture, record, write_folder
from tests.data.test_webdataset import samples, write_tar
from tests.tiny import tiny_config


def config_of(mixture=(), train=None, evaluators=()):
    config = tiny_config()
    data = DataConfig(train=train or SourceConfig(), mixture={name: MixturePart(s) for name, s in mixture})
    evaluators = {name: ZeroShotConfig(source=s) for name, s in evaluators}
    return dataclasses.replace(config, data=data, eval=dataclasses.replace(config.eval, evaluators=evaluators))


def test_every_source_is_read_once_and_counted(tmp_path, capsys):
    good = SourceConfig(path=str(write_folder(tmp_path / "good", 12)))
    tars = WebDatasetConfig(path=str(write_tar(tmp_path / "0.tar", samples(range(5)))))
    config = config_of(mixture=[("a", good), ("b", tars)], evaluators=[("x", good), ("y", good)])
    found = check_data.run(config)
    assert list(found) == ["train, a and x and y", "train, b"]
    assert [found[name].records for name in found] == [12, 5]
    assert found["train, a and x and y"].captions == sum(1 + i % 3 for i in range(12))
    assert "12 of 12 records are good, with 24 captions" in capsys.readouterr().out


def test_bad_records_and_shards_are_counted_named_and_an_error(tmp_path, capsys):
    records = [record(i) for i in range(12)]
    records[2] = encode_record(b"", ["a"], key="empty")
    records[4] = encode_record(encoded(picture(), "JPEG")[:-200], ["a"], key="cut")
    folder = write_folder(tmp_path / "set", records)
    shard = folder / "train-00001-of-00002.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[data.index(b"key10")] ^= 1
    shard.write_bytes(data)
    config = config_of(train=SourceConfig(path=str(folder)))
    with pytest.raises(check_data.BadDataError, match=r"3 bad record\(s\) and 1 damaged shard\(s\) in 1 source"):
        check_data.run(config)
    shown = capsys.readouterr().out
    assert "9 of 12 records are good" in shown and "1 bad: empty image" in shown and "1 bad: corrupt image" in shown
    assert f"{shard}: its sha256 is not that of the manifest" in shown
    with pytest.raises(check_data.BadDataError, match="1 bad record"):
        check_data.run(config, decode=False)  # what can be read without looking at pixels


def test_an_experiment_without_data_is_refused():
    with pytest.raises(ConfigError, match="name no data to check"):
        check_data.run(config_of())
