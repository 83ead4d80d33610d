"""Are a run's checkpoints as they were written? Those that are not are put aside, never deleted."""

from __future__ import annotations

import json
from pathlib import Path

import jax
from absl import logging

from clipjax.checksums import find_damage, write_checksums
from clipjax.peers import gather_json

ORBAX_METADATA = "_CHECKPOINT_METADATA"  # the time of the renaming is written into it
DAMAGED = "damaged_checkpoints"


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or does not fit what is asked of it."""


def set_aside_damaged(workdir: str | Path) -> None:
    """Moves what is damaged and newer than the newest intact checkpoint to workdir/damaged_checkpoints.

    Collective, and before open_checkpoints: a damaged one must be neither restored nor counted among those kept. The
    processes share the reading. Raises CheckpointError, and moves nothing, when there are checkpoints and none is
    intact.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    share = jax.process_index(), jax.process_count()
    steps = sorted((int(path.name) for path in directory.glob("*") if path.name.isdigit()), reverse=True)
    damaged: dict[int, list[str]] = {}
    for step in steps:
        lines = sum(gather_json(damage_of(directory / str(step), share=share)), [])
        if not lines:
            break
        damaged[step] = sorted(set(lines))
    if not damaged:
        return
    found = "\n".join(f"  {line}" for lines in damaged.values() for line in lines)
    if len(damaged) == len(steps):
        raise CheckpointError(
            f"No checkpoint in {directory} is intact; nothing was changed:\n{found}\n"
            "Put back a copy of one of them, or use a new --workdir."
        )
    if jax.process_index() == 0:
        intact = max(set(steps) - damaged.keys())
        logging.warning("Damaged checkpoints, moved to %s/%s; going on from %d:\n%s", workdir, DAMAGED, intact, found)
        for step in damaged:
            _move_aside(directory / str(step), Path(workdir) / DAMAGED)
    gather_json({})  # nobody looks into the directory before it is done


def write_step_checksums(directory: Path) -> None:
    """Called when all files of a checkpoint are in place, before the renaming that makes them appear."""
    for folder in directory.glob("*.orbax-checkpoint-tmp*"):
        write_checksums(folder, leave_out=(ORBAX_METADATA,))


def damage_of(folder: Path, *, share: tuple[int, int] = (0, 1), items: tuple[str, ...] = ()) -> list[str]:
    """A line for everything wrong with a checkpoint. items: those to be read beside meta; (): all."""
    missing = [f"{folder / item}: missing" for item in ("meta", "params") if not (folder / item).is_dir()]

    def wanted(name: str) -> bool:
        return not items or name.split("/")[0] in ("meta", *items)

    try:
        json.loads((folder / ORBAX_METADATA).read_text())
    except (OSError, ValueError) as error:
        missing.append(f"{folder / ORBAX_METADATA}: cannot be read ({error})")
    return missing or find_damage(folder, wanted=wanted, share=share)


def _move_aside(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    taken = {path.name for path in target.iterdir()}
    names = [folder.name, *(f"{folder.name}-{i}" for i in range(1, len(taken) + 1))]
    folder.rename(target / next(name for name in names if name not in taken))
