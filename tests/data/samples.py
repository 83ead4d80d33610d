"""Small images, records and sources for the tests of clipjax.data."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clipjax.config import SourceConfig
from clipjax.data.records import RecordError, encode_record
from clipjax.data.sources import open_source
from clipjax.data.write import write_records

ROOT = Path(__file__).parent.parent.parent
FORMATS = ("JPEG", "PNG", "WEBP")


def picture(seed: int = 0, width: int = 60, height: int = 40) -> Image.Image:
    """A smooth random RGB picture: its pixels survive JPEG and resizing well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def example(i: int) -> dict:
    """What a source gives for record i: its key, texts, label and pair_id say which it is."""
    return {
        "image": encoded(picture(i), FORMATS[i % 3]),
        "texts": [f"caption {c} of record {i}" for c in range(1 + i % 3)],
        "key": f"key{i}",
        "label": i % 2,
        "pair_id": i,
    }


def record(i: int) -> bytes:
    fields = example(i)
    return encode_record(fields.pop("image"), fields.pop("texts"), **fields)


def write_folder(folder: Path, records: list[bytes] | int = 37, records_per_shard: int = 10) -> Path:
    records = [record(i) for i in range(records)] if isinstance(records, int) else records
    write_records(
        folder,
        {"train": records},
        name="samples",
        records_per_shard=records_per_shard,
        class_names=["even", "odd"],
        source={"records": len(records)},
    )
    return folder


def open_folder(folder: Path):
    return open_source(SourceConfig(path=str(folder)))


class FaultySource:
    """A list of examples in which some cannot be used."""

    class_names = ()

    def __init__(self, size: int, bad: set[int]):
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if index in self.bad:
            raise RecordError("corrupt image", "made unreadable")
        return example(index)

    def where(self, index: int) -> tuple[str, int]:
        return f"shard{index // 10}", index % 10


class LengthTokenizer:
    """Token 0 is the number in a text's first place, token 1 its last: enough to tell which caption was taken."""

    vocab_size, pad_id, eos_id, bos_id, sha256 = 1000, 0, 1, -1, ""

    def __call__(self, texts) -> np.ndarray:
        words = [text.split() or ["", "0", "0"] for text in texts]
        return np.array([[int(w[1]), int(w[-1])] for w in words], np.int32)


def run_script(script: Path, *arguments: object) -> subprocess.CompletedProcess:
    """In a fresh Python that sees the repository, for at most five minutes."""
    command = [sys.executable, str(script), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, timeout=300, capture_output=True, text=True)
