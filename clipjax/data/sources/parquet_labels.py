"""The label column of Parquet files: what it holds, and the class names that all files agree on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from clipjax.data.labels import ClassNames, names_beside, names_of_texts, one_list_of_names, read_label
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.fields import missing_column
from clipjax.json_files import parse_json

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


class LabelColumn(NamedTuple):
    """The label column of one file."""

    kind: Literal["none", "number", "text"]
    names: ClassNames  # Hugging Face's ClassLabel


def describe_labels(
    path: Path, file: pyarrow.parquet.ParquetFile, column: str, default: str, option: str = "the source's label_key"
) -> LabelColumn:
    """What the file says about its label column, without reading it. default: the column that may be missing.

    option: what names the column, for errors.
    Raises ManifestError for another column that is missing, and for a type that holds no single class.
    """
    schema = file.schema_arrow
    if not column or column not in schema.names:
        if column not in ("", default):
            raise ManifestError(missing_column(path, column, schema.names, option))
        return LabelColumn("none", ClassNames())
    kind = _kind(schema.field(column).type)
    if not kind:
        raise ManifestError(
            f"{path}: column '{column}' has the type {schema.field(column).type}, which is not one class of a record. "
            f"Expected whole numbers or texts. Set {option} to another column, or to '' to read no labels."
        )
    kind = "none" if _is_empty(file, column) else kind
    names = ClassNames(class_label_names(schema, column), f"the ClassLabel of {path}")
    return LabelColumn(kind, names)


def common_names(
    files: Sequence[Path], columns: Sequence[LabelColumn], texts_of: Callable[[Path], Iterable[Any]]
) -> ClassNames:
    """The class names of all files: ClassLabel's, those of a classnames.txt beside the files, or the sorted texts.

    texts_of(path): the distinct values of its label column; called only where there are no other names. Raises
    ManifestError for files that disagree.
    """
    labelled = [(file, one) for file, one in zip(files, columns, strict=True) if one.kind != "none"]
    named = [one.names for one in columns]
    folders = dict.fromkeys(file.parent for file, _ in labelled)
    names = one_list_of_names([*named, *(names_beside(folder, folder.parent) for folder in folders)])
    if any(one.names for one in named):
        for file, one in labelled:
            if one.kind == "number" and not one.names.names:
                raise ManifestError(
                    f"{file} has numbers as labels and no ClassLabel names, while {names.origin} has names. Write the "
                    "names into both, or read the files as two sources."
                )
    if names.names or not any(one.kind == "text" for _, one in labelled):
        return names
    labels = ((0, f"the column's type in {file}") for file, one in labelled if one.kind == "number")
    texts = (pair for file, one in labelled if one.kind == "text" for pair in _labels(file, texts_of(file)))
    return names_of_texts([*labels, *texts], str(files[0].parent if files[1:] else files[0]))


def class_label_names(schema: pyarrow.Schema, column: str) -> tuple[str, ...]:
    """Hugging Face's ClassLabel names of a column, kept in the schema's metadata; () where there are none."""
    try:
        names = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
        if isinstance(names, dict):  # {"0": "cat", "1": "dog"}
            names = [names[str(line)] for line in range(len(names))]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _labels(file: Path, values: Iterable[Any]) -> Iterable[tuple[Any, str]]:
    for value in values:
        try:
            yield read_label(value, "label"), str(file)
        except RecordError:  # its records are bad, and say why
            continue


def _kind(kind: pyarrow.DataType) -> Literal["none", "number", "text", ""]:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    texts += (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if types.is_null(kind):
        return "none"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    return "text" if any(is_kind(kind) for is_kind in texts) else ""


def _is_empty(file: pyarrow.parquet.ParquetFile, column: str) -> bool:
    """Whether the column has no value, as where pandas saw no label in this file. Reads rows up to the first one.

    Arrow's statistics would say it, too, but asking a damaged file for those ends the process (Arrow 25).
    """
    with contextlib.suppress(Exception):  # a damaged row group: its records are bad, and say why
        return all(map(_without_values, file.iter_batches(256, columns=[column], use_threads=False)))
    return False


def _without_values(rows: pyarrow.RecordBatch) -> bool:
    return all(column.null_count == len(column) for column in rows.columns)
