"""What is odd about the tars of a source: reported once at each start, or refused."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

from clipjax.data.records import ManifestError
from clipjax.data.sources.bucket_files import BucketFiles
from clipjax.data.sources.tar_format import TarError, printable
from clipjax.data.sources.tar_index import TarIndex, key_at

MAX_ZEROS = 1 << 20  # bytes after the end mark; tar fills its last record, by default of 10 KiB
MAX_APART = 0.01  # of the keys of all tars

Tars = Sequence[tuple[str, TarIndex]]


def tell(path: str, files: Sequence[str], indexes: Sequence[TarIndex], bucket: BucketFiles | None = None) -> None:
    """One warning for each kind of finding, with the first tar that has it. path: the source's; bucket: reads it.

    Raises ManifestError where more than MAX_APART of the keys have their files apart: such tars are unsorted.
    """
    tars = list(zip(files, indexes, strict=True))

    def having(test: Callable[[TarIndex], bool]) -> Tars:
        return [(file, index) for file, index in tars if test(index)]

    refused = sum(index.refused for index in indexes)
    if refused:
        worst = max(tars, key=lambda pair: pair[1].refused)[0]
        logging.warning(
            "%d files in the tars of %s are not read: links, devices, or names that climb out of the folder. Most "
            "of them are in %s.", refused, path, worst,
        )  # fmt: skip
    if some := having(lambda index: index.joined > 0):
        file, index = some[0]
        _warn(some, "%s is %d archives joined into one file, and all of them are read; the second one begins at byte "
              "%d.", file, index.joined + 1, index.joined_at)  # fmt: skip
    if some := having(lambda index: index.garbage >= 0):
        _warn(some, "%s continues after its end mark: what follows byte %d is neither zeros nor a tar, and is not "
              "read.", some[0][0], some[0][1].garbage)  # fmt: skip
    if some := having(lambda index: index.zeros == 0):
        _warn(some, "%s has no end mark: it may have been cut between two files.", some[0][0])
    if some := having(lambda index: index.zeros > MAX_ZEROS):
        _warn(some, "%s ends in %d bytes of zeros: it may not have been copied completely.",
              some[0][0], some[0][1].zeros)  # fmt: skip
    if some := having(lambda index: not len(index.keys)):
        _warn(some, "%s has no samples.", some[0][0])
    if some := having(lambda index: index.apart > 0):
        message = _unsorted(some, bucket)
        if sum(index.apart for _, index in some) > MAX_APART * sum(len(index.keys) for index in indexes):
            raise ManifestError(message)
        logging.warning("%s", message)


def refuse_cut(files: Sequence[str], indexes: Sequence[TarIndex]) -> None:
    """Raises ManifestError for tars without an end mark: a published set is refused where it may be cut."""
    if cut := [file for file, index in zip(files, indexes, strict=True) if index.zeros == 0]:
        more = f" The same is true of {len(cut) - 1} other tars." if len(cut) > 1 else ""
        raise ManifestError(f"{cut[0]} is cut: it has no end mark. Copy it again.{more}")


def _warn(tars: Tars, text: str, *values: object) -> None:
    more = f" The same is true of {len(tars) - 1} other tars." if len(tars) > 1 else ""
    logging.warning(text + "%s", *values, more)


def _unsorted(tars: Tars, bucket: BucketFiles | None) -> str:
    file, index = max(tars, key=lambda pair: pair[1].apart)
    spans = index.spans.tolist()
    (start, end), (other, _) = spans[index.apart_first], spans[index.apart_second]
    try:
        with bucket.stream(file) if bucket else open(file, "rb") as opened:
            key = printable(key_at(opened, start, end) or "")
    except (OSError, TarError):
        key = ""
    others = f" {len(tars) - 1} other tars are unsorted, too." if len(tars) > 1 else ""
    copied = Path(file).name if bucket else file  # of a tar in a bucket, a copy is sorted
    name, folder = shlex.quote(copied), shlex.quote(f"{Path(file).name}.files")
    return (
        f"{file} is not sorted: the files of {index.apart:,} of its keys do not follow one another, so that images and "
        f"captions are apart. The first is '{key}', with files at byte {start} and at byte {other}.{others} Sort it:\n"
        f"    mkdir {folder} && tar -xif {name} -C {folder}\n"
        f"    tar --sort=name -cf {shlex.quote(f'sorted-{Path(file).name}')} -C {folder} ."
    )
