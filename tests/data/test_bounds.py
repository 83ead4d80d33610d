"""Captions, rows, scans and tokenizers that would take all memory or time: a record is skipped, or one clean line."""

import importlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from clipjax.config import ConfigError, TokenizerConfig
from clipjax.data.images.decode import open_image
from clipjax.data.images.jpeg import SCANNED_PIXELS, SCANS, check_scans
from clipjax.data.records import MAX_CAPTION, RecordError, encode_record
from clipjax.data.sources import FolderConfig, ParquetConfig, WebDatasetConfig, open_source, tables
from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.tokenizers.rust import library_errors
from tests.data.samples import encoded, picture

LONG = "a" * (MAX_CAPTION + 1)
JPEG = encoded(picture(), "JPEG")


def outcomes(source):
    """The first caption of each record, or the cause for which it is bad."""
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index]["texts"][0])
        except RecordError as error:
            found.append(error.cause)
    return found


def test_a_caption_of_megabytes_in_a_tar_is_a_bad_record(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in {
            "a.jpg": JPEG, "a.txt": LONG.encode(), "b.jpg": JPEG, "b.json": json.dumps({"caption": LONG}).encode(),
            "c.jpg": JPEG, "c.txt": b"a cat", "d.jpg": JPEG, "d.json": b"[" * 100_000,
        }.items():  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = open_source(WebDatasetConfig(path=str(tmp_path)))
    assert outcomes(source) == ["caption too long", "caption too long", "a cat", "corrupt record"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_a_row_beyond_the_longest_is_a_bad_record_and_the_next_one_is_read(name, tmp_path, monkeypatch):
    """Lines are cut in pieces where they are read, so that one of 100 MB is never in memory."""
    monkeypatch.setattr(tables, "LONGEST_LINE", 3 * MAX_CAPTION)
    monkeypatch.setattr("clipjax.data.sources.csv_tables.LONGEST_LINE", 3 * MAX_CAPTION)
    (tmp_path / "a.jpg").write_bytes(JPEG)
    texts = [("a.jpg", "a cat"), ("b.jpg", LONG * 4), ("c.jpg", LONG), ("a.jpg", "a dog")]
    lines = [json.dumps({"image": image, "caption": text}) for image, text in texts]
    if name != "t.jsonl":
        separator = "\t" if name == "t.tsv" else ","
        lines = [separator.join(row) for row in [("image", "caption"), *texts]]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    source = open_source(FolderConfig(path=str(tmp_path / name)))
    assert sorted(outcomes(source)) == ["a cat", "caption too long", "corrupt record"]
    bad = next(entry.fault.message for entry in source.entries if entry.fault and "row" in entry.fault.message)
    assert bad == f"row too long it has more than {3 * MAX_CAPTION:,} characters"


def test_a_header_beyond_the_longest_line_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_LINE", 100)
    (tmp_path / "t.csv").write_text("image,caption" + "," * 200)
    with pytest.raises(ValueError, match="t.csv line 1 has more than"):
        open_source(FolderConfig(path=str(tmp_path / "t.csv")))


def test_long_captions_in_parquet_records_and_caption_files_are_bad_records(tmp_path):
    pq.write_table(pa.table({"image": [JPEG, JPEG], "text": [LONG, "a cat"]}), tmp_path / "x.parquet")
    assert outcomes(open_source(ParquetConfig(path=str(tmp_path / "x.parquet")))) == ["caption too long", "a cat"]
    with pytest.raises(RecordError, match="1048577 characters") as error:
        encode_record(JPEG, ["a cat", LONG], key="k")
    assert error.value.cause == "caption too long"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(JPEG)
    (tmp_path / "images" / "a.txt").write_text(LONG)
    assert outcomes(open_source(FolderConfig(path=str(tmp_path / "images")))) == ["record too large"]


def test_something_else_among_captions_is_a_bad_record_and_a_null_is_no_caption(tmp_path):
    """It would be left out without a word, and the record's other captions taken for all of them."""
    lists = [["a cat", 2012], ["a cat", None], ["a cat", {"en": "a cat"}], [None, 3], ["a cat", "a dog"]]
    expected = ["caption not text", "a cat", "caption not text", "no caption", "a cat"]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for index, captions in enumerate(lists):
            for suffix, data in (("jpg", JPEG), ("json", json.dumps({"captions": captions}).encode())):
                info = tarfile.TarInfo(f"{index}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert outcomes(open_source(WebDatasetConfig(path=str(tmp_path / "0.tar")))) == expected
    lines = []
    for index, captions in enumerate(lists):
        (tmp_path / f"{index}.jpg").write_bytes(JPEG)
        lines.append(json.dumps({"image": f"{index}.jpg", "caption": captions}))
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    source = open_source(FolderConfig(path=str(tmp_path / "t.jsonl")))
    assert sorted(outcomes(source)) == sorted(expected)
    with pytest.raises(RecordError, match=r"2012 stands among the texts \['a cat'\]"):
        open_source(WebDatasetConfig(path=str(tmp_path / "0.tar")))[0]


def with_scans(image, count):
    """A progressive JPEG whose last scan is there `count` times more."""
    data = encoded(image, "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def test_a_jpeg_of_a_thousand_scans_is_refused_as_one_of_too_many_pixels_is():
    assert open_image(with_scans(picture(), 20)).size == picture().size
    for count in (SCANS, 1000):
        with pytest.raises(RecordError, match=f"scans of 2400 pixels, the limit is {SCANS}") as error:
            open_image(with_scans(picture(), count))
        assert error.value.cause == "too many scans"
    check_scans(with_scans(picture(), 20), SCANNED_PIXELS // 64)
    with pytest.raises(RecordError, match="a JPEG of 26 scans"):
        check_scans(with_scans(picture().convert("L"), 20), SCANNED_PIXELS // 16)


def test_scans_are_counted_in_the_image_and_not_in_what_is_stored_beside_it():
    beside = b"\xff\xe1" + (2 + 60_000).to_bytes(2, "big") + b"\xff\xda" * 30_000
    data = JPEG[:2] + beside + JPEG[2:]
    assert open_image(data).size == picture().size


def test_an_orientation_that_does_not_exist_is_none():
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 2054
    assert open_image(encoded(picture(), "JPEG", exif=exif)).size == picture().size


class PanicException(BaseException):
    """Stands for the library's own, which is no Exception either."""


def test_a_panic_of_the_tokenizers_library_is_one_clean_error():
    with pytest.raises(ConfigError, match="tokenizer.json is damaged \\(called unwrap on a None value\\)"):
        with library_errors("tokenizer.json is damaged"):
            raise PanicException("called unwrap on a None value")
    with pytest.raises(KeyboardInterrupt), library_errors("tokenizer.json is damaged"):
        raise KeyboardInterrupt


def test_an_id_far_beyond_the_vocabulary_is_refused(tmp_path):
    """The library would count up to it when a pipeline is written."""
    made = json.loads(tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1}, "<unk>")).to_str())
    made["model"]["vocab"]["a"] = 2**31 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(ConfigError, match="has the id 2,147,483,647 among 2 pieces"):
        make_tokenizer(TokenizerConfig(name="hf", path=str(tmp_path), pad_id=0), 8)


DAMAGED = {
    "a score that is no number": lambda made: made["model"].update(vocab=[["a", None]]),
    "no unknown piece": lambda made: made["model"].update(unk_id=99),
    "another model": lambda made: made["model"].update(type="Magic"),
    "a template without a token": lambda made: made.update(
        post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
                        "pair": [], "special_tokens": {}}
    ),
    "a template with an id beyond int32": lambda made: made.update(
        post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
                        "pair": [], "special_tokens": {"X": {"id": "X", "ids": [2**32 - 1], "tokens": ["X"]}}}
    ),
    "a damaged table of characters": lambda made: made.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "a pattern that does not close": lambda made: made.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_json_is_one_clean_error(name, tmp_path, capfd):
    pipeline = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    made = json.loads(pipeline.to_str())
    DAMAGED[name](made)
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(ConfigError, match="tokenizer") as error:
        make_tokenizer(TokenizerConfig(name="hf", path=str(tmp_path), pad_id=0), 8)
    assert "\n" not in str(error.value)
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("kept", [0, 7, 500])
def test_a_sentencepiece_model_that_is_cut_is_one_clean_error(kept, tmp_path, capfd):
    (tmp_path / "x.model").write_bytes(np.random.default_rng(0).bytes(kept))
    with pytest.raises(ConfigError, match="x.model' is not a SentencePiece model"):
        make_tokenizer(TokenizerConfig(name="sentencepiece", path=str(tmp_path / "x.model")), 8)
    assert capfd.readouterr().err == ""


def test_a_vocabulary_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    import gzip

    monkeypatch.setattr(importlib.import_module("clipjax.data.tokenizers.clip_bpe"), "MAX_TEXT", 1000)
    (tmp_path / "bpe.gz").write_bytes(gzip.compress(b"a b\n" * 1000))
    with pytest.raises(ConfigError, match="bpe.gz' has more than 1,000 bytes"):
        make_tokenizer(TokenizerConfig(name="clip_bpe", path=str(tmp_path / "bpe.gz")), 8)
