"""A Parquet file whose dictionary makes a few bytes many is refused before they fill the memory."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.data.records import RecordError
from clipjax.data.sources import ParquetConfig, open_source, parquet_groups
from clipjax.data.sources.parquet_groups import stream_rows

ROWS, LARGE = 400, b"x" * 10_000


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setattr(parquet_groups, "MOST_DECODED", 1 << 20)


def bomb(path, kind):
    """Four megabytes of images in some ten kilobytes; `first_null`: the first rows have none."""
    values = [None] * 5 + [LARGE] * (ROWS - 5) if kind == "first_null" else [LARGE] * ROWS
    images = pa.array(values, pa.binary())
    if kind == "struct":
        images = pa.StructArray.from_arrays([images, pa.array(["x.jpg"] * ROWS)], ["bytes", "path"])
    texts = [["a", "b"]] * ROWS if kind == "captions" else ["a"] * ROWS
    if kind == "captions":
        images, texts = pa.array([b"x"] * ROWS), [[LARGE.decode()]] * ROWS
    pq.write_table(
        pa.table({"image": images, "text": texts}), path, compression="zstd", dictionary_pagesize_limit=1 << 30
    )
    assert path.stat().st_size < 20_000
    return path


@pytest.mark.parametrize("kind", ["plain", "struct", "first_null", "captions"])
def test_rows_that_repeat_a_large_value_are_refused_with_both_sizes(kind, tmp_path):
    source = open_source(ParquetConfig(path=str(bomb(tmp_path / "bomb.parquet", kind))))
    with pytest.raises(
        RecordError, match="row group 0: its rows repeat large values and decode to more than 1048576"
    ) as error:
        source[0]
    assert error.value.cause == "row group too large"


def test_streamed_rows_of_a_bomb_are_decoded_a_few_at_a_time(tmp_path, monkeypatch):
    path = bomb(tmp_path / "bomb.parquet", "plain")
    with pq.ParquetFile(path) as file:
        assert parquet_groups.rows_at_a_time(path, file, 0, ["image"]) == (1 << 20) // len(LARGE)
        assert parquet_groups.rows_at_a_time(path, file, 0, ["text"]) == ROWS, "another column is not read"
    assert sum(len(row["image"]) for row in stream_rows(path, 0, ["image"])) == ROWS * len(LARGE)


def test_different_images_and_repeated_words_decode_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.bytes(8_000) for _ in range(ROWS)]  # three megabytes, which the file declares
    words = [f"word {number % 7}" for number in range(ROWS)]
    pq.write_table(pa.table({"image": images, "text": words}), tmp_path / "a.parquet")
    source = open_source(ParquetConfig(path=str(tmp_path / "a.parquet")))
    assert [(source[i]["image"], source[i]["texts"]) for i in (0, 200, 399)] == [
        (images[i], [words[i]]) for i in (0, 200, 399)
    ]


FOOTERS = """
import sys
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import ParquetConfig, open_source
path = sys.argv[1]
original = open(path, "rb").read()
start = len(original) - 8 - int.from_bytes(original[-8:-4], "little")
read = 0
for position in range(start, len(original) - 8):
    for change in (1, 3, 6):
        data = bytearray(original)
        data[position] = (data[position] + change) % 256
        open(path, "wb").write(data)
        try:
            open_source(ParquetConfig(path=path))[0]
            read += 1
        except (ManifestError, RecordError):
            pass
print("read", read)
"""


def test_no_changed_byte_of_a_footer_ends_the_process(tmp_path):
    """Arrow checks histograms of levels in C++ code that Python cannot catch."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"x", None], "text": [["a", "b"], []]}), path, use_dictionary=False)
    done = subprocess.run([sys.executable, "-c", FOOTERS, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and int(done.stdout.split()[1]) > 100, done.stderr[-500:]
