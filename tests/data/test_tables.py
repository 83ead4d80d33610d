"""Tables as spreadsheets, pandas and people write them: every row arrives, or the file and line are named."""

from __future__ import annotations

import codecs
import csv
import io
import json

import pytest

from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import FolderConfig, open_source
from data_pipelines.csv import main as csv_command
from data_pipelines.tables import add_table_flags

ROWS = [("a.jpg", "a dog"), ("b.jpg", "two cats, asleep"), ("c.jpg", 'a 5" disc'), ("d.jpg", "ein Hügel")]


def rows_of(path, **options) -> list[tuple[str, tuple[str, ...]]]:
    return [(entry.path, entry.texts) for entry in open_source(FolderConfig(path=str(path), **options)).entries]


def written(path, content) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path, **options) -> str:
    with pytest.raises(ManifestError) as caught:
        rows_of(path, **options)
    return str(caught.value)


def faults(path, **options) -> list[str]:
    source, found = open_source(FolderConfig(path=str(path), **options)), []
    for index in range(len(source)):
        try:
            source[index]
        except RecordError as error:
            found.append(str(error))
    return found


def as_csv(delimiter: str = ",", end: str = "\n", rows=ROWS, header=("image", "caption"), **options) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator=end, **options).writerows([header, *rows])
    return buffer.getvalue()


EXPECTED = [(path, (text,)) for path, text in ROWS]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_separator_of_a_csv_is_found_whatever_ends_its_lines(tmp_path, delimiter, end, quoting):
    assert rows_of(written(tmp_path / "t.CSV", as_csv(delimiter, end, quoting=quoting))) == EXPECTED


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
    ],
)
def test_tables_in_every_unicode_encoding_are_read(tmp_path, encode):
    assert rows_of(written(tmp_path / "t.csv", encode(as_csv(";")))) == EXPECTED
    lines = "".join(json.dumps({"image": path, "caption": text}) + "\r\n" for path, text in ROWS)
    assert rows_of(written(tmp_path / "t.JSONL", encode(lines))) == EXPECTED


def test_utf16_without_a_mark_and_zero_bytes_are_refused_or_spoil_their_row(tmp_path):
    for suffix in (".csv", ".tsv", ".jsonl"):
        message = refusal(written(tmp_path / f"t{suffix}", as_csv().encode("utf-16-le")))
        assert f"t{suffix} line 1 is UTF-16 without a byte order mark" in message
    path = written(tmp_path / "t.csv", as_csv(rows=[("a.jpg", "a\0b"), ("b.jpg", "a row of ordinary text")]))
    assert [fault.split(",")[0] for fault in faults(path)[:1]] == ["zero byte as in a damaged file"]


def test_u2028_and_other_exotic_line_ends_stay_inside_a_caption(tmp_path):
    text = "one\u2028same\u0085still\x0band\x0cso on"
    assert rows_of(written(tmp_path / "t.csv", as_csv(rows=[("a.jpg", text)]))) == [("a.jpg", (text,))]
    assert rows_of(written(tmp_path / "t.tsv", f"image\tcaption\na.jpg\t{text}\n")) == [("a.jpg", (text,))]
    row = json.dumps({"image": "a.jpg", "caption": "one\u2028same\u0085still"}, ensure_ascii=False)
    assert rows_of(written(tmp_path / "t.jsonl", row)) == [("a.jpg", ("one\u2028same\u0085still",))]


def test_the_separator_can_be_set_or_is_named(tmp_path):
    path = written(tmp_path / "t.csv", "image:caption\na.jpg:a dog\n")
    assert "If ':' separates the columns, set the source's delimiter=:" in refusal(path)
    assert rows_of(path, delimiter=":") == [("a.jpg", ("a dog",))]
    tabs = written(tmp_path / "tabs.csv", as_csv("\t"))
    assert rows_of(tabs, delimiter="tab") == rows_of(tabs, delimiter="\\t") == EXPECTED
    assert "Fields are separated by ';', as delimiter says" in refusal(tabs, delimiter=";")
    for bad in ("ab", '"', "x", "\n"):
        assert "cannot separate fields" in refusal(tabs, delimiter=bad)
    # The header decides by the columns that are asked for, not by which character is frequent.
    many = written(tmp_path / "many.csv", "image,caption,a;b;c;d;e\na.jpg,x,y\n")
    assert rows_of(many) == [("a.jpg", ("x",))]
    assert rows_of(written(tmp_path / "excel.csv", "sep=;\r\nimage;caption\r\na.jpg;x\r\n")) == [("a.jpg", ("x",))]


def test_quotation_marks_of_a_tsv_are_text_and_a_lone_one_swallows_no_row(tmp_path):
    captions = ['"quoted start only', "dog", 'it is 5" wide', '"all closed"', "fox", '"']
    lines = "".join(f"{number}.jpg\t{caption}\n" for number, caption in enumerate(captions))
    path = written(tmp_path / "t.TSV", "image\tcaption\n" + lines)
    assert rows_of(path) == [(f"{number}.jpg", (caption,)) for number, caption in enumerate(captions)]


def test_a_tsv_that_is_quoted_as_csv_is_told_to_be_named_csv(tmp_path):
    content = as_csv("\t", rows=[("a.jpg", "a dog"), ("b.jpg", 'a 5" disc')])  # what pandas' to_csv(sep="\t") writes
    (fault,) = faults(written(tmp_path / "t.tsv", content))[1:]  # of a.jpg: there is no such file
    assert fault.startswith("quoted as in CSV") and "name the table .csv" in fault
    assert rows_of(written(tmp_path / "t.csv", content))[1] == ("b.jpg", ('a 5" disc',))
    all_quoted = written(tmp_path / "all.tsv", as_csv("\t", quoting=csv.QUOTE_ALL))
    assert "names in quotation marks" in refusal(all_quoted)


def test_captions_of_several_lines_are_read(tmp_path):
    verse = "Roses are red,\nviolets are blue,\r\nsugar is sweet,\nand so are you"
    rows = [("a.jpg", verse), ("b.jpg", "x")]
    assert rows_of(written(tmp_path / "t.csv", as_csv(rows=rows))) == [("a.jpg", (verse,)), ("b.jpg", ("x",))]
    turned = [(text, path) for path, text in rows]
    path = written(tmp_path / "u.csv", as_csv(rows=turned, header=("caption", "image")))
    assert rows_of(path) == [("a.jpg", (verse,)), ("b.jpg", ("x",))]


@pytest.mark.parametrize(
    "closing",
    [
        "",  # never
        '8.jpg,"a fox"\n9.jpg,x\n',  # by the mark that opens another field
        '8.jpg,fox"\n9.jpg,x\n',  # by a lone one at the end of a line: what csv takes for a good row
        '8.jpg,a "fox"\n9.jpg,x\n',
        '8.jpg,""\n9.jpg,x\n',
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_quotation_mark_that_swallows_rows_is_refused_with_the_line_where_it_opens(tmp_path, closing, delimiter):
    content = 'image,caption\n0.jpg,"two\nlines"\n1.jpg,"unclosed\n2.jpg,b\n3.jpg,c\n' + closing
    message = refusal(written(tmp_path / "t.csv", content.replace(",", delimiter)))
    assert "t.csv line 4: a quotation mark" in message and "write it twice" in message


def test_tables_cut_in_the_middle_of_a_character_are_refused(tmp_path):
    assert "is not UTF-16" in refusal(written(tmp_path / "t.csv", as_csv().encode("utf-16")[:-1]))
    assert "is not UTF-16" in refusal(written(tmp_path / "t.jsonl", '{"image": "a"}'.encode("utf-16")[:-1]))


def test_swallowed_rows_without_image_suffixes_are_noticed_by_their_number(tmp_path):
    lines = "".join(f"id{number},text\n" for number in range(12))
    assert "line 2: a quotation mark" in refusal(written(tmp_path / "t.csv", f'image,caption\nx,"open\n{lines}y,z"\n'))


@pytest.mark.parametrize("paths", [("9", "10", "11", "12"), ("9f86d081", "c0ffee00", "1b4f0e98", "a3c024f0")])
def test_swallowed_rows_without_image_suffixes_are_noticed_by_paths_like_their_own(tmp_path, paths):
    first, *swallowed, last = paths
    lines = "".join(f"{path},text\n" for path in swallowed)
    message = refusal(written(tmp_path / "t.csv", f'image,caption\n{first},"open\n{lines}{last},z"\n'))
    assert "line 2: a quotation mark" in message
    verse = f'{first},"a dog, 2 cats\nand, at last, birds\nand frogs, asleep"\n'
    assert len(rows_of(written(tmp_path / "t.csv", f"image,caption\n{verse}{last},z\n"))) == 2


def test_a_stray_quotation_mark_spoils_its_row_alone(tmp_path):
    content = 'image,caption\na.jpg,"say "hi" now"\nb.jpg,it is 5" wide\n"c.jpg" ,"spaces, after" \n'
    path = written(tmp_path / "t.csv", content)
    assert faults(path)[0].startswith("stray quotation mark")
    assert rows_of(path)[1:] == [("b.jpg", ('it is 5" wide',)), ("c.jpg", ("spaces, after",))]


def test_headers_with_spaces_marks_and_empty_lines_are_read(tmp_path):
    content = '\ufeff\n  \n"image" , caption ,,\na.jpg,x,,\n\n'
    assert rows_of(written(tmp_path / "t.csv", content)) == [("a.jpg", ("x",))]
    spaced = 'image, caption\na.jpg, "a dog, asleep"\n'
    assert rows_of(written(tmp_path / "t.csv", spaced)) == [("a.jpg", ("a dog, asleep",))]


def test_headers_that_are_missing_double_or_of_other_tools_are_told_so(tmp_path):
    no_header = written(tmp_path / "t.csv", "photos/a.JPG;a dog\n")
    assert "has no header: its first line, 'photos/a.JPG;a dog'" in refusal(no_header)
    double = written(tmp_path / "t.csv", "image,caption,caption\na.jpg,x,y\n")
    assert "has 2 columns 'caption'" in refusal(double)
    assert "is empty" in refusal(written(tmp_path / "t.csv", "\n\n"))
    latin = written(tmp_path / "t.csv", "image,légende\n".encode("latin-1"))
    assert "line 1 is not UTF-8" in refusal(latin)
    open_clip = written(tmp_path / "t.csv", "filepath\ttitle\na.jpg\tx\n")
    assert "--config.data.train.image_key=filepath --config.data.train.text_key=title" in refusal(open_clip)
    assert rows_of(open_clip, image_key="filepath", text_key="title") == [("a.jpg", ("x",))]
    assert "no column 'kind'" in refusal(open_clip, image_key="filepath", text_key="title", label_key="kind")


def test_a_jsonl_without_the_columns_asked_for_is_refused_as_csv_is(tmp_path):
    path = written(tmp_path / "t.jsonl", '{"image": "a.jpg", "meta": {"text": "x", "tags": [{"t": "y"}]}}\n')
    assert "no column 'caption'. It has 'image', 'meta'" in refusal(path)
    assert "no column 'meta/txt'" in refusal(path, text_key="meta/txt")
    assert rows_of(path, text_key="meta/text,meta/tags/t") == [("a.jpg", ("x", "y"))]
    for text in (as_csv(), '[{"image": "a.jpg",\n"caption": "x"}]'):
        assert "not a table of JSON objects, one a line. Line 1 is not JSON" in refusal(
            written(tmp_path / "t.jsonl", text)
        )
    twice = written(
        tmp_path / "t.jsonl", '{"image": "a", "caption": "x", "caption": "y"}\n{"image": "b", "caption": "z"}'
    )
    assert "'caption' is there twice" in faults(twice)[0]
    only = written(tmp_path / "only.jsonl", '{"image": "a", "caption": "x", "caption": "y"}\n')
    assert "Line 1 is not JSON: the field 'caption' is there twice" in refusal(only)
    latin = '{"image": "a.jpg", "caption": "café"}\n'.encode("latin-1") + b'{"image": "b.jpg", "caption": "good"}'
    assert rows_of(written(tmp_path / "t.jsonl", latin))[1] == ("b.jpg", ("good",))


def test_the_source_and_the_command_read_the_same_columns_by_default(tmp_path, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    add_table_flags(parser)
    assert (parser.get_default("image_column"), parser.get_default("caption_columns")) == (
        FolderConfig().image_key, FolderConfig().text_key,
    )  # fmt: skip
    written(tmp_path / "t.csv", "filepath;title\na.jpg;x\n")
    with pytest.raises(SystemExit):
        csv_command([f"--table={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}"])
    assert "Set --image_column=filepath --caption_columns=title." in capsys.readouterr().err
