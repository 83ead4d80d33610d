"""Columns of Parquet files: any type that holds texts or images is read, everything else is refused by name."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import ParquetConfig, open_source
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS

IMAGES = pa.array([b"one", b"two"], pa.binary())


def write(path, columns, names=()):
    table = pa.table({"image": IMAGES} | columns)
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def texts(path, **options) -> list[list[str]]:
    source = open_source(ParquetConfig(path=str(path), **options))
    return [source[index]["texts"] for index in range(len(source))]


def prepared(path, **options) -> tuple[list[tuple[str, ...]], list[str]]:
    options = Options(reader="parquet", input=(str(path),), **{"caption_columns": ("text",)} | options)
    notes, found = [], []
    for unit in READERS["parquet"].units(options).units:
        found += READERS["parquet"].read(unit, options, lambda cause, *where: notes.append(cause))
    return [example.texts for example in found], notes


TEXTS = pa.array(["ein Hügel", "犬"])
KINDS = {
    "string": TEXTS,
    "large_string": TEXTS.cast(pa.large_string()),
    "binary": TEXTS.cast(pa.binary()),
    "large_binary": TEXTS.cast(pa.large_binary()),
    "dictionary": TEXTS.dictionary_encode(),
    "list": pa.array([["ein Hügel"], ["犬"]]),
    "large_list of binary": pa.array([["ein Hügel".encode()], ["犬".encode()]], pa.large_list(pa.binary())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_every_type_of_text_are_read(tmp_path, kind):
    path = write(tmp_path / "0.PARQUET", {"text": KINDS[kind]})
    assert texts(tmp_path) == [["ein Hügel"], ["犬"]]
    assert prepared(tmp_path) == ([("ein Hügel",), ("犬",)], [])
    assert path.exists()


def test_images_of_every_type_of_bytes_are_read(tmp_path):
    for number, kind in enumerate((pa.large_binary(), pa.binary(3), pa.dictionary(pa.int32(), pa.binary()))):
        path = write(tmp_path / f"{number}.parquet", {"image": IMAGES.cast(kind), "text": TEXTS})
        assert open_source(ParquetConfig(path=str(path)))[1]["image"] == b"two"


def test_binary_captions_that_are_no_utf8_are_bad_records(tmp_path):
    write(tmp_path / "0.parquet", {"text": pa.array([b"caf\xe9", b"good"])})
    source = open_source(ParquetConfig(path=str(tmp_path)))
    with pytest.raises(RecordError) as caught:
        source[0]
    assert (caught.value.cause, source[1]["texts"]) == ("not UTF-8", ["good"])
    assert prepared(tmp_path) == ([("good",)], ["caption is not UTF-8"])


def test_a_text_inside_another_column_is_read_or_refused_with_what_there_is(tmp_path):
    inner = pa.array([{"text": "x", "langs": ["en"]}, {"text": "y", "langs": []}])
    path = write(tmp_path / "0.parquet", {"meta": inner, "a/b": TEXTS})
    assert texts(path, text_key="meta/text") == [["x"], ["y"]]
    assert texts(path, text_key="a/b") == [["ein Hügel"], ["犬"]]
    assert prepared(path, caption_columns=("meta/text", "a/b"))[0] == [("x", "ein Hügel"), ("y", "犬")]
    with pytest.raises(ManifestError, match="column 'meta', has no column 'txt'. It has 'text', 'langs'"):
        texts(path, text_key="meta/txt")
    with pytest.raises(ManifestError, match="column 'meta', holds struct.*expected texts"):
        texts(path, text_key="meta")
    with pytest.raises(PipelineError, match="column 'meta', has no column 'txt'"):
        prepared(path, caption_columns=("meta/txt",))


@pytest.mark.parametrize("options", [{}, {"text_key": "txet"}])
def test_a_missing_text_key_is_refused_and_not_read_from_another_column(tmp_path, options):
    columns = {"caption": TEXTS, "label": pa.array([1, 0])}
    path = write(tmp_path / "0.parquet", columns, names=("cat", "dog"))
    with pytest.raises(ManifestError, match="no column '(text|txet)'.*Set the source's text_key"):
        texts(path, **options)
    assert texts(path, text_key="caption") == [["ein Hügel"], ["犬"]]
    assert texts(path, text_key="label") == [["dog"], ["cat"]]


def test_a_set_with_classes_and_no_texts_is_captioned_by_their_names(tmp_path):
    path = write(tmp_path / "0.parquet", {"label": pa.array([1, 0])}, names=("cat", "dog"))
    assert texts(path) == [["dog"], ["cat"]]
    with pytest.raises(ManifestError, match="no column 'caption'"):
        texts(path, text_key="caption")


def test_columns_of_a_type_that_cannot_be_used_are_refused(tmp_path):
    path = write(tmp_path / "0.parquet", {"text": pa.array([1, 2]), "path": pa.array(["a.jpg", "b.jpg"])})
    with pytest.raises(ManifestError, match="column 'text', holds int64, expected texts"):
        texts(path)
    with pytest.raises(ManifestError, match="column 'path', holds string, expected the bytes of images"):
        texts(path, image_key="path")
    with pytest.raises(PipelineError, match="column 'path', holds string"):
        prepared(path, image_column="path")


def test_pair_ids_are_whole_numbers_or_none_and_another_column_is_told(tmp_path, caplog):
    source = open_source(ParquetConfig(path=str(write(tmp_path / "a", {"text": ["x", "y"], "pair_id": [1.0, 1.5]}))))
    assert source[0]["pair_id"] == 1
    with pytest.raises(RecordError, match="column 'pair_id' is 1.5, expected a whole number"):
        source[1]
    assert "pair_id" not in caplog.text
    source = open_source(ParquetConfig(path=str(write(tmp_path / "b", {"text": ["x", "y"], "pair_id": ["1", "2"]}))))
    assert source[0]["pair_id"] == -1
    assert "column 'pair_id' holds string, expected whole numbers; it is not read" in caplog.text


def test_two_columns_of_one_name_are_refused(tmp_path):
    pq.write_table(pa.Table.from_arrays([IMAGES, TEXTS, TEXTS], ["image", "text", "text"]), tmp_path / "0.parquet")
    with pytest.raises(ManifestError, match="has 2 columns 'text'"):
        texts(tmp_path)


def test_files_with_different_columns_are_refused_naming_both(tmp_path):
    write(tmp_path / "0.parquet", {"text": TEXTS, "label": pa.array([0, 1]), "other": TEXTS})
    write(tmp_path / "1.parquet", {"text": TEXTS})
    with pytest.raises(ManifestError, match=r"0.parquet has the column 'label', but .*1.parquet does not"):
        texts(tmp_path)
    write(tmp_path / "1.parquet", {"text": KINDS["binary"], "label": pa.array([1, 0]), "more": TEXTS})
    assert len(texts(tmp_path)) == 4
