"""Checksums that tell whether checkpoints are as they were written. Damaged ones are set aside, never deleted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import jax
from absl import logging

from clipjax import storage
from clipjax.config import ConfigError
from clipjax.files import write_text
from clipjax.json_files import read_json
from clipjax.processes import gather_json
from clipjax.runs.orbax_buckets import MARKER
from clipjax.runs.steps import (
    CURE,
    ORBAX_METADATA,
    absolute,
    all_but_marked,
    checkpoints_of,
    unfinished,
    whole_steps,
)
from clipjax.runs.stored_files import Stored, digest, move_folder, stored_files

FILE = "checksums.json"
DAMAGED = "damaged_checkpoints"
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


@contextlib.contextmanager
def clear_errors(manager: Any) -> Iterator[None]:
    """Wraps code that waits for a save: raises CheckpointError if the checkpoint could not be written."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        whole = whole_steps(manager.directory)
        raise CheckpointError(
            f"A checkpoint could not be written to {manager.directory}: {_reason(error)}\n"
            f"Earlier checkpoints are intact ({', '.join(map(str, whole)) or 'there is none'}). Make room, or "
            "fix the cause, and run the command again: it continues from the last of them."
        ) from error


def newest_intact(workdir: str | Path) -> tuple[int | None, dict[int, list[str]]]:
    """(the newest intact checkpoint's step, what is wrong with each newer one); None without checkpoints.

    Changes nothing. All processes call it together and share the reading. Raises CheckpointError when there are
    checkpoints but none is intact.
    """
    directory = checkpoints_of(workdir)
    share = jax.process_index(), jax.process_count()
    damaged: dict[int, list[str]] = {}
    for step in reversed(whole_steps(directory)):
        lines = sum(gather_json(damage_of(directory / str(step), share=share)), [])
        if not lines:
            return step, damaged
        damaged[step] = sorted(set(lines))
    if damaged:
        raise CheckpointError(
            f"No checkpoint in {directory} is intact; nothing was changed:\n{_report(damaged)}\n"
            "Put back a copy of one of them, or use a new --workdir."
        )
    if unmarked := gather_json(sorted(map(str, all_but_marked(directory))))[0]:
        raise CheckpointError(f"No checkpoint in {directory} is whole: {unmarked[-1]} has no {MARKER}. {CURE}")
    return None, {}


def set_aside_damaged(workdir: str | Path, found: tuple[int | None, dict[int, list[str]]] | None = None) -> None:
    """Moves damaged checkpoints that are newer than the newest intact one to workdir/damaged_checkpoints.

    All processes call it together, before open_checkpoints, so that a damaged checkpoint is neither restored nor
    counted among those to keep. found: what newest_intact returned, which is called if it is None.
    """
    directory = checkpoints_of(workdir)
    intact, damaged = newest_intact(workdir) if found is None else found
    if not damaged:
        return
    if jax.process_index() == 0:
        report = _report(damaged)
        logging.warning("Damaged checkpoints, moved to %s/%s; going on from %d:\n%s", workdir, DAMAGED, intact, report)
        for step in damaged:
            _move_aside(directory / str(step), absolute(workdir) / DAMAGED)
    gather_json({})  # no process reads the directory before this is done


def damage_of(folder: Any, *, share: tuple[int, int] = (0, 1), items: tuple[str, ...] = ()) -> list[str]:
    """A line for everything that is wrong with a checkpoint.

    items: which items to read, beside meta; (): all. share: see find_damage.
    """
    missing = [f"{folder / item}: missing" for item in ("meta", "params") if not (folder / item).is_dir()]

    def wanted(name: str) -> bool:
        return not items or name.split("/")[0] in ("meta", *items)

    try:
        stamps = read_json(folder / ORBAX_METADATA)
        if isinstance(stamps, dict) and stamps.get("init_timestamp_nsecs") and not stamps.get("commit_timestamp_nsecs"):
            missing.append(f"{folder / ORBAX_METADATA}: says that the checkpoint was never finished")
    except (OSError, ValueError) as error:
        missing.append(f"{folder / ORBAX_METADATA}: cannot be read ({error})")
    return missing or find_damage(folder, wanted=wanted, share=share)


def write_step_checksums(directory: PurePath) -> None:
    """Called when all files of a checkpoint are in place, before the renaming, or the marker, that makes it whole."""
    for folder in unfinished(directory):
        if not (folder / FILE).exists():
            write_checksums(folder, leave_out=(ORBAX_METADATA, MARKER))


def write_checksums(folder: Any, *, leave_out: Collection[str] = ()) -> None:
    """Writes folder/checksums.json: {relative path: {"bytes": n, "sha256": hex}} of the other files in it.

    A row about itself holds a checksum of the other rows, so that damage to the list can be told from damage to files.
    A file whose bucket tells its MD5 has "md5" instead, and is not read. leave_out: files, by their paths in the
    folder, that will still change.
    """
    stored = {name: file for name, file in stored_files(folder).items() if name not in (FILE, *leave_out)}

    def row(name: str) -> dict[str, Any]:
        file = stored[name]
        checksum = {"md5": file.md5} if file.md5 else {"sha256": digest(folder / name, "sha256")}
        return {"bytes": file.bytes, **checksum}

    with ThreadPoolExecutor(THREADS) as pool:
        rows = dict(zip(stored, pool.map(row, stored), strict=True))
    write_text(folder / FILE, json.dumps(rows | {FILE: _row_of_itself(rows)}, indent=1, sort_keys=True))


def find_damage(
    folder: Any, *, wanted: Callable[[str], bool] = lambda name: True, share: tuple[int, int] = (0, 1)
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
    stored = stored_files(folder) if names and storage.is_remote(folder) else None

    def compare(name: str) -> str:
        return _compare(folder / name, expected[name], stored.get(name) if stored is not None else _stat(folder / name))

    with ThreadPoolExecutor(THREADS) as pool:
        lines: Iterable[str] = pool.map(compare, names)
        return [line for line in lines if line]


def checksum_of_items(folder: Any, items: Collection[str]) -> str:
    """The SHA-256 of the checksums of all files of some items of a checkpoint.

    Those in its checksums.json are used; a checkpoint without them is read.
    """
    try:
        rows = read_json(folder / FILE, MAX_LIST)
        found = {name: row.get("sha256") or row["md5"] for name, row in rows.items() if name.split("/")[0] in items}
    except FileNotFoundError:
        names = sorted(name for name in stored_files(folder) if name.split("/")[0] in items)
        found = {name: digest(folder / name, "sha256") for name in names}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    return digest(path, "sha256")


def _stat(path: Path) -> Stored | OSError:
    try:
        return Stored(path.stat().st_size)
    except OSError as error:
        return error


def _compare(path: Any, expected: dict, found: Stored | OSError | None) -> str:
    """What is wrong with a file; "" for nothing. found: what is known without reading it; None: it is not there."""
    if found is None or isinstance(found, OSError):
        return f"{path}: {found.strerror if found else 'missing'}"
    if found.bytes != expected["bytes"]:
        return f"{path}: {found.bytes} bytes, {expected['bytes']} were written"
    kind = "sha256" if "sha256" in expected else "md5"
    if kind == "md5" and found.md5 == expected["md5"]:
        return ""
    try:
        same = digest(path, kind) == expected[kind]
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return "" if same else f"{path}: its {kind.upper().replace('SHA', 'SHA-')} is not the one that was written"


def _reason(error: BaseException) -> str:
    """The system's reason, which TensorStore reports after a line of paths; or a server's, before all its settings."""
    text = re.sub(r" \[tensorstore_spec='.*?'\]", "", " ".join(str(error).split()))
    return text.partition(" [os_error_code")[0].rpartition(": ")[2] if "[os_error_code" in text else text[:300]


def _row_of_itself(others: dict) -> dict:
    text = json.dumps(others, sort_keys=True).encode()
    return {"sha256": hashlib.sha256(text).hexdigest()}


def _report(damaged: dict[int, list[str]]) -> str:
    return "\n".join(f"  {line}" for lines in damaged.values() for line in lines)


def _move_aside(folder: Any, target: Any) -> None:
    """Moves a checkpoint into the folder `target`, under its name or the next one that is free there."""
    if not storage.is_remote(folder):
        target.mkdir(exist_ok=True)
    taken = {path.name for path in target.iterdir()} if target.exists() else set()
    names = [folder.name, *(f"{folder.name}-{i}" for i in range(1, len(taken) + 1))]
    move_folder(folder, target / next(name for name in names if name not in taken))
