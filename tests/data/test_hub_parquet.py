"""Sets of Hugging Face's hub are read from their Parquet files: splits, class names, caption lists, images in files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import ParquetConfig, open_source

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["cat", "dog", "red bird"]


def class_label(**features):
    """The metadata in which Hugging Face keeps the names of labels."""
    features = {name: {"names": names, "_type": "ClassLabel"} for name, names in features.items()}
    return {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, **features}}})}


def write(path, columns, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path)


def images(*contents):
    return pa.array([{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)], IMAGE)


def open_set(path, split="test", **options):
    return open_source(ParquetConfig(path=str(path), split=split, **options))


def write_classification(folder):
    for split, shards in (("train", [[0, 1, 2], [2, 1]]), ("test", [[1, 0]])):
        for shard, labels in enumerate(shards):
            contents = [f"{split} {shard} {label}".encode() for label in labels]
            name = f"{split}-{shard:05d}-of-{len(shards):05d}.parquet"
            write(folder / name, {"image": images(*contents), "label": labels}, class_label(label=NAMES))


@pytest.mark.parametrize("where", ["data", "."])
def test_a_repository_of_splits_and_shards_is_read_by_its_folder(tmp_path, where):
    write_classification(tmp_path / where)
    (tmp_path / "README.md").write_text("---\n---\n")
    for path in (tmp_path, tmp_path / where):
        train, test = open_set(path, "train"), open_set(path)
        assert train.class_names == test.class_names == tuple(NAMES)
        assert [train[i]["label"] for i in range(5)] == [0, 1, 2, 2, 1]
        assert [test[i]["label"] for i in range(2)] == [1, 0]
        assert (train[3]["image"], train[3]["texts"]) == (b"train 1 2", ["red bird"])
        with pytest.raises(ManifestError, match="no file named after the split 'validation'.*split.s. test, train"):
            open_set(path, "validation")
    (tmp_path / where / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(ManifestError, match="train-00000-of-00002.parquet missing"):
        open_set(tmp_path, "train")
    assert len(open_set(tmp_path)) == 2


def test_a_converted_repository_has_folders_of_splits(tmp_path):
    write(tmp_path / "default/test/0000.parquet", {"image": images(b"x"), "label": [1]}, class_label(label=NAMES))
    write(tmp_path / "default/train/0000.parquet", {"image": images(b"y"), "label": [0]}, class_label(label=NAMES))
    assert open_set(tmp_path / "default")[0]["image"] == b"x"
    with pytest.raises(ManifestError, match="no folder 'validation' for the split.*: 'test', 'train'"):
        open_set(tmp_path / "default", "validation")


def test_columns_of_other_names_are_named(tmp_path):
    columns = {"img": images(b"x", b"y"), "fine_label": [1, 0], "coarse_label": [0, 0]}
    write(tmp_path / "test-00000-of-00001.parquet", columns, class_label(fine_label=NAMES, coarse_label=["animal"]))
    with pytest.raises(ManifestError, match="no column 'image'. It has 'img'"):
        open_set(tmp_path)
    source = open_set(tmp_path, image_key="img", label_key="fine_label")
    assert source.class_names == tuple(NAMES) and source[0]["label"] == 1
    source = open_set(tmp_path, image_key="img", label_key="coarse_label")
    assert source.class_names == ("animal",) and source[0]["texts"] == ["animal"]


def test_labels_beyond_the_class_label_are_bad_and_minus_one_is_none(tmp_path):
    columns = {"image": images(b"x", b"y"), "label": [3, -1], "text": ["a", "b"]}
    write(tmp_path / "test-00000-of-00001.parquet", columns, class_label(label=NAMES))
    source = open_set(tmp_path)
    with pytest.raises(RecordError, match="column 'label' is 3, but the ClassLabel of .* has 3 names"):
        source[0]
    assert source[1]["label"] == -1


def test_a_retrieval_set_has_lists_of_captions(tmp_path):
    columns = {
        "image": images(b"x", b"y"),
        "caption": pa.array([["a cat", "one cat", "a cat"], ["a dog"]], pa.list_(pa.string())),
        "sentids": pa.array([[0, 1, 2], [3]], pa.list_(pa.int64())),
        "split": ["test", "test"],
        "filename": ["1.jpg", "2.jpg"],
        "img_id": ["0", "1"],
    }
    write(tmp_path / "data/test-00000-of-00001.parquet", columns)
    source = open_set(tmp_path, text_key="caption")
    assert [source[i]["texts"] for i in range(2)] == [["a cat", "one cat", "a cat"], ["a dog"]]
    assert source.class_names == ()
    with pytest.raises(ManifestError, match="no column 'text'. It has 'image', 'caption', 'sentids'.*Set .*text_key"):
        open_set(tmp_path)


def write_files(folder):
    for name in ("images/a.png", "b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


PATHS = ["images/a.png", "./b.png", "images/none.png", "/etc/passwd", "../secret.png", "http://host/a.png", "", None]
CAUSES = ["unreadable record"] + ["path outside the folder"] * 2 + ["unreadable record"] + ["no image"] * 2


@pytest.mark.parametrize("kind", [IMAGE, pa.struct([("path", pa.string())])], ids=["bytes and path", "path"])
@pytest.mark.parametrize("where", ["", "data"])
def test_images_in_files_are_read_from_the_set_and_from_nowhere_else(tmp_path, kind, where):
    folder = tmp_path / "set"
    write_files(folder)
    (tmp_path / "secret.png").write_bytes(b"secret")
    column = pa.array([{"path": path} for path in PATHS], kind)
    write(folder / where / "test-00000-of-00001.parquet", {"image": column, "text": ["a"] * len(PATHS)})
    source = open_set(folder)
    assert [source[i]["image"] for i in range(2)] == [b"images/a.png", b"b.png"]
    for index, cause in enumerate(CAUSES, 2):
        with pytest.raises(RecordError) as caught:
            source[index]
        assert caught.value.cause == cause, PATHS[index]
