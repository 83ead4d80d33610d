"""Is a folder as it was written? A SHA-256 of every file, beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipjax.atomic import write_text

FILE = "checksums.json"
THREADS = 4  # hashlib lets go of the interpreter's lock


def write_checksums(folder: Path, *, leave_out: Collection[str] = ()) -> None:
    """Writes folder/checksums.json: {relative path: {"bytes": n, "sha256": hex}} of the other files in it.

    leave_out: names of files that will still change.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (FILE, *leave_out))
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(sha256, paths)
        found = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, digests, strict=True)
        }
    write_text(folder / FILE, json.dumps(found, indent=1, sort_keys=True))


def find_damage(
    folder: Path, *, wanted: Callable[[str], bool] = lambda name: True, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """A line for each file that is not as write_checksums found it; [] for an intact folder or one without checksums.

    wanted: the relative paths to look at. share: (i, n), every nth of them from the ith on, to divide the reading.
    """
    try:
        expected = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        return [f"{folder / FILE}: cannot be read ({error})"]
    names = sorted(name for name in expected if wanted(name))[share[0] :: share[1]]
    with ThreadPoolExecutor(THREADS) as pool:
        lines: Iterable[str] = pool.map(lambda name: _compare(folder / name, expected[name]), names)
        return [line for line in lines if line]


def _compare(path: Path, expected: dict) -> str:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path}: {size} bytes, {expected['bytes']} were written"
        return "" if sha256(path) == expected["sha256"] else f"{path}: its SHA-256 is not the one that was written"
    except OSError as error:
        return f"{path}: {error.strerror}"


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
