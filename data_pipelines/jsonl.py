"""Your images and captions, listed as one JSON object a line, as records.

    python -m data_pipelines.jsonl --table=captions.jsonl --out=data/mine
    {"image": "photos/1.jpg", "caption": "a dog on a beach"}
    {"image": "photos/2.jpg", "caption": ["two cats", "cats asleep on a sofa"]}

A caption is a text or a list of texts. Image paths start from the table's folder, or from --image_root. Lines with the
same image become one record. Lines that are not a JSON object or have no image or caption, captions that are not text,
and images that cannot be read, are left out and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipjax.storage import as_path
from data_pipelines import command
from data_pipelines.tables import add_table_flags, build_from_rows, json_rows


def build(out: str | Path, *, table: str | Path, **options: Any) -> dict:
    """Writes records to `out`, returns the manifest.

    table: UTF-8, one JSON object a line.
    options: the other flags, as in tables.build_from_rows.
    """
    return build_from_rows(as_path(out), Path(table), json_rows, **options)


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("jsonl", __doc__)
    add_table_flags(parser)
    command.run(build, parser, argv)


if __name__ == "__main__":
    main()
