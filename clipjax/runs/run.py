"""open_run: one checkpoint of a run, opened to read from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from clipjax import storage
from clipjax.config import ExperimentConfig
from clipjax.json_files import read_json_object
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs import lock
from clipjax.runs.bad_records_log import add_causes
from clipjax.runs.best import best_of
from clipjax.runs.integrity import CheckpointError, checksum_of_items, damage_of
from clipjax.runs.steps import ORBAX_METADATA, absolute, checkpoints_of, is_whole, unfinished
from clipjax.training.state import TrainState

PUBLISHED = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".h5", ".msgpack")  # how files of weights are called


@contextlib.contextmanager
def open_run(workdir: str | Path, step: str | int = "latest") -> Iterator[Run]:
    """One checkpoint of a training run or of an imported directory, read-only.

        with open_run("runs/emoji", "best") as run:
            print(run.step, run.config.loss)
            variables = run.variables(mesh)

    step: "latest", "best" (by the run's own config.checkpoint.best_metric) or a number such as 1200 or "1200". The
    weights' checksums are verified here. Raises CheckpointError, which lists the steps that exist, where there is no
    such checkpoint or its weights are damaged.
    """
    workdir = storage.as_path(workdir)
    directory = checkpoints_of(workdir)
    if not directory.is_dir():
        raise CheckpointError(
            f"{workdir} holds no checkpoints: expected the folder {directory}. "
            "--checkpoint takes the --workdir of a training run." + hint(workdir)
        )
    storage.check_whole(workdir)
    with checkpoints.open_read_only(directory) as manager:
        number = _choose(manager, directory, str(step))
        with _not_vanishing(directory / str(number)):
            meta = checkpoints.read_meta(manager, number)
        yield Run(workdir, number, meta.config, meta.fingerprint, meta.data_states, manager)


class VanishedError(CheckpointError):
    """A checkpoint was removed while it was read: by its run, which keeps the last ones, or by somebody else."""


@contextlib.contextmanager
def _not_vanishing(folder: Path) -> Iterator[None]:
    """Raises VanishedError for whatever fails in the block because a checkpoint is no longer there."""
    try:
        yield
    except Exception as error:  # while a checkpoint is being removed, Orbax raises whatever it meets first
        if is_whole(folder):
            raise
        raise VanishedError(
            f"Checkpoint {folder} was removed while it was being read: a running run keeps its last "
            "config.checkpoint.keep_last checkpoints and the best ones. Run the command again, without --step for the "
            "newest one."
        ) from error


@dataclass(frozen=True)
class Run:
    """An open checkpoint; its arrays can be read until the `with` block ends."""

    directory: Path  # the workdir, as it was given
    step: int
    config: ExperimentConfig
    fingerprint: dict[str, Any]
    data_states: list[dict[str, Any]]  # the data iterator's state in each process; [] for weights without training
    _manager: ocp.CheckpointManager = field(repr=False)

    @property
    def bad_causes(self) -> dict[str, int]:
        """{cause: records replaced} over all processes, up to this step."""
        return add_causes(state["bad"] for state in self.data_states)

    def variables(self, mesh: Mesh, *, average: bool = True) -> dict[str, Any]:
        """{"params", "batch_stats"} to evaluate with, on any mesh: the averages where the run kept them.

        average: False for the parameters of the step itself.
        """
        with self._there():
            return checkpoints.restore_variables(self._manager, self.step, self.config, mesh, average=average)

    def variables_with_adapters(self, mesh: Mesh, *, average: bool = True) -> dict[str, Any]:
        """As `variables`, with the adapters of config.lora in "lora" (training/lora.py) instead of added."""
        with self._there():
            return checkpoints.restore_with_adapters(self._manager, self.step, self.config, mesh, average=average)

    def weights_sha256(self, *, average: bool = True) -> str:
        """A checksum of the files of the weights that `variables` reads."""
        with self._there():
            return checksum_of_weights(self._folder, self.config, average=average)

    def state(self, mesh: Mesh) -> TrainState:
        """The whole training state, on any mesh. Raises CheckpointError for weights without training state."""
        with self._there():
            checkpoints.refuse_weights_alone(self._manager, self.step)
            return checkpoints.restore(self._manager, self.step, self.config, mesh)

    @property
    def _folder(self) -> Path:
        return checkpoints_of(self.directory) / str(self.step)

    def _there(self) -> contextlib.AbstractContextManager[None]:
        return _not_vanishing(self._folder)


def checksum_of_weights(folder: Path, config: ExperimentConfig, *, average: bool) -> str:
    """A checksum of the files of a checkpoint's weights; see integrity.checksum_of_items."""
    prefix = "ema_" if average and config.optimizer.ema_decay > 0 else ""
    return checksum_of_items(folder, (f"{prefix}params", f"{prefix}batch_stats"))


def hint(path: Path, option: str = "--step") -> str:
    """What a path that is not a run's folder seems to be, and what to name instead; "" where nothing is known.

    option: what chooses a step where the path was given.
    """
    if not path.exists():
        return f" {path} does not exist."
    if is_checkpoint(path):
        step = f", with {option}={path.name}" if path.name.isdecimal() else ""
        return f" {path} is one checkpoint of a run: name the run's folder {absolute(path).parent.parent}{step}."
    if any(is_checkpoint(inside) for inside in path.glob("*")):
        return f" {path} is a run's folder of checkpoints: name the run's folder {absolute(path).parent}."
    files = [path] if path.is_file() else path.glob("*")
    if any(file.suffix in PUBLISHED for file in files):
        return f" {path} seems to be published weights: import it with clipjax import, and name the new directory."
    return ""


def refuse_as_workdir(workdir: str | Path) -> None:
    """Raises CheckpointError for a checkpoint, a run's folder of checkpoints, and a new folder anywhere in a run."""
    path = storage.as_path(workdir)
    if is_inside_run(path):
        raise CheckpointError(f"--workdir={workdir} is inside a run.{hint(path)}")
    # In a bucket, a run may be allowed to list no folder but its own.
    above = None if storage.is_remote(path) or _is_run(path) else next(filter(_is_run, path.resolve().parents), None)
    if above is not None:
        raise CheckpointError(
            f"--workdir={workdir} is inside the run {above}; expected a folder outside other runs, which are moved and "
            f"removed as a whole. Use for example --workdir={above.parent / path.name}."
        )
    inside = path / "checkpoints"
    if inside.exists() and not inside.is_dir():
        raise CheckpointError(f"--workdir={workdir}: {inside} is a file, but a run keeps its checkpoints in a folder.")


def _is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder, or it holds checkpoints of clipjax.

    A lock alone may be that of a run that was refused; folders called checkpoints may belong to other programs.
    """
    try:
        if (folder / lock.FILE).is_file() and (folder / "config.json").is_file():
            return True
        steps = [path for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]
        return any((path / "meta").is_dir() and (path / "params").is_dir() for path in steps)
    except PermissionError:  # the folders above may be other people's
        return False


def is_workdir(folder: Path) -> bool:
    """Whether a folder's config.json is that of a run or of an import, with or without checkpoints beside it."""
    return {"model", "data", "tokenizer", "optimizer"} <= read_json_object(folder / "config.json").keys()


def is_inside_run(path: Path) -> bool:
    """Whether a folder is a run's folder of checkpoints, or one of them."""
    return is_checkpoint(path) or (path.name == "checkpoints" and any(map(is_checkpoint, path.glob("*"))))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is one checkpoint, of clipjax or of another program that uses Orbax."""
    return (path / ORBAX_METADATA).is_file() or ((path / "meta").is_dir() and (path / "params").is_dir())


def _choose(manager: ocp.CheckpointManager, directory: Path, step: str) -> int:
    steps = sorted(manager.all_steps())
    chosen = None
    if step == "latest" and steps:
        chosen = steps[-1]
    elif step == "best" and steps:
        chosen = _best_step(manager, steps)
    elif step.isdecimal():
        chosen = int(step)
    if not steps:
        more = [folder.name for folder in unfinished(directory)]
        begun = f" It has begun {', '.join(sorted(more))}, which is not finished." if more else ""
        raise CheckpointError(f"{directory} is empty: the run has saved no checkpoint.{begun}")
    if chosen not in steps:
        raise CheckpointError(
            f"{directory} has no checkpoint '{step}'; it has the steps {steps}. "
            "--step takes one of them, 'latest', or 'best' (with config.checkpoint.best_metric)."
        )
    with _not_vanishing(directory / str(chosen)):
        if damage := damage_of(directory / str(chosen), items=checkpoints.WEIGHTS):
            raise CheckpointError(
                f"Checkpoint {directory / str(chosen)} is damaged:\n"
                + "".join(f"  {line}\n" for line in damage)
                + f"Use another with --step ({directory} has {steps}), or put back a copy of it."
            )
    return chosen


def _best_step(manager: ocp.CheckpointManager, steps: list[int]) -> int | None:
    best = checkpoints.read_meta(manager, steps[-1]).config.checkpoint.best_metric
    return best_of({step: (manager.metrics(step) or {}).get(best) for step in steps}, best)
