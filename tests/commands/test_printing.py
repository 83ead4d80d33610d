"""What files say is shown escaped where commands print it: errors, warnings, samples of data, tables of results."""

import logging as python_logging

import pytest

from clipjax.commands.flags import _printable, fail
from clipjax.data.bad_records import BadRecord
from clipjax.data.records import encode_record
from clipjax.processes import announce
from clipjax.report.data import describe_samples
from tests.data.samples import encoded, picture

EVIL = "\x1b[2J\x1b[31mOK\u202e"


def test_errors_and_announcements_are_escaped_and_keep_their_lines(capsys):
    with pytest.raises(SystemExit):
        fail(f"{EVIL}:\n  missing: x")
    announce(f"read {EVIL}")
    out, err = capsys.readouterr()
    assert err == "error: \\x1b[2J\\x1b[31mOK\\u202e:\n  missing: x\n"
    assert out == "read \\x1b[2J\\x1b[31mOK\\u202e\n"


def test_a_line_that_quotes_too_much_of_a_file_is_cut(capsys):
    with pytest.raises(SystemExit):
        fail(f"{'x' * 100_000}\nthe next line")
    assert capsys.readouterr().err == f"error: {'x' * 4000} ... (100,000 characters)\nthe next line\n"


def test_warnings_are_escaped():
    record = python_logging.LogRecord("absl", 30, "x.py", 1, "%s in %d", (EVIL, 3), None)
    assert _printable(record)
    assert record.getMessage() == "\\x1b[2J\\x1b[31mOK\\u202e in 3"


def test_a_bad_record_is_one_line():
    line = str(BadRecord("corrupt image", "a\nb.tar", 3, f"first\nsecond {EVIL}"))
    assert line == "a\\nb.tar record 3: first\\nsecond \\x1b[2J\\x1b[31mOK\\u202e (corrupt image)"


def test_samples_show_keys_captions_and_class_names_escaped():
    from clipjax.data.records import decode_record

    records = [decode_record(encode_record(encoded(picture()), [f"a {EVIL}\nb"], key=f"k\n{EVIL}", label=0))]
    text = describe_samples(records, class_names=[f"cat\n{EVIL}"])
    assert "\x1b" not in text and "\u202e" not in text and len(text.split("\n")) == 2
