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

    Its row for itself is about the other rows, as JSON: damage to it is told from damage to what it lists.
    leave_out: names of files that will still change.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (FILE, *leave_out))
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(sha256, paths)
        found = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, digests, strict=True)
        }
    write_text(folder / FILE, json.dumps(found | {FILE: _row_of_itself(found)}, indent=1, sort_keys=True))


def find_damage(
    folder: Path, *, wanted: Callable[[str], bool] = lambda name: True, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """A line for each file that is not as write_checksums found it; [] for an intact folder or one without checksums.

    Checksums that are damaged themselves are the only line: what they say of the others is not to be believed.

    wanted: the relative paths to look at. share: (i, n), every nth of them from the ith on, to divide the reading.
    """
    try:
        expected = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        return [f"{folder / FILE}: cannot be read ({error})"]
    own = expected.pop(FILE, None)
    of_before = own is None and all(row.keys() == {"bytes", "sha256"} for row in expected.values())
    if own != _row_of_itself(expected) and not of_before:
        return [f"{folder / FILE}: its rows are not those that were written"]
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


def _row_of_itself(others: dict) -> dict:
    text = json.dumps(others, sort_keys=True).encode()
    return {"sha256": hashlib.sha256(text).hexdigest()}


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
