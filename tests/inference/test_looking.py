"""The source and the evaluators of a folder follow from what is in it."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.config import ConfigError
from clipjax.data.finding import find_data
from clipjax.data.sources import HeldOutConfig, WebDatasetConfig, open_source
from clipjax.inference.looking import data_name, evaluation_of, find_source
from tests.data.samples import encoded, picture
from tests.eval import wds_sets


def kinds(path, split=""):
    """{evaluator: (its kind, its source's kind)}."""
    found = evaluation_of(path, split).eval.evaluators
    return {name: (evaluator.name, evaluator.source.name) for name, evaluator in found.items()}


def test_sets_in_clip_benchmarks_layout_say_their_task(tmp_path):
    for write, kind, name in (
        (wds_sets.write_classification, "zero_shot", "wds_cats"),
        (wds_sets.write_multilabel, "multilabel", "wds_voc2007_multilabel"),
        (wds_sets.write_retrieval, "retrieval", "wds_flickr8k"),
    ):
        assert kinds(write(tmp_path)) == {name: (kind, "webdataset")}


def test_parquet_tables_and_images_are_told_apart(tmp_path):
    images = [wds_sets.image(number) for number in range(4)]
    (tmp_path / "parquet").mkdir()
    pq.write_table(
        pa.table({"image": images, "text": ["a", "b", "c", "d"], "label": ["x", "y", "x", "y"]}),
        tmp_path / "parquet" / "test-00000-of-00001.parquet",
    )
    assert kinds(tmp_path / "parquet") == {
        "parquet": ("zero_shot", "parquet"), "parquet_retrieval": ("retrieval", "parquet"),
    }  # fmt: skip
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, data in enumerate(images):
        (folder / "sub" / f"{number}.png").write_bytes(data)
        (folder / "sub" / f"{number}.txt").write_text(f"caption {number}")
    assert kinds(folder) == {"images": ("retrieval", "folder")}
    (folder / "rows.csv").write_text(
        "image,label,caption\n" + "".join(f"sub/{n}.png,c{n % 2},t{n}\n" for n in range(4))
    )
    assert find_source(folder).path == str(folder / "rows.csv")
    assert set(kinds(folder)) == {"images", "images_retrieval"}


def test_a_folder_of_something_else_is_told(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ConfigError, match="holds no data that is known: there are 1 .md. Expected images"):
        find_source(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        find_source(tmp_path / "gone")


def test_class_folders_and_columns_with_other_names_are_read(tmp_path):
    images = [wds_sets.image(number) for number in range(4)]
    folder = tmp_path / "pets [2024]"
    for number, data in enumerate(images):
        place = folder / ("cat", "red_dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(data)
    found = evaluation_of(folder).eval.evaluators
    assert {name: one.name for name, one in found.items()} == {"pets__2024_": "zero_shot"}
    assert open_source(found["pets__2024_"].source).class_names == ("cat", "red dog")
    rows = [f"{('cat', 'red_dog')[n % 2]}/{n}.png;a picture {n}" for n in range(4)]
    (folder / "rows.csv").write_text("\n".join(["filepath;title", *rows]))
    assert kinds(folder) == {"pets__2024_": ("retrieval", "folder")}
    pq.write_table(pa.table({"jpg": images, "description": list("abcd")}), tmp_path / "test.parquet")
    assert kinds(tmp_path / "test.parquet") == {"test": ("retrieval", "parquet")}


def class_folders(folder, count=20):
    for number in range(count):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02}.png").write_bytes(wds_sets.image(number))
    return folder


def captioned(folder, count=20):
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:02}.png").write_bytes(wds_sets.image(number))
        (folder / f"{number:02}.txt").write_text(f"caption {number}")
    return folder


def table(folder, count=20, name="rows.csv"):
    captioned(folder, count)
    (folder / name).write_text("image,caption\n" + "".join(f"{n:02}.png,t{n}\n" for n in range(count)))
    return folder / name


def one_tar(folder, count=20):
    folder.mkdir(parents=True)
    samples = [(f"{n:02}", {"png": wds_sets.image(n), "txt": b"caption %d" % n}) for n in range(count)]
    wds_sets.write_tar(folder / "00000.tar", samples)
    return folder


def keys_of(source):
    return [source[number]["key"] for number in range(len(source))]


@pytest.mark.parametrize("write", [class_folders, captioned, table, one_tar])
def test_validation_of_data_without_splits_is_what_init_holds_out_and_other_splits_are_refused(write, tmp_path, capsys):
    path = write(tmp_path / "data")
    train, held_out = find_data(path).split(20)
    for split, config, told in (("validation", held_out, "2 records that clipjax init holds out of training"),
                                ("train", train, "18 records that clipjax init trains on")):  # fmt: skip
        assert find_source(path, split) == config and isinstance(config, HeldOutConfig)
        evaluation_of(path, split)
        assert f"{path} has no split '{split}': evaluating on the {told}." in capsys.readouterr().out
    assert not {*keys_of(open_source(find_source(path, "train")))} & {*keys_of(open_source(held_out))}
    for split in ("nonsense", "test"):
        with pytest.raises(ConfigError, match=f"has no splits, and so no '{split}'. Leave --split out"):
            find_source(path, split)
    assert len(open_source(next(iter(evaluation_of(path).eval.evaluators.values())).source)) == 20
    assert f"{path} has no splits: evaluating on all 20 records." in capsys.readouterr().out


@pytest.mark.parametrize("write", [class_folders, captioned, table, one_tar])
def test_a_split_that_the_data_have_is_read_and_another_one_is_refused_by_flag(write, tmp_path, capsys):
    for split, count in (("test", 4), ("val", 6)):
        write(tmp_path / "data" / split, count)
    assert len(open_source(find_source(tmp_path / "data"))) == 4
    assert len(open_source(find_source(tmp_path / "data", "val"))) == 6
    with pytest.raises(ConfigError, match="has no split 'validation', only test, val. Choose one with --split"):
        find_source(tmp_path / "data", "validation")
    shutil.rmtree(tmp_path / "data" / "test")
    with pytest.raises(ConfigError, match="has no split 'test', only val. Choose one with --split"):
        find_source(tmp_path / "data")
    evaluation_of(tmp_path / "data", "val")
    assert capsys.readouterr().out == ""


def test_held_out_records_of_a_lone_training_split_are_found(tmp_path):
    class_folders(tmp_path / "data" / "train")
    assert find_source(tmp_path / "data", "validation") == find_data(tmp_path / "data").split(20)[1]
    with pytest.raises(ConfigError, match="has no split 'test', only train"):
        find_source(tmp_path / "data")
    assert find_source(tmp_path / "data", "train").split == "train"


def test_patterns_and_the_hubs_layout_are_read_as_init_reads_them(tmp_path):
    one_tar(tmp_path / "shards")
    for pattern in ("*.tar", "{00000..00000}.tar"):
        path = f"{tmp_path}/shards/{pattern}"
        assert find_source(path) == WebDatasetConfig(path=path) and kinds(path) == {
            "shards": ("retrieval", "webdataset")
        }
    hub = tmp_path / "hf" / "data"
    hub.mkdir(parents=True)
    rows = pa.table({"image": [wds_sets.image(n) for n in range(4)], "text": list("abcd")})
    for split in ("train", "test"):
        pq.write_table(rows, hub / f"{split}-00000-of-00001.parquet")
    assert kinds(tmp_path / "hf") == {"hf": ("retrieval", "parquet")}
    assert find_source(tmp_path / "hf", "train").split == "train"


def test_results_are_called_after_the_data_and_a_split_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(captioned(tmp_path / "my photos"))
    (tmp_path / "rows.v2.csv").touch()
    for path, name in (
        (".", "my_photos"), (f"{tmp_path}/a.b/", "a_b"), (f"{tmp_path}/rows.v2.csv", "rows_v2"),
        ("shards/{00..03}/*.tar", "shards"), ("gs://bucket/photos/", "photos"), ("gs://bucket/c/*.tar", "c"),
    ):  # fmt: skip
        assert (data_name(path), data_name(path, "val")) == (name, f"{name}_val")


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_be_called_like_a_split(name, tmp_path):
    """As "train" in CIFAR-100: one folder among others is a class."""
    for number, label in enumerate((name, "bus", "car", name, "bus", "car")):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{number}.png").write_bytes(encoded(picture(number), "PNG"))
    source = open_source(find_source(tmp_path))
    assert source.class_names == tuple(sorted(("bus", "car", name))) and len(source) == 6
    train, held_out = (open_source(find_source(tmp_path, split)) for split in ("train", "validation"))
    assert len(train) + len(held_out) == 6
