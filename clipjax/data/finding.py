"""Which source reads what a user points at: found by looking into a folder, a table, tars, Parquet files or records."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipjax.config import ConfigError, SourceConfig, require
from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.listing import Listing, captions_of_images, class_folders_of, list_files
from clipjax.data.records import MANIFEST, ManifestError, read_manifest
from clipjax.data.sources import FolderConfig, HeldOutConfig, ParquetConfig, WebDatasetConfig, held_out, open_source
from clipjax.data.sources.columns import parquet_columns, table_columns
from clipjax.data.sources.image_files import SIDECARS
from clipjax.data.sources.local_files import SPLITS, split_in
from clipjax.data.sources.tables import TABLES
from clipjax.data.sources.tfds_folder import prepared_in, tfds_columns
from clipjax.files import hidden
from clipjax.storage import as_path, is_remote
from clipjax.storage.ranges import files_below

HELD_OUT = ("validation", "valid", "val", "dev", "test")  # splits to evaluate on, the first that there is
EVERY = 10  # the n-th record is held out of data without a split of their own
SIDES = (held_out.TRAIN, held_out.HELD_OUT)
SHARDS = {".tar": WebDatasetConfig, ".parquet": ParquetConfig}


class Found(NamedTuple):
    """Sources for what a path holds."""

    train: SourceConfig
    held_out: SourceConfig | None  # a split to evaluate on; None: the data have none
    what: str  # for people: "120 images in 3 class folders"
    splits: tuple[str, ...] = ()  # the names of the splits that the data have
    asked: SourceConfig | None = None  # the split that find_data was asked for; None: the data have none of this name

    def split(self, records: int) -> tuple[SourceConfig, SourceConfig]:
        """(source to train on, source to evaluate on); records: of train.

        Of data without a split of their own, every tenth record is held out (of fewer than 20, every other to ninth).
        """
        if self.held_out is not None:
            return self.train, self.held_out
        every, source = min(EVERY, max(2, records // 2)), dataclasses.replace(self.train, path="")
        return tuple(HeldOutConfig(path=self.train.path, split=side, every=every, source=source) for side in SIDES)


def find_data(path: str | Path, keys: dict[str, str] | None = None, split: str = "") -> Found:
    """Sources for a folder, a file or a pattern of tars or Parquet files.

    keys: {"image_key", "text_key", "label_key": column} of a table or of Parquet files, where they are named; the
    others are chosen by their usual names. split: one to find besides, Found.asked; where there is one, the data need
    no split to train on. Raises ConfigError for a path with nothing that is known, or with several kinds of data,
    naming what is there with counts.
    """
    name, keys = str(path), {key: value for key, value in (keys or {}).items() if value}
    suffix = os.path.splitext(name)[1].lower()
    if is_remote(name):
        return _in_bucket(name.rstrip("/"), suffix, keys, split)
    if suffix in SHARDS and not Path(name).is_dir():  # a file or a pattern
        return _of_shards(name, suffix, 0, keys)
    require(Path(name).exists(), f"--data={name} does not exist.")
    if Path(name).is_file():
        require(
            suffix in TABLES,
            f"--data={name} is no kind of file that is known: expected a folder, a {', '.join(TABLES)} table, "
            "a .tar or a .parquet file.",
        )
        return Found(table_columns(Path(name), keys), None, f"the table {name}")
    if (Path(name) / MANIFEST).is_file():
        return _of_records(name, split)
    if prepared := prepared_in(Path(name)):
        return _of_tfds(name, prepared, keys, split)
    listing = list_files(Path(name))
    tables = [table for suffix in TABLES for table in listing.of(suffix) if table.count("/") <= 1]
    shards = {suffix: len(listing.of(suffix)) for suffix in SHARDS if listing.of(suffix)}
    stems = [{os.path.splitext(name)[0] for name in listing.of(suffix)} for suffix in (".parquet", ".tar")]
    if len(shards) == 2 and stems[0] <= stems[1]:
        del shards[".parquet"]  # what img2dataset writes beside each tar
    kinds = [f"{count} {suffix} files" for suffix, count in shards.items()]
    if len(shards) == 1 and not (tables or listing.images):
        suffix, count = next(iter(shards.items()))
        return _of_shards(name, suffix, count, keys, split=split)
    if shards:
        kinds += [f"{len(tables):,} tables"] * bool(tables) + [f"{len(listing.images):,} images"] * bool(listing.images)
        raise ConfigError(
            f"--data={name} holds several kinds of data: {', '.join(kinds)}. Name one: its folder, a table, or a "
            f"pattern such as --data='{name}/*{next(iter(shards))}'."
        )
    if tables:
        found = _of_tables(Path(name), tables, len(listing.images), keys, split)
        if len(tables) == 1 and not split:
            _refuse_own_captions(name, listing, found)
        return found
    if listing.images:
        return _of_images(Path(name), listing, split)
    seen = collections.Counter(os.path.splitext(other)[1].lower() or "no suffix" for other in listing.others)
    there = ", ".join(f"{count} {kind}" for kind, count in seen.most_common(5)) or "no files"
    raise ConfigError(
        f"--data={name} holds no data that is known: there are {there}. Expected images ({', '.join(IMAGE_SUFFIXES)}) "
        f"with captions beside them or in class folders, a {', '.join(TABLES)} table, .tar or .parquet files, "
        f"records with {MANIFEST}, or a dataset that TFDS prepared."
    )


def _refuse_own_captions(name: str, listing: Listing, found: Found) -> None:
    """Raises ConfigError where a table knows less than half of images that have captions or classes of their own."""
    kind = captions_of_images(listing) if listing.images else ""
    if not kind:
        return
    try:
        records = len(open_source(found.train))
    except ManifestError:  # whoever opens the data tells
        return
    if 2 * records < len(listing.images):
        own = "with caption files" if kind == "files" else "in class folders"
        raise ConfigError(
            f"--data={name} holds two kinds of data: {len(listing.images):,} images {own}, and {found.train.path}, "
            f"with {records:,} records. Name the table, --data={found.train.path}; or, to read the images' own "
            "captions, move the table out of the folder."
        )


def _in_bucket(path: str, suffix: str, keys: dict[str, str], split: str) -> Found:
    if suffix in SHARDS and not as_path(path).is_dir():
        return _of_shards(path, suffix, 0, keys)
    names = [name for name in files_below(path) if not hidden(name)]
    if MANIFEST in names:
        return _of_records(path, split)
    found = Listing([], names)
    counts = {suffix: len(found.of(suffix)) for suffix in SHARDS}
    if counts[".tar"] and counts[".parquet"] <= counts[".tar"]:  # img2dataset writes one beside each tar
        counts[".parquet"] = 0
    kinds = [suffix for suffix, count in counts.items() if count]
    if len(kinds) == 1:
        return _of_shards(path, kinds[0], counts[kinds[0]], keys, names, split)
    seen = collections.Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in names)
    there = ", ".join(f"{count:,} {kind}" for kind, count in seen.most_common(5)) or "no files"
    raise ConfigError(
        f"--data={path} holds {there}. From a bucket, .tar files, .parquet files (name the one or the other by a "
        f"pattern) and folders of records with {MANIFEST} are read. Copy other data to a local disk, or mount the "
        "bucket (docs/buckets.md)."
    )


def no_split(path: str | Path, split: str, splits: Sequence[str]) -> ConfigError:
    """The error for data without a split that was asked for."""
    return ConfigError(
        f"--data={path} has no split '{split}', only {', '.join(sorted(splits)[:10])}"
        f"{', ...' if splits[10:] else ''}. Choose one with --split."
    )


def _of_images(folder: Path, listing: Listing, split: str) -> Found:
    names = class_folders_of(listing)
    splits = tuple(sorted(name for name in names if name.lower().rstrip("0123456789") in SPLITS))
    alone = len(splits) == 1 and len(names) > 2  # then it is a class: CIFAR-100 has one called "train"
    splits, asked = ((), False) if alone else (splits, split in names)
    if split and splits and not asked and not {"train", "training"}.intersection(map(str.lower, splits)):
        raise no_split(folder, split, splits)
    train, held_out = (split, "") if asked else splits_of_folders(folder, names if splits else set())
    part = listing
    if train:
        below = [[name[len(train) + 1 :] for name in names if name.startswith(f"{train}/")] for names in listing]
        part = Listing(*below)
    captions = captions_of_images(part)
    if not captions:
        beside = sum(name.lower().endswith(SIDECARS) for name in part.others)
        folders = class_folders_of(part)
        raise ConfigError(
            f"--data={folder}: {len(part.images):,} images, {beside} caption files ({', '.join(SIDECARS)}) and "
            f"{len(folders):,} folders with images. Expected a file NAME.txt beside (nearly) every NAME.jpg, or images "
            "in two or more folders that are named after their classes; or name a table of paths and captions."
        )
    how = (
        f"images in {len(class_folders_of(part)):,} class folders"
        if captions == "folders"
        else "images with captions beside them"
    )
    make = lambda name: FolderConfig(path=str(folder), split=name, captions=captions)  # noqa: E731
    source, other = make(train or ("" if alone else "train")), make(held_out) if held_out else None
    return Found(source, other, f"{len(part.images):,} {how}", splits, source if asked else None)


def splits_of_folders(folder: Path, names: set[str]) -> tuple[str, str]:
    """(the folder of the training split, that of a split to evaluate on), by their names; "" for none.

    Raises ConfigError for folders of splits of which none is for training.
    """
    by_split = {split_in(name): name for name in sorted(names, reverse=True) if name.lower() in SPLITS}
    train = by_split.get("train") or by_split.get("training", "")
    held_out = next((by_split[split] for split in HELD_OUT if split in by_split), "")
    require(
        bool(train) or len(by_split) < 2,
        f"--data={folder} has the folders {', '.join(sorted(by_split.values()))} of splits, and none named train. Name "
        "the folder to train on.",
    )
    return (train, held_out) if train else ("", "")


def _of_tables(folder: Path, tables: Sequence[str], images: int, keys: dict[str, str], split: str) -> Found:
    by_split: dict[str, list[str]] = {}
    for table in tables:
        stem = Path(table).stem
        own = split_in(stem) or (split_in(table.split("/")[0]) if "/" in table else "")
        by_split.setdefault("train" if own == "training" else own, []).append(table)
    splits = tuple(sorted(filter(None, by_split)))
    if len(by_split.get(split, ())) == 1 and split:
        asked = table_columns(folder / by_split[split][0], keys)
        return Found(asked, None, f"the table {asked.path} and {images} images", splits, asked)
    alone = len(tables) == 1
    train = tables if alone else by_split.get("train", [])
    if split and splits and not train:
        raise no_split(folder, split, splits)
    if len(train) != 1 or (not alone and any(len(names) > 1 for names in by_split.values())):
        raise ConfigError(
            f"--data={folder} holds {len(tables):,} tables ({', '.join(sorted(tables)[:5])}"
            f"{', ...' if tables[5:] else ''}) and {images} images. Name one: --data={folder}/{sorted(tables)[0]}."
        )
    source = table_columns(folder / train[0], keys)
    held_out = next((by_split[split][0] for split in HELD_OUT if split in by_split and not alone), "")
    other = table_columns(folder / held_out, keys) if held_out else None
    return Found(source, other, f"the table {folder / train[0]} and {images} images", splits)


def _of_shards(
    path: str, suffix: str, count: int, keys: dict[str, str], names: Sequence[str] = (), split: str = ""
) -> Found:
    splits: tuple[str, ...] = ()
    if names or Path(path).is_dir():
        names = names or _names_below(Path(path), suffix)
        names = [name.removeprefix("data/") for name in names if name.lower().endswith(suffix)]
        folders = {name.split("/")[0] for name in names if "/" in name}
        splits = tuple(sorted(folders | {split_in(part) for part in (*folders, *names)} - {""}))
    # As find_files has it: a folder that is named after the split holds nothing else.
    named = re.search(rf"(^|[-_./]){re.escape(split)}$", path.rstrip("/"))
    begin = any(re.match(rf"{re.escape(split)}[-_.]", name) for name in names)
    asked = bool(split and (split in splits or named or begin))
    if split and not asked and splits and "train" not in splits:
        raise no_split(path, split, splits)
    make, chosen = SHARDS[suffix], {"split": split} if asked else {}
    config = make(path=path, **chosen, **({"label_key": keys["label_key"]} if "label_key" in keys else {}))
    if suffix == ".parquet":
        config = parquet_columns(config, keys)
    elif keys:
        config = make(path=path, **chosen, **keys)
    other = "" if asked else next((name for name in HELD_OUT if name in splits), "")
    held_out = dataclasses.replace(config, split=other) if other else None
    what = f"{count or 'the'} {suffix} file{'s' * (count != 1)} of {path}"
    return Found(config, held_out, what, splits, config if asked else None)


def _names_below(folder: Path, suffix: str) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}"))
    return [name for name in names if not hidden(name)]


def _of_records(path: str, split: str) -> Found:
    splits = tuple(read_manifest(path)["splits"])
    return _of_named(SourceConfig(path=path), f"records in {path}", splits, split)


def _of_tfds(path: str, prepared: Sequence[Path], keys: dict[str, str], split: str) -> Found:
    require(
        len(prepared) == 1,
        f"--data={path} holds {len(prepared)} datasets that TFDS prepared. Name one: --data={prepared[-1]}.",
    )
    config, splits = tfds_columns(prepared[0], keys)
    require(bool(splits), f"--data={path}: the dataset that TFDS prepared has no splits.")
    return _of_named(config, "a TFDS dataset", tuple(splits), split)


def _of_named(config: SourceConfig, what: str, splits: tuple[str, ...], split: str) -> Found:
    """Of data that list their splits."""
    train = "train" if "train" in splits else splits[0]
    held_out = next((name for name in HELD_OUT if name in splits and name != train), "")
    make = lambda name: dataclasses.replace(config, split=name) if name else None  # noqa: E731
    asked = make(split if split in splits else "")
    return Found(make(train), make(held_out), f"{what}, splits {', '.join(splits)}", splits, asked)
