"""Separate image files: a folder with caption files beside the images, or a table that names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from clipjax.data.sources.image_files import Sidecars
from clipjax.data.sources.tables import Columns
from data_pipelines.archives import MAX_MEMBER
from data_pipelines.command import Skips
from data_pipelines.image_folder import list_images, sidecar
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers.paths import one_input
from data_pipelines.prepare.types import Example, Listing, Note, Unit
from data_pipelines.tables import FLAGS, RowsOf, csv_rows, gather, json_rows, number_labels

_AT_A_TIME = 512

Item = tuple[str, str, tuple[str, ...], int | str]  # key, path, captions, label as in Example


def folder_units(options: Options) -> Listing:
    """NAME.jpg with its captions in NAME.txt, one per line."""
    folder, skips, sidecars = one_input(options), Skips(), Sidecars()
    items = [
        (path.relative_to(folder).as_posix(), str(path), sidecar(path, sidecars), "")
        for path in list_images(folder, skips, sidecars)
    ]
    return _listing("folder", items, skips)


def csv_units(options: Options) -> Listing:
    return _table_units(options, csv_rows)


def jsonl_units(options: Options) -> Listing:
    return _table_units(options, json_rows)


def read(unit: Unit, options: Options, note: Note) -> Iterator[Example]:
    items, skipped = unit.payload
    for cause, examples, count in skipped:
        note(cause, examples[0], "", count)
    for path, (key, texts, label) in zip(unit.files, items, strict=True):
        try:
            if Path(path).stat().st_size > MAX_MEMBER:
                note("file too large", key, f"{Path(path).stat().st_size:,} bytes")
                continue
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            note("file cannot be read", key, str(error))
            continue
        yield Example(key, data, texts, label)


def _table_units(options: Options, rows_of: RowsOf) -> Listing:
    table, skips = one_input(options), Skips()
    columns = Columns(
        options.image_column, options.caption_columns, options.label_column, delimiter=options.delimiter, options=FLAGS
    )
    gathered = gather(table, rows_of, columns, skips)
    root = Path(options.image_root or table.parent)
    names, labels = number_labels(table, gathered, options.class_names, skips)
    items = [(key, str(root / key), tuple(entry.texts), labels.get(key, "")) for key, entry in gathered.items()]
    return Listing(_listing(options.reader, items, skips).units, list(names.names))


def _listing(reader: str, items: list[Item], skips: Skips) -> Listing:
    """The first unit reports what the listing left out."""
    skipped = [(cause, skips.examples[cause], count) for cause, count in skips.counts.items()]
    pieces: Iterable[list[Item]] = (items[i : i + _AT_A_TIME] for i in range(0, len(items), _AT_A_TIME))
    units = [
        Unit(i, f"{piece[0][0]} and {len(piece) - 1} more", reader, tuple(path for _, path, *_ in piece),
             ([(key, texts, label) for key, _, texts, label in piece], ()))
        for i, piece in enumerate(pieces)
    ]  # fmt: skip
    units = units or [Unit(0, "nothing", reader, (), ([], ()))]
    return Listing([units[0]._replace(payload=(units[0].payload[0], tuple(skipped))), *units[1:]])
