"""Data without a split are split by the records' numbers, and class folders are read as they are."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.config import ConfigError
from clipjax.data.mixture import make_order
from clipjax.data.order import Windowed
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import FolderConfig, HeldOutConfig, ParquetConfig, open_source
from tests.data.samples import encoded, picture

IMAGE = encoded(picture(), "PNG")


def class_images(folder, classes, each=3):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            (folder / name / f"{number}.png").write_bytes(IMAGE)
    return folder


@pytest.mark.parametrize("every", [2, 3, 10])
def test_both_sides_together_are_all_records_each_once(tmp_path, every):
    class_images(tmp_path / "two words", ["a", "b"], each=6)
    inner = FolderConfig(captions="folders")
    sides = [
        open_source(HeldOutConfig(path=str(tmp_path / "two words"), split=split, every=every, source=inner))
        for split in ("train", "validation")
    ]
    keys = [[side[i]["key"] for i in range(len(side))] for side in sides]
    whole = open_source(FolderConfig(path=str(tmp_path / "two words"), captions="folders"))
    assert sorted(keys[0] + keys[1]) == [whole[i]["key"] for i in range(12)]
    assert keys[1] == [whole[i]["key"] for i in range(12) if (i + 1) % every == 0]
    assert sides[1].where(0) == whole.where(every - 1) and sides[1].class_names == ("a", "b")
    again = pickle.loads(pickle.dumps(sides[0]))
    assert [again[i]["key"] for i in range(len(again))] == keys[0]
    with pytest.raises(IndexError):
        sides[1][len(sides[1])]


def test_blocks_of_a_source_stay_blocks_of_each_side(tmp_path):
    table = pa.table({"image": [IMAGE] * 40, "text": [f"t{i}" for i in range(40)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=8)
    config = HeldOutConfig(path=str(tmp_path / "a.parquet"), every=5, source=ParquetConfig())
    source = open_source(config)
    order = make_order(source, 0)
    assert isinstance(order, Windowed) and order.starts.tolist() == [0, 7, 13, 20, 26, 32]
    epoch = [order[i] for i in range(32)]
    assert sorted(epoch) == list(range(32)) and epoch != list(range(32))
    texts = {source[i]["texts"][0] for i in epoch}
    assert texts == {f"t{i}" for i in range(40) if (i + 1) % 5}


def test_wrong_splits_are_told(tmp_path):
    class_images(tmp_path, ["a"])
    for changes, error, message in (
        ({"every": 1}, ConfigError, "every=1, which leaves nothing"),
        ({"split": "test"}, ConfigError, "its splits are 'train' and 'validation'"),
        ({"every": 4}, ManifestError, "has 3 records, fewer than every=4"),
    ):
        with pytest.raises(error, match=message):
            open_source(HeldOutConfig(path=str(tmp_path), source=FolderConfig(captions="folders"), **changes))


def test_class_folders_give_labels_names_and_captions(tmp_path):
    class_images(tmp_path, ["red_rose", "ant"], each=2)
    (tmp_path / "lost.png").write_bytes(IMAGE)
    (tmp_path / "notes.md").write_text("x")
    source = open_source(FolderConfig(path=str(tmp_path), captions="folders"))
    assert source.class_names == ("ant", "red rose")
    good = [source[i] for i in range(len(source)) if "/" in source.entries[i].path]
    assert [(record["key"], record["texts"], record["label"], record["pair_id"]) for record in good] == [
        ("ant/0.png", ["ant"], 0, 0), ("ant/1.png", ["ant"], 0, 0),
        ("red_rose/0.png", ["red rose"], 1, 1), ("red_rose/1.png", ["red rose"], 1, 1),
    ]  # fmt: skip
    lost = next(i for i in range(len(source)) if source.entries[i].path == "lost.png")
    with pytest.raises(RecordError, match="lies in .* itself"):
        source[lost]
    (tmp_path / "classnames.txt").write_text("red rose\nant\n")
    assert open_source(FolderConfig(path=str(tmp_path), captions="folders"))[0]["label"] == 1
