"""Checkpoints: one Orbax step directory, written atomically, holds everything a run or an evaluation needs.

    workdir/checkpoints/1200/params           the towers, logit_scale, logit_bias
                             ema_params       their averages, if the run keeps them
                             batch_stats      BatchNorm's running statistics, for towers that have them
                             ema_batch_stats  the averages of those
                             train            optimizer state, step, PRNG key, counts of skipped steps
                             meta             JSON: config, fingerprint, data state of every process
                             checksums.json   size and SHA-256 of all files above

Orbax writes under a temporary name and renames the directory when every process has finished, so a directory whose
name is a plain number was complete; in a bucket, one that has commit_success.txt (clipjax/runs/orbax_buckets.py). The
checksums tell whether it still is: a training run skips damaged checkpoints, moves them to workdir/damaged_checkpoints
and continues from the newest intact one. Nothing is deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from logging import LogRecord
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Mesh

from clipjax.config import CheckpointConfig, ExperimentConfig, from_json_dict, to_json_dict
from clipjax.processes import gather_json
from clipjax.runs.best import options_of_best
from clipjax.runs.fingerprint import completed
from clipjax.runs.integrity import CheckpointError, clear_errors, readable, write_step_checksums
from clipjax.runs.lock import RunLockError
from clipjax.runs.orbax_buckets import bucket_options
from clipjax.runs.own_files import as_given, located
from clipjax.runs.shapes import check_shapes
from clipjax.runs.steps import checkpoints_of, remove_unfinished
from clipjax.training.lora import merged
from clipjax.training.state import TrainState, abstract_state

OPTIONAL_ITEMS = ("ema_params", "batch_stats", "ema_batch_stats")
WEIGHTS = ("params", *OPTIONAL_ITEMS)  # everything except the training state
FORMAT = "clipjax-checkpoint/1"


class Meta(NamedTuple):
    """A checkpoint's JSON."""

    config: ExperimentConfig  # with paths that can be opened from here, see clipjax.runs.own_files
    fingerprint: dict[str, Any]
    data_states: list[dict[str, Any]]  # of every process that wrote it; [] for weights without training
    given: ExperimentConfig  # config, with the paths that the run was started with


@contextlib.contextmanager
def open_checkpoints(
    workdir: str | Path, config: CheckpointConfig, *, before_whole: Callable[[], None] = lambda: None
) -> Iterator[ocp.CheckpointManager]:
    """The manager of workdir/checkpoints, to write to. It saves in the background and finishes on leaving the block.

    before_whole: called on the first process, in the background, just before a checkpoint becomes whole.
    """
    directory = checkpoints_of(workdir)

    def finish() -> None:
        before_whole()
        write_step_checksums(directory)

    if jax.process_index() == 0:
        remove_unfinished(directory)
    options = ocp.CheckpointManagerOptions(
        **options_of_best(config),
        **bucket_options(directory, cleanup=True),
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=finish),
    )
    manager = _make_manager(directory, options)
    try:
        yield manager
    except BaseException as error:
        # With several processes, closing would wait for others, which will not come, to finish the checkpoint. After a
        # failed write it would wait for minutes, and might write into a folder that was removed.
        if jax.process_count() == 1 and not isinstance(error, OSError | CheckpointError | RunLockError):
            with contextlib.suppress(Exception):  # report the first error, not this one
                manager.close()
        raise
    with clear_errors(manager):
        manager.close()


@contextlib.contextmanager
def open_read_only(directory: str | Path) -> Iterator[ocp.CheckpointManager]:
    """The manager of a folder of checkpoints, to read from. Raises CheckpointError where Orbax cannot open it."""
    options = ocp.CheckpointManagerOptions(**bucket_options(directory, cleanup=False), read_only=True)
    try:
        manager = _make_manager(directory, options)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"The checkpoints in {directory} cannot be read ({type(error).__name__}: {error!s:.200}): the "
            "_CHECKPOINT_METADATA of one is damaged. Put back a copy of it, or move that checkpoint away."
        ) from error
    with contextlib.closing(manager):
        yield manager


def _make_manager(directory: str | Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    # Orbax warns about options that are set on purpose, such as read_only, and its errors are raised here as well.
    logging.get_absl_logger().addFilter(_worth_showing)
    return ocp.CheckpointManager(directory, options=options, handler_registry=handler_registry())


def _worth_showing(record: LogRecord) -> bool:
    """Whether a message is not Orbax's, or announces what a later Orbax will not have."""
    return "/orbax/" not in record.pathname or "deprecat" in record.getMessage().lower()


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    *,
    data_state: dict,
    config: ExperimentConfig,
    fingerprint: dict,
    metrics: dict[str, float] | None = None,
    paths: Mapping[str, Any] | None = None,
) -> None:
    """Starts writing the checkpoint of state.step. Returns once the arrays have been copied off the devices.

    data_state: the state of this process's training iterator, JSON-able.
    metrics: the evaluation results of this step, if it was evaluated; keep_best compares them.
    paths: how to read config's paths, of clipjax.runs.own_files.Kept; None: as they are.
    """
    step = int(state.step)
    meta = {
        "format": FORMAT,
        "config": to_json_dict(config),
        "fingerprint": fingerprint,
        "data_states": gather_json(data_state),
    }
    meta |= {"paths": dict(paths)} if paths else {}
    items = {
        "params": ocp.args.StandardSave(state.params),
        "train": ocp.args.StandardSave(_train_item(state)),
        "meta": ocp.args.JsonSave(meta),
    }
    items |= {name: ocp.args.StandardSave(tree) for name, tree in _optional_items(state).items()}
    with clear_errors(manager):
        manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)


def save_weights(
    workdir: str | Path, variables: dict, *, config: ExperimentConfig, fingerprint: dict, own_tokenizer: bool = False
) -> None:
    """Writes step 0 with weights alone: it can be evaluated, teach or start a run, but no run can resume from it.

    variables: {"params", "batch_stats"}. own_tokenizer: config.tokenizer.path is relative to workdir, so that workdir
    may be moved.
    """
    meta = {"format": FORMAT, "config": to_json_dict(config), "fingerprint": fingerprint}
    meta |= {"own_tokenizer": True} if own_tokenizer else {}
    items = {name: ocp.args.StandardSave(tree) for name, tree in variables.items() if tree}
    with open_checkpoints(workdir, config.checkpoint) as manager:
        manager.save(0, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True)


def refuse_weights_alone(manager: ocp.CheckpointManager, step: int) -> None:
    """Raises CheckpointError for a checkpoint that training cannot resume from."""
    metadata = manager.item_metadata(step)
    if "train" not in metadata.keys() or metadata["train"] is None:
        raise CheckpointError(
            f"{manager.directory}/{step} holds weights but no training state. To train from them, use another "
            f"--workdir and --config.init_from={manager.directory.parent}."
        )


def restore(manager: ocp.CheckpointManager, step: int, config: ExperimentConfig, mesh: Mesh) -> TrainState:
    """The training state, on the CURRENT mesh.

    Raises CheckpointError listing the parameters whose shapes differ from config's.
    """
    target = abstract_state(config, mesh)
    restored = _restore_items(manager, step, _all_items(target))
    return target.replace(**restored.pop("train"), **restored)


def check_fits(manager: ocp.CheckpointManager, step: int, config: ExperimentConfig, mesh: Mesh) -> None:
    """Raises CheckpointError unless the checkpoint's arrays have the shapes that `restore` needs; reads no array."""
    _check_items(manager, step, _all_items(abstract_state(config, mesh)))


def restore_variables(
    manager: ocp.CheckpointManager, step: int, config: ExperimentConfig, mesh: Mesh, *, average: bool = True
) -> dict:
    """{"params", "batch_stats"} to evaluate with, on any mesh.

    average: the averages if the run kept them; False: the parameters of the step itself. Only these are read. A run's
    adapters are merged into them.
    Raises CheckpointError listing the parameters whose shapes differ from config's.
    """
    variables = restore_with_adapters(manager, step, config, mesh, average=average)
    return variables | {"params": merged(variables["params"])}


def restore_with_adapters(
    manager: ocp.CheckpointManager, step: int, config: ExperimentConfig, mesh: Mesh, *, average: bool = True
) -> dict:
    """As restore_variables, with a run's adapters beside the matrices, in "lora", and not in them."""
    prefix = "ema_" if average and config.optimizer.ema_decay > 0 else ""
    state = abstract_state(config, mesh)
    names = {name: f"{prefix}{name}" for name in ("params", "batch_stats")}
    stored = {name: getattr(state, name) for name in names.values()}
    restored = _restore_items(manager, step, {name: tree for name, tree in stored.items() if tree})
    return {name: (stored | restored)[own] for name, own in names.items()}


def read_meta(manager: ocp.CheckpointManager, step: int) -> Meta:
    """The checkpoint's config, fingerprint and data states. Raises CheckpointError where they cannot be read."""
    with readable(f"{manager.directory}/{step}"):
        return _read_meta(manager, step)


def _read_meta(manager: ocp.CheckpointManager, step: int) -> Meta:
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise CheckpointError(
            f"{manager.directory}/{step} is not a checkpoint of clipjax: its meta has format {found!r}, expected "
            f"{FORMAT!r}."
        )
    config = from_json_dict(meta["config"])
    paths = meta.get("paths", {"own": {"tokenizer.path": ""}} if meta.get("own_tokenizer") else {})
    opened = located(config, manager.directory.parent, paths)
    return Meta(opened, completed(meta["fingerprint"], config), meta.get("data_states", []), as_given(config, paths))


def handler_registry() -> ocp.CheckpointHandlerRegistry:
    """The handler of each item. Naming them lets a tree's shapes be read before any of its arrays."""
    trees = {name: ocp.StandardCheckpointHandler() for name in (*WEIGHTS, "train")}
    return ocp.handlers.create_default_handler_registry(**trees, meta=ocp.JsonCheckpointHandler())


def _optional_items(state: TrainState) -> dict[str, Any]:
    """The items that only some runs have; None and {} are not saved."""
    return {name: getattr(state, name) for name in OPTIONAL_ITEMS if getattr(state, name)}


def _train_item(state: TrainState) -> dict[str, Any]:
    names = ("step", "opt_state", "rng", "skipped", "skipped_in_a_row")
    return {name: getattr(state, name) for name in names}


def _all_items(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "train": _train_item(state)} | _optional_items(state)


def _restore_items(manager: ocp.CheckpointManager, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """The items as their targets' shapes and shardings say. Raises CheckpointError where shapes differ."""
    _check_items(manager, step, targets)
    args = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
    with readable(f"{manager.directory}/{step}"):
        restored = manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in targets}


def _check_items(manager: ocp.CheckpointManager, step: int, targets: dict[str, Any]) -> None:
    with readable(f"{manager.directory}/{step}"):
        metadata = manager.item_metadata(step)
        present = sorted(name for name in metadata.keys() if metadata[name] is not None)
    for item, target in targets.items():
        if item not in present:
            raise CheckpointError(
                f"Checkpoint {manager.directory}/{step} has no '{item}'; it has {', '.join(present)}. "
                "config.optimizer.ema_decay must be on, or off, as it was in training."
            )
        check_shapes(
            metadata[item],
            target,
            where=f"Checkpoint {manager.directory}/{step} does not fit the configuration in '{item}'",
            cure="Use the configuration it was trained with, or a new --workdir.",
        )
