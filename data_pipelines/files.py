"""Shared by the commands for your own images: checking a file, splitting by key, writing records."""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipjax.data.images.decode import open_image
from clipjax.data.records import RecordError, encode_record
from clipjax.data.write import write_records
from data_pipelines.command import PipelineError, Skips, add_output_flags, print_manifest

DEFAULT_SPLITS = "train=0.98,validation=0.02"
_JPEG_QUALITY = 95
_AHEAD = 8  # files read ahead per thread


@dataclass(frozen=True)
class Item:
    """An image file with its captions and its class."""

    key: str  # unique, the same on every machine
    path: Path
    texts: tuple[str, ...]
    label: int | None = None


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    add_output_flags(parser)
    parser.add_argument(
        "--splits",
        default=DEFAULT_SPLITS,
        help="shares of the splits, which must add up to 1; a key's split never changes; default %(default)s",
    )
    parser.add_argument(
        "--shorter_side",
        type=int,
        default=0,
        help="store larger images shrunk to this many pixels, as JPEG; 0: store every file as it is",
    )
    parser.add_argument("--licence", default="", help="licence of the images, for the manifest")


def write_items(
    out: Path,
    items: list[Item],
    *,
    split_of: Callable[[str], str],
    shorter_side: int,
    licence: str,
    name: str,
    class_names: Iterable[str],
    skips: Skips,
    source: dict,
    overwrite: bool,
) -> dict:
    """Reads and checks the image files, writes the records, prints the report, returns the manifest.

    An unreadable image is left out and counted in skips. Raises PipelineError where there are no items, and where no
    image can be read: nothing is written then.
    """
    if shorter_side < 0:
        raise PipelineError(f"--shorter_side={shorter_side} is negative; expected pixels, or 0 to keep every file.")
    if not items:
        causes = "".join(f" {count} skipped: {cause}." for cause, count in skips.counts.items())
        raise PipelineError(f"No image with a caption found in {name}.{causes}")
    _refuse_unreadable(items, name)
    by_split: dict[str, list[Item]] = {}
    for item in items:
        by_split.setdefault(split_of(item.key), []).append(item)
    # Images whose first captions differ in case only are each other's matches in retrieval.
    pair_ids: dict[str, int] = {}
    for item in items:
        pair_ids.setdefault(item.texts[0].lower(), len(pair_ids))

    manifest = write_records(
        out,
        {split: _records(by_split[split], pair_ids, shorter_side, skips) for split in sorted(by_split)},
        name=name,
        class_names=tuple(class_names),
        skipped=skips.counts,
        licences=[{"source": name, "licence": licence}] if licence else [],
        source=source | {"shorter_side": shorter_side, "licence": licence},
        overwrite=overwrite,
        say=print,
    )
    print_manifest(out, manifest, skips)
    return manifest


def split_by_share(splits: str) -> Callable[[str], str]:
    """ "train=0.9,validation=0.1" -> a function from a key to its split, by the key's hash.

    A key's split does not depend on other keys. Raises PipelineError unless the shares are numbers in 0..1 with sum 1.
    """
    try:
        shares = {name.strip(): float(share) for name, share in (part.split("=") for part in splits.split(","))}
    except ValueError:
        shares = {}
    if not shares or any(not 0 <= s <= 1 for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise PipelineError(f"--splits={splits} is not a list of shares with sum 1, like train=0.98,validation=0.02.")
    names = list(shares)
    bad = [name for name in names if not name or "/" in name or name.startswith(".")]
    if bad:
        raise PipelineError(f"--splits={splits}: '{bad[0]}' cannot name a split, because its files are named after it.")
    bounds = list(itertools.accumulate(shares.values()))

    def split_of(key: str) -> str:
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
        return next((name for name, bound in zip(names, bounds, strict=True) if place < bound), names[-1])

    return split_of


def read_image(path: Path, shorter_side: int = 0) -> bytes:
    """The file's bytes for a record, after a decode as in training.

    An image whose shorter side is above shorter_side (> 0) becomes a smaller JPEG; any other keeps its bytes.
    Raises RecordError for a file that is not a readable image, OSError for one that cannot be read.
    """
    data = path.read_bytes()
    image = open_image(data, at_least=max(1, shorter_side))
    with Image.open(io.BytesIO(data)) as header:
        shrunk = 0 < shorter_side < min(header.size)
    if not shrunk:
        return data
    scale = shorter_side / min(image.size)
    smaller = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_unreadable(items: list[Item], name: str) -> None:
    """Raises PipelineError unless one of the images can be read. Reads until there is one: most often the first."""
    unread = Skips()
    for item in items:
        try:
            read_image(item.path)
        except (ValueError, OSError) as error:
            unread.add(_cause(error), f"{item.path}: {error}")
        else:
            return
    causes = ", ".join(f"{cause}: {count:,}" for cause, count in unread.counts.items())
    first = next(iter(unread.examples.values()))[0]
    raise PipelineError(f"No image of {name} can be read ({causes}). The first is {first}")


def _cause(error: ValueError | OSError) -> str:
    return error.cause if isinstance(error, RecordError) else "file cannot be read"


def _records(items: list[Item], pair_ids: dict[str, int], shorter_side: int, skips: Skips) -> Iterator[dict]:
    def read(item: Item) -> bytes | ValueError | OSError:
        try:
            return read_image(item.path, shorter_side)
        except (ValueError, OSError) as error:  # RecordError, or a path with a zero byte
            return error

    for item, image in zip(items, thread_map(read, items), strict=True):
        if isinstance(image, bytes):
            pair_id = pair_ids[item.texts[0].lower()]
            yield encode_record(image, item.texts, key=item.key, label=item.label, pair_id=pair_id)
        else:
            skips.add(_cause(image), f"{item.path}: {image}")


def thread_map(function: Callable, items: Iterable) -> Iterator:
    """function(item) of each item, in order, in two threads per core: reading and decoding release Python's lock."""
    threads = 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
