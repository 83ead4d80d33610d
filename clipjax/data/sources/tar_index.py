"""Where the samples of a tar lie: one pass over its headers makes an index, which is kept beside it.

A sample is a run of files with one key, which is the name up to the first dot of its last part (WebDataset's rule).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from absl import logging

from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.records import ManifestError
from clipjax.data.sources.bucket_files import WINDOW, BucketFiles
from clipjax.data.sources.tar_format import Ending, TarError, allowed, members, split_name
from clipjax.files import replacing
from clipjax.storage import AnyPath, as_path, is_remote
from clipjax.storage.data_cache import cache_folder

VERSION = 2
_HEAD = 4  # rows of the saved table before those of the samples
_IMAGES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


class TarIndex(NamedTuple):
    spans: np.ndarray  # [N, 2] int64: first and last byte + 1 of each sample, headers included
    keys: np.ndarray  # [N] int64: key_hash of each sample's key
    refused: int = 0  # files left out: links, devices, names that climb out of the folder
    joined: int = 0  # archives that follow the first one in the file
    joined_at: int = -1  # where the second one begins
    zeros: int = 0  # bytes of zeros after the last member; 0: no end mark
    garbage: int = -1  # where bytes begin that follow the end mark and are no tar; -1: none
    apart: int = 0  # keys whose files do not follow one another
    apart_first: int = -1  # the first such sample ...
    apart_second: int = -1  # ... and another one with its key


def load_index(path: str, folder: str = "", bucket: BucketFiles | None = None) -> TarIndex:
    """The index of a tar; made and saved if there is none for the file's present size, time and samples.

    folder: where the index is kept; "": beside the tar, or, of a tar in a bucket, in the cache's folder. Where it
    cannot be written, it is made again at each start. bucket: reads the tar, if it is in a bucket.
    Raises ManifestError naming the file, and the byte where it is cut or damaged.
    """
    saved = index_path(path, folder)
    try:
        state = bucket.state(path) if bucket else _state(path)
        found = _read(saved)
        if found is not None:
            index, of_state = found
            if of_state != state:
                logging.info("%s has changed since it was indexed: it is indexed again.", path)
            elif bucket or _has_its_samples(path, index):  # the state of an object names one version of it
                return index
            else:
                logging.warning(
                    "%s has other samples than its index %s, although its size and time are the same: it is "
                    "indexed again.", path, saved,
                )  # fmt: skip
        with bucket.stream(path, WINDOW) if bucket else open(path, "rb") as file:
            index = index_tar(file)
        if not bucket and _state(path)[0] != state[0]:
            raise TarError("its size changed while it was indexed. Wait until it is written or copied completely")
    except (OSError, TarError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    try:
        with replacing(saved) as temporary:
            np.save(temporary, _table(index, state))
    except OSError as error:
        logging.log_first_n(
            logging.WARNING,
            "Indexes cannot be kept in %s (%s): they are made again at each start. Set the source's data_dir to a "
            "folder that can be written.", 1, saved.parent, error,
        )  # fmt: skip
    return index


def index_tar(file: BinaryIO) -> TarIndex:
    """One pass over the headers of a tar. Raises TarError."""
    spans: list[list[int]] = []
    keys: list[int] = []
    kinds: list[set[str]] = []  # extensions of each sample
    known: dict[frozenset[str], frozenset[str]] = {}  # most samples have the same
    refused, joined, joined_at, current, ending = 0, 0, -1, None, Ending()
    for member in members(file, file.seek(0, os.SEEK_END), ending=ending):
        if member.part > joined:
            joined_at = member.header if joined_at < 0 else joined_at
            joined, current = member.part, None
        if member.kind == b"5":
            continue
        if not allowed(member):
            refused += 1
            continue
        parts = split_name(member.name)
        if parts is None:
            continue
        key, extension = parts
        if key == current:
            spans[-1][1] = member.data + member.size
            kinds[-1].add(extension)
            continue
        if kinds:
            kinds[-1] = known.setdefault(frozenset(kinds[-1]), frozenset(kinds[-1]))
        spans.append([member.header, member.data + member.size])
        keys.append(key_hash(key))
        kinds.append({extension})
        current = key
    table, hashes = np.array(spans, np.int64).reshape(-1, 2), np.array(keys, np.int64)
    apart = _files_apart(hashes, kinds)
    return TarIndex(table, hashes, refused, joined, joined_at, ending.zeros, ending.garbage, *apart)


def key_hash(key: str) -> int:
    """A number from 0 to 2^63 - 1 that tells keys apart."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def key_at(file: BinaryIO, start: int, end: int) -> str | None:
    """The key of the sample in bytes start..end of a tar; None: it has none. Raises TarError."""
    for member in members(file, end, start):
        parts = split_name(member.name) if member.kind != b"5" and allowed(member) else None
        if parts:
            return parts[0]
    return None


def index_path(path: str, folder: str = "") -> AnyPath:
    """Where load_index keeps the index of a tar."""
    remote = is_remote(path)
    if not folder and not remote:
        return Path(f"{path}.clipjax-index.npy")
    whole = path if remote else os.path.abspath(path)
    name = f"{path.rpartition('/')[2]}.{hashlib.sha256(whole.encode()).hexdigest()[:16]}.clipjax-index.npy"
    return (as_path(folder) if folder else cache_folder() / "indexes") / name


def _files_apart(keys: np.ndarray, kinds: Sequence[set[str]]) -> tuple[int, int, int]:
    """(number of keys whose files are apart, first such sample, another with its key).

    A key that appears again is a duplicate where each sample of it has an image: then nothing is apart.
    """
    order = np.argsort(keys, kind="stable")
    new = np.diff(keys[order], prepend=keys[order][:1] - 1) != 0
    groups = np.split(order, np.flatnonzero(new)[1:]) if not new.all() else []
    found = []
    for group in (group for group in groups if len(group) > 1):
        own = [kinds[number] for number in group]
        images = [bool(kind & _IMAGES) for kind in own]
        # With an image_key of the user's own, no sample seems to have one.
        disjoint = not any(images) and sum(map(len, own)) == len(set().union(*own))
        if any(images) != all(images) or disjoint:
            found.append((int(group[0]), int(group[1])))
    return (len(found), *min(found)) if found else (0, -1, -1)


def _has_its_samples(path: str, index: TarIndex) -> bool:
    """Whether three samples are where the index says. A tar may be replaced by one of the same size and time."""
    count = len(index.keys)
    with open(path, "rb") as file:
        for number in sorted({0, count // 2, count - 1}) if count else ():
            start, end = index.spans[number].tolist()
            try:
                key = key_at(file, start, end)
            except TarError:
                return False
            if key is None or key_hash(key) != index.keys[number]:
                return False
    return True


def _state(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _table(index: TarIndex, state: tuple[int, int]) -> np.ndarray:
    """[_HEAD + N, 3] int64: what is known of the tar, then span and key of each sample."""
    head = [VERSION, len(index.keys), *state, *index[2:]]
    head += [0] * (3 * _HEAD - len(head))
    return np.concatenate([np.array(head, np.int64).reshape(_HEAD, 3), np.column_stack([index.spans, index.keys])])


def _read(saved: Path) -> tuple[TarIndex, tuple[int, int]] | None:
    """(index, size and time of its tar); None where there is none, or one that is damaged or of another version."""
    try:
        table = np.load(io.BytesIO(saved.read_bytes()), allow_pickle=False)
    except Exception:  # NumPy raises many kinds for a damaged file, MemoryError included
        return None
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1:] != (3,) or len(table) < _HEAD:
        return None
    head, samples = table[:_HEAD].reshape(-1).tolist(), table[_HEAD:]
    version, count, size, time = head[:4]
    if version != VERSION or count != len(samples):
        return None
    spans, keys = samples[:, :2], samples[:, 2]
    ends = np.concatenate([[0], spans.reshape(-1)])
    index = TarIndex(spans, keys, *head[4 : 4 + len(TarIndex._fields) - 2])
    sound = (np.diff(ends) >= 0).all() and ends[-1] <= size and max(index.apart_first, index.apart_second) < count
    return (index, (size, time)) if sound else None
