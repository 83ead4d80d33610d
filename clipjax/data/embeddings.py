"""Embeddings of a frozen tower, in shards that `clipjax embed` writes: one record for each record of a source.

The folder is one of clipjax.data.records with the split "all". Record i is the msgpack map {"key": str, "image": bytes
of an array [D], "texts": bytes of an array [captions, D], "captions": their digest}; the last two are empty where only
images were embedded, and all four where the source's record is bad. The manifest's source describes the tower that made
the embeddings: clipjax.training.precomputed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

from clipjax.config import ConfigError, SourceConfig, differences, require
from clipjax.data.records import MANIFEST, ManifestError, RecordError, read_manifest
from clipjax.data.sources.array_record import ArrayRecordSource
from clipjax.data.write import write_records
from clipjax.storage import as_path

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SPLIT = "all"
RECORDS_PER_SHARD = 4096


class Row(NamedTuple):
    """What is embedded of one record."""

    key: str
    image: np.ndarray  # [D]
    texts: np.ndarray | None = None  # [captions, D]
    captions: Sequence[str] = ()  # that the texts are embeddings of


class Embeddings:
    """A folder of embeddings. Can be pickled; reads a record when it is asked for."""

    def __init__(self, folder: str | Path):
        """Raises ManifestError for a folder that is missing or damaged, ConfigError for one without embeddings."""
        self.made_by = read_made_by(folder)
        self.folder, self.dtype = str(folder), self.made_by["dtype"]
        self.records = ArrayRecordSource(SourceConfig(path=self.folder, split=SPLIT))

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int, key: str) -> np.ndarray:
        """The image embedding of record `index`, [D] float32. Raises RecordError if its key is not `key`."""
        return self._array(self._record(index, key)["image"])

    def text(self, index: int, key: str, captions: Sequence[str], caption: int) -> np.ndarray:
        """The embedding of captions[caption], [D] float32.

        Raises RecordError as `image` does, and where these are not the captions that were embedded.
        """
        record = self._record(index, key)
        given = digest(captions)
        if record.get("captions", given) != given:  # folders of earlier versions have no digest
            raise RecordError(
                "other captions", f"record {index}, '{key}', had other captions when {self.folder} was made"
            )
        texts = self._array(record["texts"]).reshape(-1, len(record["image"]) // np.dtype(DTYPES[self.dtype]).itemsize)
        if caption >= len(texts):
            found = f"record {index}, '{key}', has only {len(texts)} captions in {self.folder}"
            raise RecordError("other captions", f"{found}, so none with number {caption}")
        return texts[caption]

    def _array(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, DTYPES[self.dtype]).astype(np.float32)

    def _record(self, index: int, key: str) -> dict[str, Any]:
        try:
            record = msgpack.unpackb(self.records.read(index))
        except RecordError:
            raise
        except (ValueError, RuntimeError) as error:
            raise RecordError("unreadable embedding", str(error)) from error
        if not record["image"]:
            raise RecordError("not embedded", f"record {index} could not be used when {self.folder} was made")
        if record["key"] != key:
            raise RecordError("other embedding", f"record {index} is '{key}', in {self.folder} '{record['key']}'")
        return record


def digest(captions: Sequence[str]) -> bytes:
    """Eight bytes that differ for other captions, or for the same ones in another order."""
    return hashlib.blake2b("\0".join(captions).encode(), digest_size=8).digest()


def shares(records: int, process_count: int) -> list[range]:
    """The consecutive records that each process embeds, in whole shards.

    The files are then the same for any number of processes.
    """
    shards = -(-records // RECORDS_PER_SHARD)
    starts = [min(shards * p // process_count * RECORDS_PER_SHARD, records) for p in range(process_count + 1)]
    return [range(start, stop) for start, stop in zip(starts, starts[1:], strict=False)]


def write_embeddings(
    folder: str | Path,
    rows: Iterator[Row | None],
    made_by: Mapping[str, Any],
    *,
    process_index: int = 0,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> None:
    """rows: one for each record of the source in order, None for a bad one.

    made_by: {"dtype", ...}, which a run that uses the embeddings compares with its own. A finished folder with an equal
    made_by is left as it is; another one raises ManifestError.
    process_index, gather: as for write_records; each process passes the rows of its share.
    """
    dtype = DTYPES[made_by["dtype"]]
    packed = lambda array: b"" if array is None else np.ascontiguousarray(array, dtype).tobytes()  # noqa: E731

    def record(row: Row | None) -> bytes:
        key, image, texts, captions = row or Row("", None)
        of = b"" if texts is None else digest(captions)
        return msgpack.packb({"key": key, "image": packed(image), "texts": packed(texts), "captions": of})

    write_records(
        folder,
        {SPLIT: map(record, rows)},
        name="embeddings",
        records_per_shard=RECORDS_PER_SHARD,
        source={"embeddings": dict(made_by)},
        process_index=process_index,
        gather=gather,
    )


def check_destination(folder: str | Path, expected: Mapping[str, Any]) -> None:
    """Refuses a folder in which other embeddings, or anything else, are already. Raises ManifestError, ConfigError.

    expected: made_by of the embeddings to write, as far as it is known before the weights are read.
    """
    folder = as_path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if folder.is_file():
        raise ManifestError(f"{folder} is a file; embeddings are written into a folder. Name another one.")
    made_by = read_made_by(folder)
    lines = [
        f"  {name}: {old!r} there, {new!r} now"
        for name, (old, new) in differences({name: made_by.get(name) for name in expected}, expected).items()
    ]
    if lines:
        raise ManifestError(
            f"{folder} holds embeddings made with other settings:\n" + "\n".join(lines) + "\nName another folder."
        )


def open_embeddings(folder: str, records: int) -> Embeddings | None:
    """The embeddings in a folder; None if folder is "". Raises ConfigError unless it embeds `records` records."""
    if not folder:
        return None
    embeddings = Embeddings(folder)
    require(
        len(embeddings) == records,
        f"{folder} has embeddings of {len(embeddings)} records, config.data.train has {records}: make them again.",
    )
    return embeddings


def read_made_by(folder: str | Path) -> dict[str, Any]:
    """What made the embeddings in a folder. Raises ManifestError, or ConfigError if its records are not embeddings."""
    made_by = read_manifest(folder)["source"].get("embeddings")
    require(made_by is not None, f"{folder} has records but no embeddings; make them with clipjax embed --out=FOLDER.")
    require(
        isinstance(made_by, dict) and made_by.get("dtype") in DTYPES,
        f"{folder}: its {MANIFEST} does not say as what the embeddings are stored (dtype: {', '.join(DTYPES)}); make "
        "them again with clipjax embed --out=FOLDER.",
    )
    return made_by


def check_made_by(made_by: Mapping[str, Any], expected: Mapping[str, Any], *, where: str) -> None:
    """Raises ConfigError listing every field in which made_by differs from what this experiment would compute."""
    lines = [
        f"  {name}: embedded with {made_by.get(name, 'not recorded')!r}, this experiment has "
        f"{expected.get(name, 'not set')!r}"
        for name in differences(made_by, expected)
        if name != "dtype"
    ]
    if lines:
        raise ConfigError(
            f"The embeddings in {where} are not what this experiment's frozen tower would compute:\n"
            + "\n".join(lines)
            + "\nMake them again into another folder (clipjax embed), or use the settings they were made with."
        )
