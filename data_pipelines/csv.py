"""Your images and captions, listed in a CSV or TSV table with a header, as records.

    python -m data_pipelines.csv --table=captions.csv --out=data/mine
    python -m data_pipelines.csv --table=flickr.tsv --image_column=filepath --caption_columns=title,description \\
        --image_root=/mnt/photos --shorter_side=256 --out=data/flickr
    python -m data_pipelines.csv --table=captions.csv --delimiter=';' --out=data/mine

Image paths start from the table's folder, or from --image_root. Rows with the same image become one record with
several captions. Rows without image or caption, and images that cannot be read, are left out and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipjax.storage import as_path
from data_pipelines import command
from data_pipelines.tables import add_table_flags, build_from_rows, csv_rows


def build(out: str | Path, *, table: str | Path, **options: Any) -> dict:
    """Writes records to `out`, returns the manifest.

    table: CSV or TSV with a header line, as clipjax.data.sources.csv_tables reads it.
    options: the other flags, as in tables.build_from_rows.
    """
    return build_from_rows(as_path(out), Path(table), csv_rows, **options)


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("csv", __doc__)
    add_table_flags(parser)
    parser.add_argument(
        "--delimiter", default="", help="separates fields: one character or 'tab'; default: detected from the header"
    )
    command.run(build, parser, argv)


if __name__ == "__main__":
    main()
