"""Caption files, word lists and tables that people give to the commands, whatever program wrote them."""

from __future__ import annotations

import codecs

import pytest

from clipjax.data.records import RecordError
from clipjax.data.sources import FolderConfig, open_source
from data_pipelines import csv, image_folder, jsonl, train_tokenizer
from data_pipelines.command import PipelineError
from data_pipelines.files import read_image
from data_pipelines.prepare import run
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.steps.balance import read_entries
from tests.data.samples import encoded, picture

ONE_LINE = "one\u2028same caption\u0085still"
SIDECARS = {
    "a.JPG": ("a.TXT", ONE_LINE.encode(), [ONE_LINE]),
    "b.Jpeg": ("b.txt", codecs.BOM_UTF8 + b"one\r\n\r\ntwo\r\n", ["one", "two"]),
    "c.png": ("c.Caption", b"one\rtwo\r", ["one", "two"]),
    "d.PNG": ("d.PNG.txt", "größe".encode("utf-16"), ["größe"]),
    "sub/e.webp": ("sub/e.webp.TxT", b"x", ["x"]),
}


@pytest.fixture
def photos(tmp_path):
    for image, (name, content, _) in SIDECARS.items():
        for path, data in ((image, encoded(picture(len(image)))), (name, content)):
            (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / path).write_bytes(data)
    return tmp_path / "photos"


def test_caption_files_are_found_and_read_alike_by_training_and_by_the_commands(photos, tmp_path):
    expected = {image: texts for image, (_, _, texts) in SIDECARS.items()}
    source = open_source(FolderConfig(path=str(photos)))
    assert {source[i]["key"]: source[i]["texts"] for i in range(len(source))} == expected
    (unit,) = READERS["folder"].units(Options(reader="folder", input=(str(photos),))).units
    assert {key: list(texts) for key, texts, _ in unit.payload[0]} == expected
    manifest = image_folder.build(tmp_path / "out", images=photos, splits="all=1")
    assert manifest["splits"]["all"]["records"] == len(expected) and not manifest["skipped"]


def test_utf16_without_a_mark_and_latin1_captions_are_refused_with_their_line(photos):
    (photos / "a.TXT").write_bytes("one\ntwo".encode("utf-16-le"))
    (photos / "b.txt").write_bytes("one\ncafé".encode("latin-1"))
    source, found = open_source(FolderConfig(path=str(photos))), []
    for index in (0, 1):
        with pytest.raises(RecordError) as caught:
            source[index]
        found.append((caught.value.cause, str(caught.value).split(":")[0]))
    assert found == [("not UTF-8", "'a.TXT', line 1"), ("not UTF-8", "'b.txt', line 2")]
    with pytest.raises(PipelineError, match=r"a\.TXT, line 1: a zero byte, as in UTF-16 without"):
        READERS["folder"].units(Options(reader="folder", input=(str(photos),)))


def test_lines_of_a_tokenizers_text_end_only_at_line_ends(tmp_path):
    text = tmp_path / "captions.txt"
    text.write_bytes(f"{ONE_LINE}\r\n\r\nzwei\rdrei\n".encode("utf-16"))
    assert list(train_tokenizer._texts(None, "train", text, 10)) == [ONE_LINE, "zwei", "drei"]
    text.write_bytes("café\n".encode("latin-1"))
    with pytest.raises(PipelineError, match=r"captions\.txt, line 1: not UTF-8"):
        train_tokenizer.build(tmp_path / "t.model", text=text)


def test_a_list_of_entries_to_balance_by_may_have_a_byte_order_mark_and_any_line_ends(tmp_path):
    entries = tmp_path / "entries.txt"
    for data in (codecs.BOM_UTF8 + b"Dog\r\nhot dog\r\n", "Dog\rhot dog".encode("utf-16")):
        entries.write_bytes(data)
        read_entries.cache_clear()
        assert read_entries(str(entries)) == (frozenset(("dog", "hot dog")), 2)


@pytest.mark.slow
def test_a_table_that_names_a_missing_image_is_prepared_without_it(tmp_path):
    pytest.importorskip("apache_beam", reason="pip install 'clipjax[pipelines]'")
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    (tmp_path / "t.csv").write_text("image;caption\na.png;a first caption\nno.png;a second one\n")
    manifest = run.build(
        tmp_path / "out", reader="csv", input=(str(tmp_path / "t.csv"),), delimiter=";", splits="all=1"
    )
    assert manifest["splits"]["all"]["records"] == 1
    assert manifest["skipped"] == {"read: file cannot be read": 1}


def test_paths_with_zero_bytes_are_counted_as_unreadable(tmp_path):
    (tmp_path / "c.png").write_bytes(encoded(picture(1)))
    rows = '{"image": "a\\u0000b", "caption": "x"}\n{"image": "c.png", "caption": "y"}\n'
    (tmp_path / "t.jsonl").write_text(rows)
    manifest = jsonl.build(tmp_path / "out", table=tmp_path / "t.jsonl", splits="all=1")
    assert manifest["skipped"] == {"file cannot be read": 1}
    listing = READERS["jsonl"].units(Options(reader="jsonl", input=(str(tmp_path / "t.jsonl"),)))
    assert run._identity(listing)
    with pytest.raises(ValueError, match="null byte"):
        read_image(tmp_path / "a\0b")


def test_captions_inside_other_fields_are_read_by_the_command_as_by_training(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "meta": {"text": ["x", "y"]}}\n')
    out = jsonl.build(tmp_path / "out", table=tmp_path / "t.jsonl", caption_columns="meta/text", splits="all=1")
    assert out["splits"]["all"]["records"] == 1
    with pytest.raises(PipelineError, match="no column 'meta/txt'"):
        jsonl.build(tmp_path / "no", table=tmp_path / "t.jsonl", caption_columns="meta/txt")


def test_the_separator_is_a_flag_of_csv(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    (tmp_path / "t.csv").write_text("image^caption\na.png^x\n")
    flags = [f"--table={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}", "--splits=all=1"]
    with pytest.raises(SystemExit):
        csv.main(flags)
    assert "If '^' separates the columns, set --delimiter='^'." in capsys.readouterr().err
    csv.main([*flags, "--delimiter=^"])
    assert "1 records" in capsys.readouterr().out
