"""Your images and captions, listed in a CSV or TSV table with a header, as records.

    python -m data_pipelines.csv --table=captions.csv --out=data/mine
    python -m data_pipelines.csv --table=flickr.tsv --image_column=filepath --caption_columns=title,description \\
        --image_root=/mnt/photos --shorter_side=256 --out=data/flickr

Image paths are taken from the table's folder, or from --image_root. Rows with the same image become one
record with several captions. Rows without image or caption and images that cannot be read are left out and counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import command
from data_pipelines.command import PipelineError, Skips
from data_pipelines.tables import add_table_flags, build_from_rows

_LONGEST_FIELD = 10_000_000  # characters


def build(out: str | Path, *, table: str | Path, **options: Any) -> dict:
    """Writes records to `out`, returns the manifest.

    table: comma-separated UTF-8 with a header line; tab-separated when its name ends in .tsv.
    options: the other flags, as in tables.build_from_rows.
    """
    table, skips = Path(table), Skips()
    return build_from_rows(Path(out), table, table_rows(table, skips), skips, **options)


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("csv", __doc__)
    add_table_flags(parser)
    command.run(build, parser, argv)


def table_rows(table: Path, skips: Skips) -> Iterator[tuple[int, dict]]:
    """(line number, column -> value) of each whole row; what is none goes to skips."""
    csv.field_size_limit(_LONGEST_FIELD)
    delimiter = "\t" if table.suffix == ".tsv" else ","
    # utf-8-sig: spreadsheets begin the file with a byte order mark.
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, restkey=None)
        try:
            yield from _whole_rows(reader, table, skips)
        except csv.Error as error:
            raise PipelineError(f"{table} line {reader.line_num} is not CSV: {error}.") from error
        except UnicodeDecodeError as error:
            raise PipelineError(f"{table} is not UTF-8: {error}. Convert it, for example with iconv.") from error


def _whole_rows(reader: csv.DictReader, table: Path, skips: Skips) -> Iterator[tuple[int, dict]]:
    for row in reader:
        if None in row:
            # A caption with an unquoted comma would lose its end.
            skips.add("more fields than columns", f"{table.name} line {reader.line_num}")
        else:
            yield reader.line_num, row


if __name__ == "__main__":
    main()
