"""Checksums that tell whether checkpoints are as they were written. Damaged ones are set aside, never deleted."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from absl import logging

from clipjax.config import ConfigError
from clipjax.files import write_text
from clipjax.json_files import read_json
from clipjax.processes import gather_json

FILE = "checksums.json"
DAMAGED = "damaged_checkpoints"
ORBAX_METADATA = "_CHECKPOINT_METADATA"  # Orbax adds the time of the rename to it, after the checksums were made
MAX_LIST = 1 << 28  # bytes of the list of checksums
THREADS = 4  # hashlib releases the interpreter's lock


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, or does not fit what is asked of it."""


@contextlib.contextmanager
def readable(checkpoint: str) -> Iterator[None]:
    """Whatever fails in the block because a checkpoint without checksums is damaged becomes a CheckpointError."""
    try:
        yield
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # Orbax and TensorStore raise what they meet first
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"Checkpoint {checkpoint} cannot be read ({type(error).__name__}: {reason[:300]}). Put back a copy of it, "
            "or use another with --step."
        ) from error


def newest_intact(workdir: str | Path) -> tuple[int | None, dict[int, list[str]]]:
    """(the newest intact checkpoint's step, what is wrong with each newer one); None without checkpoints.

    Changes nothing. All processes call it together and share the reading. Raises CheckpointError when there are
    checkpoints but none is intact.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    share = jax.process_index(), jax.process_count()
    damaged: dict[int, list[str]] = {}
    for step in sorted((int(path.name) for path in directory.glob("*") if path.name.isdecimal()), reverse=True):
        lines = sum(gather_json(damage_of(directory / str(step), share=share)), [])
        if not lines:
            return step, damaged
        damaged[step] = sorted(set(lines))
    if damaged:
        raise CheckpointError(
            f"No checkpoint in {directory} is intact; nothing was changed:\n{_report(damaged)}\n"
            "Put back a copy of one of them, or use a new --workdir."
        )
    return None, {}


def set_aside_damaged(workdir: str | Path, found: tuple[int | None, dict[int, list[str]]] | None = None) -> None:
    """Moves damaged checkpoints that are newer than the newest intact one to workdir/damaged_checkpoints.

    All processes call it together, before open_checkpoints, so that a damaged checkpoint is neither restored nor
    counted among those to keep. found: what newest_intact returned, which is called if it is None.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    intact, damaged = newest_intact(workdir) if found is None else found
    if not damaged:
        return
    if jax.process_index() == 0:
        report = _report(damaged)
        logging.warning("Damaged checkpoints, moved to %s/%s; going on from %d:\n%s", workdir, DAMAGED, intact, report)
        for step in damaged:
            _move_aside(directory / str(step), Path(workdir) / DAMAGED)
    gather_json({})  # no process reads the directory before this is done


def damage_of(folder: Path, *, share: tuple[int, int] = (0, 1), items: tuple[str, ...] = ()) -> list[str]:
    """A line for everything that is wrong with a checkpoint.

    items: which items to read, beside meta; (): all. share: see find_damage.
    """
    missing = [f"{folder / item}: missing" for item in ("meta", "params") if not (folder / item).is_dir()]

    def wanted(name: str) -> bool:
        return not items or name.split("/")[0] in ("meta", *items)

    try:
        read_json(folder / ORBAX_METADATA)
    except (OSError, ValueError) as error:
        missing.append(f"{folder / ORBAX_METADATA}: cannot be read ({error})")
    return missing or find_damage(folder, wanted=wanted, share=share)


def write_step_checksums(directory: Path) -> None:
    """Called when all files of a checkpoint are in place, before the renaming that makes it appear."""
    for folder in directory.glob("*.orbax-checkpoint-tmp*"):
        write_checksums(folder, leave_out=(ORBAX_METADATA,))


def write_checksums(folder: Path, *, leave_out: Collection[str] = ()) -> None:
    """Writes folder/checksums.json: {relative path: {"bytes": n, "sha256": hex}} of the other files in it.

    A row about itself holds a checksum of the other rows, so that damage to the list can be told from damage to files.
    leave_out: names of files that will still change.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (FILE, *leave_out))
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(sha256, paths)
        rows = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, digests, strict=True)
        }
    write_text(folder / FILE, json.dumps(rows | {FILE: _row_of_itself(rows)}, indent=1, sort_keys=True))


def find_damage(
    folder: Path, *, wanted: Callable[[str], bool] = lambda name: True, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """A line for each file that differs from its checksum; [] for an intact folder, or one without checksums.

    If the checksums themselves are damaged, that is the only line: what they say about other files cannot be trusted.

    wanted: which relative paths to check. share: (i, n): every nth of them from the ith on, to divide the reading.
    """
    try:
        expected = read_json(folder / FILE, MAX_LIST)
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        return [f"{folder / FILE}: cannot be read ({error})"]
    if not isinstance(expected, dict) or not all(isinstance(row, dict) for row in expected.values()):
        return [f"{folder / FILE}: it is no list of files and their checksums"]
    own = expected.pop(FILE, None)
    # Checkpoints from before the row existed are accepted without it.
    of_before = own is None and all(row.keys() == {"bytes", "sha256"} for row in expected.values())
    if own != _row_of_itself(expected) and not of_before:
        return [f"{folder / FILE}: its rows are not those that were written"]
    names = sorted(name for name in expected if wanted(name))[share[0] :: share[1]]
    with ThreadPoolExecutor(THREADS) as pool:
        lines: Iterable[str] = pool.map(lambda name: _compare(folder / name, expected[name]), names)
        return [line for line in lines if line]


def checksum_of_items(folder: Path, items: Collection[str]) -> str:
    """The SHA-256 of the checksums of all files of some items of a checkpoint.

    Those in its checksums.json are used; a checkpoint without them is read.
    """
    try:
        rows = read_json(folder / FILE, MAX_LIST)
        found = {name: row["sha256"] for name, row in rows.items() if name.split("/")[0] in items}
    except FileNotFoundError:
        paths = sorted(path for item in items for path in (folder / item).rglob("*") if path.is_file())
        found = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _report(damaged: dict[int, list[str]]) -> str:
    return "\n".join(f"  {line}" for lines in damaged.values() for line in lines)


def _move_aside(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    taken = {path.name for path in target.iterdir()}
    names = [folder.name, *(f"{folder.name}-{i}" for i in range(1, len(taken) + 1))]
    folder.rename(target / next(name for name in names if name not in taken))
