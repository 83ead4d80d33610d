"""Text files as people's editors and spreadsheets write them."""

from __future__ import annotations

import codecs

import pytest

from clipjax.files import TextFileError, numbered_lines, read_text, split_lines

TEXT = "café\nein Hügel\n犬"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    ],
)
def test_every_unicode_encoding_gives_the_same_text(tmp_path, data):
    (tmp_path / "names.txt").write_bytes(data)
    assert read_text(tmp_path / "names.txt") == TEXT


def test_another_encoding_is_refused_with_its_line(tmp_path):
    (tmp_path / "names.txt").write_bytes("dog\ncafé".encode("latin-1"))
    with pytest.raises(TextFileError, match=r"names\.txt, line 2: not UTF-8 \(byte 7 is 0xe9\)"):
        read_text(tmp_path / "names.txt")


def test_only_line_ends_end_a_line():
    assert split_lines("a\u2028b\r\nc\u0085d\re\x0bf\x0c\n\n") == ["a\u2028b", "c\u0085d", "e\x0bf\x0c", ""]
    assert split_lines("") == []


def test_line_numbers_are_those_an_editor_shows_or_the_file_is_refused(tmp_path):
    names = tmp_path / "names.txt"
    names.write_bytes(codecs.BOM_UTF8 + b"zero \r\none\r\ntwo\r\n\r\n")
    assert numbered_lines(names) == ["zero", "one", "two"]
    names.write_text("zero\n\ntwo\n")
    with pytest.raises(TextFileError, match="line 2 is empty"):
        numbered_lines(names)
