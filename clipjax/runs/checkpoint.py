"""Checkpoints: one Orbax step directory holds everything a run or an evaluation needs, atomically.

    workdir/checkpoints/1200/params       the towers, logit_scale, logit_bias
                             ema_params   the same tree, when the run keeps an average
                             batch_stats  BatchNorm's running statistics, for towers that have them
                             ema_batch_stats  likewise averaged
                             train        optimiser state, step, PRNG key, skip counters
                             meta         JSON: config, fingerprint, data state of every process
                             checksums.json  size and SHA-256 of all files above

Orbax writes into a temporary name and renames when every process has finished, so a directory with a
plain number was whole. Whether it still is, the checksums say: a training run passes over damaged
checkpoints to the newest intact one and moves them to workdir/damaged_checkpoints; nothing is deleted.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from clipjax.config import CheckpointConfig, ExperimentConfig, from_json_dict, to_json_dict
from clipjax.mesh import path_name
from clipjax.processes import gather_json
from clipjax.runs.bad_records_log import add_causes
from clipjax.runs.integrity import CheckpointError, damage_of, write_step_checksums
from clipjax.training.state import TrainState, abstract_state, eval_variables

WEIGHTS = ("params", "ema_params", "batch_stats", "ema_batch_stats")  # all but the training state
OPTIONAL_ITEMS = ("ema_params", "batch_stats", "ema_batch_stats")


@contextlib.contextmanager
def open_checkpoints(workdir: str | Path, config: CheckpointConfig) -> Iterator[ocp.CheckpointManager]:
    """The manager of workdir/checkpoints, saving in the background; what it has begun is finished on leaving."""
    directory = Path(workdir).absolute() / "checkpoints"
    policies = [LatestN(config.keep_last)]
    best = config.best_metric
    if best and config.keep_best:
        policies.append(
            BestN(get_metric_fn=lambda m: m[best], n=config.keep_best, keep_checkpoints_without_metrics=False)
        )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies),
        best_fn=(lambda metrics: metrics[best]) if best else None,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: write_step_checksums(directory)),
    )
    manager = ocp.CheckpointManager(directory, options=options, item_handlers=_handlers())
    try:
        yield manager
    except BaseException:
        # Of several processes the others are not coming to finish a checkpoint with this one.
        if jax.process_count() == 1:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                manager.close()
        raise
    with clear_errors(manager):
        manager.close()


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    *,
    data_state: dict,
    config: ExperimentConfig,
    fingerprint: dict,
    metrics: dict[str, float] | None = None,
) -> None:
    """Starts writing the checkpoint of state.step; returns when the arrays have been copied off the devices.

    data_state: this process's train iterator state (JSON-able).
    metrics: evaluation results of this very step, if there are any; keep_best compares them.
    """
    step = int(state.step)
    meta = {
        "format": "clipjax-checkpoint/1",
        "config": to_json_dict(config),
        "fingerprint": fingerprint,
        "data_states": gather_json(data_state),
    }
    items = {
        "params": ocp.args.StandardSave(state.params),
        "train": ocp.args.StandardSave(_train_item(state)),
        "meta": ocp.args.JsonSave(meta),
    }
    items |= {name: ocp.args.StandardSave(tree) for name, tree in _optional_items(state).items()}
    with clear_errors(manager):
        manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)


@contextlib.contextmanager
def clear_errors(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Around what waits for a checkpoint in the making: raises CheckpointError when it could not be written."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        whole = sorted(path.name for path in Path(manager.directory).glob("*") if path.name.isdigit())
        raise CheckpointError(
            f"A checkpoint could not be written to {manager.directory}: {_reason(error)}\n"
            f"The earlier ones are intact ({', '.join(sorted(whole, key=int)) or 'there is none'}). Make room, or see "
            "to what is wrong there, and run the command again: it goes on from the last of them."
        ) from error


def save_weights(
    workdir: str | Path, variables: dict, *, config: ExperimentConfig, fingerprint: dict, own_tokenizer: bool = False
) -> None:
    """Writes a step 0 of weights alone into workdir: to evaluate, to teach or to start from, not to go on with.

    variables: {"params", "batch_stats"}. own_tokenizer: config.tokenizer.path is counted from workdir, wherever that
    is moved to.
    """
    meta = {"format": "clipjax-checkpoint/1", "config": to_json_dict(config), "fingerprint": fingerprint}
    meta |= {"own_tokenizer": True} if own_tokenizer else {}
    items = {name: ocp.args.StandardSave(tree) for name, tree in variables.items() if tree}
    with open_checkpoints(workdir, config.checkpoint) as manager:
        manager.save(0, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True)


def refuse_weights_alone(manager: ocp.CheckpointManager, step: int) -> None:
    """Raises CheckpointError for a checkpoint that no training can go on from."""
    metadata = manager.item_metadata(step)
    if "train" not in metadata.keys() or metadata["train"] is None:
        raise CheckpointError(
            f"{manager.directory}/{step} holds weights and no training state. To train from them, use another "
            f"--workdir and --config.init_from={manager.directory.parent}."
        )


def restore(
    manager: ocp.CheckpointManager, step: int, config: ExperimentConfig, mesh: Mesh
) -> tuple[TrainState, list[dict]]:
    """(state on the CURRENT mesh, data states of the processes that wrote the checkpoint).

    Raises CheckpointError listing the parameters whose shapes differ from config's.
    """
    target = abstract_state(config, mesh)
    optional = _optional_items(target)
    wanted = {"params": target.params, "train": _train_item(target)} | optional
    for name, tree in wanted.items():
        _check_same_tree(manager, step, name, tree)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
    found = manager.restore(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore()))
    restored = {name: found[name] for name in optional}
    return target.replace(params=found["params"], **found["train"], **restored), found["meta"]["data_states"]


def restore_variables(manager: ocp.CheckpointManager, step: int, config: ExperimentConfig, mesh: Mesh) -> dict:
    """{"params", "batch_stats"} to evaluate with, EMA where the run kept one, on any mesh; nothing else is read."""
    prefix = "ema_" if config.optimizer.ema_decay > 0 else ""
    variables = eval_variables(abstract_state(config, mesh))
    targets = {f"{prefix}{name}": tree for name, tree in variables.items() if tree}
    for name, tree in targets.items():
        _check_same_tree(manager, step, name, tree)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
    found = manager.restore(step, args=ocp.args.Composite(**items))
    return variables | {name.removeprefix(prefix): found[name] for name in targets}


def read_meta(manager: ocp.CheckpointManager, step: int) -> tuple[ExperimentConfig, dict]:
    """(the run's config, its fingerprint) of a checkpoint."""
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    config = from_json_dict(meta["config"])
    if meta.get("own_tokenizer"):
        path = str(Path(manager.directory).parent / config.tokenizer.path)
        config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=path))
    return config, meta["fingerprint"]


def read_bad_causes(manager: ocp.CheckpointManager, step: int) -> dict[str, int]:
    """{cause: records replaced} over all processes, up to a checkpoint; {} for weights alone."""
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    return add_causes(state["bad"] for state in meta.get("data_states", ()))


def open_run(workdir: str | Path, step: str = "latest") -> tuple[ocp.CheckpointManager, int]:
    """A run's checkpoints, read-only, and the number of the step meant by "latest", "best" or "1200".

    "best" is by the run's own config.checkpoint.best_metric. Raises CheckpointError naming what is there.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    if not directory.is_dir():
        raise CheckpointError(
            f"{workdir} holds no checkpoints: expected the folder {directory}. "
            "--checkpoint takes the --workdir of a training run."
        )
    options = ocp.CheckpointManagerOptions(read_only=True)
    manager = ocp.CheckpointManager(directory, options=options, item_handlers=_handlers())
    steps = sorted(manager.all_steps())
    chosen = None
    if step == "latest" and steps:
        chosen = steps[-1]
    elif step == "best" and steps:
        chosen = _best_step(manager, steps)
    elif step.isdigit():
        chosen = int(step)
    if chosen not in steps:
        raise CheckpointError(
            f"{directory} has no checkpoint '{step}'; it has the steps {steps}. "
            "--step takes one of them, 'latest', or 'best' (with config.checkpoint.best_metric)."
        )
    if damage := damage_of(directory / str(chosen), items=WEIGHTS):
        raise CheckpointError(
            f"Checkpoint {directory / str(chosen)} is damaged:\n"
            + "".join(f"  {line}\n" for line in damage)
            + f"Use another with --step ({directory} has {steps}), or put back a copy of it."
        )
    return manager, chosen


def _reason(error: BaseException) -> str:
    """What the operating system said, where TensorStore puts it behind a line of paths."""
    text = " ".join(str(error).split())
    return text.partition(" [os_error_code")[0].rpartition(": ")[2] if "[os_error_code" in text else text[:300]


def _best_step(manager: ocp.CheckpointManager, steps: list[int]) -> int | None:
    best = read_meta(manager, steps[-1])[0].checkpoint.best_metric
    scores = {step: (manager.metrics(step) or {}).get(best) for step in steps}
    return max((s for s in steps if scores[s] is not None), key=scores.get, default=None)


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    """Who reads each item, so that its tree can be compared before any of it is restored."""
    trees = {name: ocp.StandardCheckpointHandler() for name in ("params", *OPTIONAL_ITEMS, "train")}
    return {**trees, "meta": ocp.JsonCheckpointHandler()}


def _optional_items(state: TrainState) -> dict[str, Any]:
    """What only some runs have; what is None or {} is no item."""
    return {name: getattr(state, name) for name in OPTIONAL_ITEMS if getattr(state, name)}


def _train_item(state: TrainState) -> dict[str, Any]:
    names = ("step", "opt_state", "rng", "skipped", "skipped_in_a_row")
    return {name: getattr(state, name) for name in names}


def _check_same_tree(manager: ocp.CheckpointManager, step: int, item: str, target: Any) -> None:
    metadata = manager.item_metadata(step)
    present = sorted(name for name in metadata.keys() if metadata[name] is not None)
    if item not in present:
        raise CheckpointError(
            f"Checkpoint {manager.directory}/{step} has no '{item}'; it has {', '.join(present)}. "
            "config.optimizer.ema_decay must be on, or off, as it was in training."
        )
    found = _shapes(metadata[item])
    expected = _shapes(target)
    lines = [
        f"  {name}: checkpoint {found.get(name, 'nothing')}, configuration {expected.get(name, 'nothing')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if lines:
        more = f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise CheckpointError(
            f"Checkpoint {manager.directory}/{step} does not fit the configuration in '{item}':\n"
            + "\n".join(lines[:20])
            + more
            + "\nUse the configuration it was trained with, or a new --workdir."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}
