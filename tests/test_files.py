"""Text files as people's editors and spreadsheets write them."""

from __future__ import annotations

import codecs
import errno
import os

import pytest

from clipjax.files import (
    TextFileError,
    making_folder,
    numbered_lines,
    printable,
    read_text,
    replacing,
    split_lines,
    write_text,
)
from clipjax.json_files import parse_json, read_json

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


def test_what_a_killed_process_left_is_removed_by_the_next_writer_unless_it_is_locked(tmp_path):
    left, other = tmp_path / ".config-abcd_123.json", tmp_path / ".config-backup.json"
    for path in (left, other):
        path.write_text("{")
    with replacing(tmp_path / "config.json") as first:
        assert not left.exists() and other.exists(), "another name is not ours"
        with replacing(tmp_path / "config.json") as second:
            assert first.exists(), "somebody is still writing it"
            second.write_text("2")
        first.write_text("1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".config-backup.json", "config.json"]
    assert (tmp_path / "config.json").read_text() == "1"


def test_an_error_while_writing_names_the_file_and_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "config.json", "old")
    with pytest.raises(OSError) as found, replacing(tmp_path / "config.json") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert found.value.filename == str(tmp_path / "config.json")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_appears_whole_or_not_at_all_and_leftovers_go(tmp_path):
    (tmp_path / ".weights-abcdefgh").mkdir()
    with pytest.raises(ValueError), making_folder(tmp_path / "weights") as temporary:
        (temporary / "a").write_text("half")
        raise ValueError
    assert not list(tmp_path.iterdir())
    with making_folder(tmp_path / "weights") as temporary:
        (temporary / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat", "a cat"),
        ("caf\u00e9 \u732b \U0001f600", "caf\u00e9 \u732b \U0001f600"),
        ("\x1b[2J\x1b]0;x\x07", "\\x1b[2J\\x1b]0;x\\x07"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\x9b31m\u2028\ud800", "\\x9b31m\\u2028\\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_escaped(text, shown):
    assert printable(text) == shown


def test_a_message_of_several_lines_keeps_them():
    assert printable("two:\n  a\x1b\n\tb\r", lines=False) == "two:\n  a\\x1b\n\tb\\r"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "the field 'a' is there twice"),
        ("[" + "0," * 60 + "0]", "122 bytes|123 bytes"),
        ("9" * 5000, "digits"),
        ("{", "Expecting"),
    ],
)
def test_json_that_cannot_be_read_is_a_value_error_that_says_why(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text, 100 if text.startswith("[0") else 0)


def test_a_pipe_a_device_and_a_file_beyond_the_limit_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "is a named pipe"), ("/dev/zero", "is a device")):
        with pytest.raises(TextFileError, match=message):
            read_text(path)
    (tmp_path / "x.json").write_text("[1]")
    assert read_json(tmp_path / "x.json") == [1]
    with pytest.raises(TextFileError, match="x.json has more than 2 bytes"):
        read_text(tmp_path / "x.json", limit=2)
