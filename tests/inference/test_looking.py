"""The source and the evaluators of a folder follow from what is in it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.config import ConfigError
from clipjax.data.sources import open_source
from clipjax.inference.looking import evaluation_of, find_source
from tests.eval import wds_sets


def kinds(path, split="test"):
    """{evaluator: (its kind, its source's kind)}."""
    found = evaluation_of(path, split).eval.evaluators
    return {name: (evaluator.name, evaluator.source.name) for name, evaluator in found.items()}


def test_sets_in_clip_benchmarks_layout_say_their_task(tmp_path):
    for write, kind in (
        (wds_sets.write_classification, "zero_shot"),
        (wds_sets.write_multilabel, "multilabel"),
        (wds_sets.write_retrieval, "retrieval"),
    ):
        assert kinds(write(tmp_path)) == {"data": (kind, "webdataset")}


def test_parquet_tables_and_images_are_told_apart(tmp_path):
    images = [wds_sets.image(number) for number in range(4)]
    (tmp_path / "parquet").mkdir()
    pq.write_table(
        pa.table({"image": images, "text": ["a", "b", "c", "d"], "label": ["x", "y", "x", "y"]}),
        tmp_path / "parquet" / "test-00000-of-00001.parquet",
    )
    assert kinds(tmp_path / "parquet") == {
        "data": ("zero_shot", "parquet"), "data_retrieval": ("retrieval", "parquet"),
    }  # fmt: skip
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, data in enumerate(images):
        (folder / "sub" / f"{number}.png").write_bytes(data)
        (folder / "sub" / f"{number}.txt").write_text(f"caption {number}")
    assert kinds(folder) == {"data": ("retrieval", "folder")}
    (folder / "rows.csv").write_text(
        "image,label,caption\n" + "".join(f"sub/{n}.png,c{n % 2},t{n}\n" for n in range(4))
    )
    assert find_source(folder).path == str(folder / "rows.csv")
    assert set(kinds(folder)) == {"data", "data_retrieval"}


def test_a_folder_of_something_else_is_told(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ConfigError, match="holds nothing that is known: expected manifest.json, .tar"):
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
    assert {name: one.name for name, one in found.items()} == {"data": "zero_shot"}
    assert open_source(found["data"].source).class_names == ("cat", "red dog")
    rows = [f"{('cat', 'red_dog')[n % 2]}/{n}.png;a picture {n}" for n in range(4)]
    (folder / "rows.csv").write_text("\n".join(["filepath;title", *rows]))
    assert kinds(folder) == {"data": ("retrieval", "folder")}
    pq.write_table(pa.table({"jpg": images, "description": list("abcd")}), tmp_path / "test.parquet")
    assert kinds(tmp_path / "test.parquet") == {"data": ("retrieval", "parquet")}
