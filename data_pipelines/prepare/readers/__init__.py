"""Input of each kind -> units of examples. Add a kind: a file with two functions, a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import files, parquet, records, webdataset
from data_pipelines.prepare.types import Example, Listing, Note, Unit


class Reader(NamedTuple):
    units: Callable[[Options], Listing]  # raises PipelineError or ManifestError for input that is missing or damaged
    # Calls note(cause, where, what) for what it leaves out. A PipelineError after good examples means damage.
    read: Callable[[Unit, Options, Note], Iterator[Example]]


READERS: dict[str, Reader] = {
    "webdataset": Reader(webdataset.units, webdataset.read),
    "img2dataset": Reader(webdataset.img2dataset_units, webdataset.read),
    "parquet": Reader(parquet.units, parquet.read),
    "records": Reader(records.units, records.read),
    "tfds": Reader(records.tfds_units, records.read),
    "folder": Reader(files.folder_units, files.read),
    "csv": Reader(files.csv_units, files.read),
    "jsonl": Reader(files.jsonl_units, files.read),
}
