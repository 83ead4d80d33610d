"""Whether the columns of a Parquet file can hold what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from clipjax.data.records import ManifestError
from clipjax.data.sources.fields import missing_column

if TYPE_CHECKING:
    import pyarrow


def check_image(path: str | Path, schema: pyarrow.Schema, name: str, option: str) -> None:
    """Raises ManifestError unless the column can hold encoded images. option: what names it, for the error."""
    if name not in schema.names:
        raise ManifestError(missing_column(path, name, schema.names, option))
    _check_once(path, schema, name)
    kind = _bare(schema.field(name).type)
    if _has_fields(kind):
        inner = {kind.field(number).name: _bare(kind.field(number).type) for number in range(kind.num_fields)}
        if "bytes" not in inner and _is_text(inner.get("path", kind)):  # Hugging Face's images in files
            return
        kind = inner.get("bytes", kind)
    if not (_is_binary(kind) or _is_null(kind)):
        raise ManifestError(
            f"{path}, column '{name}', holds {schema.field(name).type}, expected the bytes of images, or Hugging "
            f"Face's {{bytes, path}}. Set {option}, or list the paths in a table for the source 'folder'."
        )


def check_has_bytes(path: str | Path, metadata: pyarrow.parquet.FileMetaData, name: str) -> None:
    """Raises ManifestError where Hugging Face's {bytes, path} of a file in a bucket has paths only.

    The files that they name are read from a folder, and not from a bucket.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    if not any(column.path_in_schema == f"{name}.path" for column in columns):
        return
    images = [column for column in columns if column.path_in_schema == f"{name}.bytes"]
    known = all(image.is_stats_set and image.statistics.has_null_count for image in images)
    if known and all(image.statistics.null_count == image.num_values for image in images):
        raise ManifestError(
            f"{path}, column '{name}', has paths of image files and no bytes: such files are read from a folder, not "
            "from a bucket. Mount the bucket or copy it (docs/buckets.md), or write Parquet with the bytes (datasets' "
            "Dataset.to_parquet after embed_storage), or build records of it (docs/data_pipelines.md)."
        )


def check_text(path: str | Path, schema: pyarrow.Schema, key: str, option: str, names_of: str = "") -> None:
    """Raises ManifestError unless the column, or the field inside one that "meta/text" names, can hold texts.

    option: what names it, for the error. names_of: the column of labels, where it has class names.
    """
    or_names = f", or {option} to '{names_of}' for the names of the classes" if names_of else ""
    name, *inner = [key] if key in schema.names else key.split("/")
    if name not in schema.names:
        raise ManifestError(missing_column(path, key, schema.names, option + or_names))
    _check_once(path, schema, name)
    kind = schema.field(name).type
    for field in inner:
        outer = _element(kind)
        known = [outer.field(number).name for number in range(outer.num_fields)] if _has_fields(outer) else []
        if field not in known:
            raise ManifestError(missing_column(f"{path}, column '{name}',", field, known, option))
        kind = outer.field(known.index(field)).type
    if not _holds_text(kind):
        raise ManifestError(f"{path}, column '{key}', holds {kind}, expected texts. Set {option} to another{or_names}.")


def has_texts(schema: pyarrow.Schema, but: Sequence[str]) -> bool:
    """Whether any column but these has the type of a text, or of lists of texts."""
    return any(_is_text(_element(field.type)) for field in schema if field.name not in but)


def warn_unless_number(path: str | Path, schema: pyarrow.Schema, name: str) -> None:
    """Warns of a column of this name whose type is no number: it is not read."""
    import pyarrow.types as types

    kind = _bare(schema.field(name).type) if schema.names.count(name) == 1 else None
    if kind and not (types.is_integer(kind) or types.is_floating(kind) or _is_null(kind)):
        logging.warning("%s: column '%s' holds %s, expected whole numbers; it is not read", path, name, kind)


def check_same(first: str | Path, columns: Sequence[str], other: str | Path, others: Sequence[str]) -> None:
    """Raises ManifestError where one of two files lacks a column that is read from the other."""
    for name in dict.fromkeys((*columns, *others)):
        if (name in columns) != (name in others):
            has, lacks = (first, other) if name in columns else (other, first)
            raise ManifestError(
                f"{has} has the column '{name}', but {lacks} does not. Write both with the same columns, or read them "
                "as two sources of a mixture."
            )


def _check_once(path: str | Path, schema: pyarrow.Schema, name: str) -> None:
    if schema.names.count(name) > 1:
        raise ManifestError(f"{path} has {schema.names.count(name)} columns '{name}'. Give each a name of its own.")


def _holds_text(kind: pyarrow.DataType) -> bool:
    kind = _element(kind)
    return _is_text(kind) or _is_binary(kind) or _is_null(kind)


def _element(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of a list's elements, or the type itself."""
    import pyarrow.types as types

    kind = _bare(kind)
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = _bare(kind.value_type)
    return kind


def _bare(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of a dictionary's values and of an extension's storage."""
    import pyarrow
    import pyarrow.types as types

    while True:
        if types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_binary(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return any(
        is_kind(kind)
        for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    )


def _is_null(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_null(kind)


def _has_fields(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_struct(kind)
