r"""Trains every combination of settings, with several seeds each, and goes on where it was stopped.

    clipjax sweep --config=experiments/quickstart.py --workdir=sweeps/losses --seeds=3 \
      --vary loss.name=softmax,sigmoid --vary global_batch_size=64,128
    clipjax sweep --config=... --workdir=sweeps/lr --vary global_batch_size,optimizer.learning_rate=256:1e-3,512:2e-3
    clipjax sweep --config=... --workdir=sweeps/lr --vary ... --launch=slurm --sbatch="--gres=gpu:1 --time=2:00:00"

Each cell is a run of clipjax train with a workdir of its own, such as
sweeps/losses/loss=softmax,global_batch_size=64/seed0, and a log, train.log, in it. --seeds sets config.seed: cells of
the same seed see the same data in the same order. All cells are checked before the first begins. A cell that
fails is reported, and the rest go on. Run the same command again to continue: it skips finished cells, continues
stopped ones and repeats failed ones. More values or seeds extend the sweep. clipjax compare sweeps/losses shows the
results. --workdir may be in a bucket; a cell's log is uploaded when its process ends.

In --vary, fields before "=" that are joined by commas change together, and their values are joined by colons; "-"
leaves a field out. Brackets keep a tuple together, quotes a text with commas: --vary "data.augment.scale=(0.5,1),(1,1)"
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags

from clipjax.commands import flags as cli
from clipjax.commands.launch import Local, Task, print_commands, submit
from clipjax.commands.preflight import check_folder
from clipjax.commands.sweep_check import and_more, errors_elsewhere, errors_here, refuse_changed
from clipjax.commands.vary import Setting, arguments_of, build_settings, parse_axes, parse_seeds
from clipjax.config import ConfigError, ExperimentConfig, require
from clipjax.runs.lock import folder_lock
from clipjax.runs.run import refuse_as_workdir
from clipjax.runs.sweep import (
    FILE,
    LOCK,
    Cell,
    Sweep,
    cell_name,
    is_sweep,
    read_sweep,
    saved_step,
    trained_config,
    write_sweep,
)
from clipjax.storage import as_path

LAUNCHES = ("local", "print", "slurm")


def run(
    arguments: Sequence[str],
    vary: Sequence[str],
    workdir: str | Path,
    *,
    seeds: str = "1",
    jobs: int = 1,
    launch: str = "local",
    sbatch: str = "",
) -> int:
    """Trains, prints or submits the cells that are not finished; returns the exit code.

    arguments: "--config=FILE" and overrides for all cells; vary: each --vary; seeds: see parse_seeds. Returns 1 when a
    cell failed, 128 + the signal when one stopped the sweep, otherwise 0. Raises ConfigError before anything begins
    for whatever is wrong in any cell, or contradicts the sweep that the folder holds; RunLockError when another sweep
    uses it.
    """
    require(jobs >= 1, f"--jobs={jobs} must be at least 1.")
    require(launch in LAUNCHES, f"--launch={launch} is unknown; expected {', '.join(LAUNCHES)}.")
    require(launch == "slurm" or not sbatch, "--sbatch has options of jobs; it goes with --launch=slurm.")
    folder, (file, *overrides) = as_path(workdir), arguments
    refuse_as_workdir(folder)
    require(
        not (folder / "checkpoints").exists(),
        f"--workdir={folder} is a run's folder; a sweep makes a folder for each of its cells. Use another.",
    )
    check_folder(folder, "--workdir")
    axes, numbers = parse_axes(vary, overrides), parse_seeds(seeds)
    edited = watching(file)
    settings = build_settings(file, overrides, axes)
    fields = [field for axis in axes for field in axis.fields]
    with folder_lock(
        folder,
        LOCK,
        user="sweep",
        harm="Two sweeps would train the same cells",
        keeps="a sweep keeps its cells there",
    ):
        sweep, asked = extend(folder, file, overrides, fields, settings, numbers)
        tasks = tasks_of(folder, sweep, asked)
        refuse_wrong(tasks, asked, here=launch == "local")
        write_sweep(folder, sweep)
        describe(folder, sweep, asked, tasks, launch, jobs)
        save = lambda: write_sweep(folder, sweep)  # noqa: E731
        if launch == "local":
            return train(folder, sweep, tasks, len(asked), jobs, edited)
        if launch == "print":
            print_commands(tasks)
            save()
            return 0
        submit(tasks, sbatch, save)
        return 0


def extend(
    folder: Path, file: str, overrides: list[str], fields: list[str], settings: Sequence[Setting], seeds: Sequence[int]
) -> tuple[Sweep, list[tuple[Cell, ExperimentConfig]]]:
    """(the folder's sweep with this command's cells; these, and their configurations). Writes nothing.

    Raises ConfigError for a sweep of other fields, or one with cells that were trained with another configuration.
    """
    before = read_sweep(folder) if is_sweep(folder) else None
    if before is not None:
        begun = [cell for cell in before.cells if cell.job or trained_config(folder / cell.path)]
        if not begun:
            before = None  # nothing of it would be lost
        else:
            require(
                set(before.fields) == set(fields),
                f"{folder / FILE} varies {_listed(before.fields)}, and this command varies {_listed(fields)}. "
                "Use another --workdir for another sweep.",
            )
            fields = before.fields
            refuse_changed(folder, begun, file, overrides)
    known = {_key(cell.values): cell for cell in before.cells} if before else {}
    cells = {(_key(cell.values), cell.seed): cell for cell in before.cells} if before else {}
    names = {key: cell.name for key, cell in known.items()}
    for setting in settings:
        key = _key(setting.values)
        if key not in names:
            names[key] = cell_name(setting.values, fields, names.values())
    asked = []
    for seed in seeds:  # all settings with one seed come first, so that a part of the sweep can be compared
        for setting in settings:
            key = _key(setting.values)
            cell = cells.setdefault((key, seed), Cell(names[key], seed, setting.set, setting.values))
            cell.set = setting.set
            asked.append((cell, dataclasses.replace(setting.config, seed=seed)))
    order = {name: number for number, name in enumerate(dict.fromkeys(names.values()))}
    ordered = sorted(cells.values(), key=lambda cell: (cell.seed, order[cell.name]))
    return Sweep(file.removeprefix("--config="), overrides, fields, ordered), asked


def tasks_of(folder: Path, sweep: Sweep, asked: Sequence[tuple[Cell, ExperimentConfig]]) -> list[Task]:
    """The cells of this command that are not finished."""
    tasks = []
    for number, (cell, config) in enumerate(asked, 1):
        workdir = folder / cell.path
        saved = saved_step(workdir)
        left = config.total_steps - saved
        if cell.status == "running" or (saved and not cell.seconds):
            cell.seconds = -1.0  # a try was killed together with its sweep, or somebody else trained it
        if left <= 0:
            cell.status, cell.error = "finished", ""
            continue
        arguments = arguments_of(f"--config={sweep.config}", sweep.overrides, cell.set, cell.seed)
        images = left * config.global_batch_size
        tasks.append(Task(cell, number, workdir, arguments, images, config.total_steps))
    return tasks


def refuse_wrong(tasks: Sequence[Task], asked: Sequence[tuple[Cell, ExperimentConfig]], *, here: bool) -> None:
    """Raises ConfigError listing what would refuse any of the cells; here: on this machine, with its devices."""
    chosen = {}
    for task in tasks:  # one seed of each setting, and all cells that would continue
        if saved_step(task.workdir) or task.cell.name not in {other.cell.name for other in chosen.values()}:
            chosen[str(task.workdir)] = task
    if not chosen:
        return
    if here:
        found = errors_here({workdir: task.arguments for workdir, task in chosen.items()})
    else:
        configs = {id(cell): config for cell, config in asked}
        found = {workdir: errors_elsewhere(configs[id(task.cell)]) for workdir, task in chosen.items()}
    messages: dict[str, list[str]] = {}
    for workdir, errors in found.items():
        for message in errors:
            messages.setdefault(message.replace(workdir, "\0"), []).append(workdir)
    if messages:
        lines = [
            f"{number}. {paths[0]}{and_more(paths)}: {message.replace(chr(0), paths[0])}"
            for number, (message, paths) in enumerate(messages.items(), 1)
        ]
        raise ConfigError(f"{len(lines)} error{'s' * (len(lines) > 1)}; no cell was started:\n" + "\n".join(lines))


def describe(
    folder: Path,
    sweep: Sweep,
    asked: Sequence[tuple[Cell, ExperimentConfig]],
    tasks: Sequence[Task],
    launch: str,
    jobs: int,
) -> None:
    """Says what the sweep holds and what is done now; to stderr where stdout is a script."""
    settings = len({cell.name for cell, _ in asked})
    seeds = len(asked) // settings
    how = {"local": f", {jobs} at a time" if jobs > 1 else ", one after another", "print": "", "slurm": ""}[launch]
    lines = [
        f"{folder}: {_count(len(asked), 'cell')} ({_count(settings, 'setting')} x {_count(seeds, 'seed')}); "
        f"{len(asked) - len(tasks)} finished, {len(tasks)} to {'train' + how if launch == 'local' else launch}. "
        "config.seed is the seed: cells of the same seed see the same data in the same order."
    ]
    others = len(sweep.cells) - len(asked)
    if others:
        lines.append(f"{_count(others, 'other cell')} of earlier commands stay as they are.")
    print("\n".join(lines), file=sys.stdout if launch == "local" else sys.stderr, flush=True)


def watching(file: str) -> Callable[[], bool]:
    """A function that tells whether the experiment file of "--config=FILE" has changed since this call."""
    path = Path(file.removeprefix("--config=").partition(":")[0])

    def content() -> bytes | None:
        try:
            return path.read_bytes()
        except OSError:
            return None

    before = content()
    return lambda: content() not in (before, None)  # a file that cannot be read now may be there when a cell starts


def train(folder: Path, sweep: Sweep, tasks: Sequence[Task], total: int, jobs: int, edited: Callable[[], bool]) -> int:
    """Trains the cells here, and says how it ended. Returns the exit code; total: cells, with finished ones."""
    local = Local(tasks, total, jobs, lambda: write_sweep(folder, sweep), edited)
    stopped = local.run()
    write_sweep(folder, sweep)
    failed = [task for task in tasks if task.cell.status == "failed"]
    for task in failed:
        print(f"failed: {task.cell.path}: {task.cell.error}\n    log: {task.log}", flush=True)
    unfinished = [task for task in tasks if task.cell.status != "finished"]
    again = "The same command " + ("goes on from here" if stopped else "tries them again") + "."
    if stopped:
        print(f"Stopped with {_count(len(unfinished), 'cell')} unfinished. {again}", flush=True)
        return 128 + stopped
    if local.waiting and local.changed:
        print(
            f"error: {sweep.config} was edited while the sweep ran: {_count(len(local.waiting), 'cell')} would train "
            "another configuration, and none of them was started. Undo the change and repeat the command; or, for a "
            "sweep of the edited file, use another --workdir.",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return 1
    if unfinished:
        print(f"{len(tasks) - len(unfinished)} finished, {len(unfinished)} not. {again}", flush=True)
        return 1
    print(f"All cells are finished. clipjax compare {shlex.quote(str(folder))} shows the results.", flush=True)
    return 0


def _key(values: dict) -> str:
    return json.dumps(values, sort_keys=True)


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(fields) or "only the seed"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_multi_string("vary", [], "FIELD=VALUE,VALUE,...; may be given several times.", flag_values=values)
        flags.DEFINE_string("seeds", "1", "How many seeds, from 0; or the seeds: 5,8.", flag_values=values)
        flags.DEFINE_string("workdir", None, "The sweep's folder, with a folder for each cell.", flag_values=values)
        flags.DEFINE_integer("jobs", 1, "Cells that are trained at a time, on this machine.", flag_values=values)
        flags.DEFINE_string(
            "launch", "local", "local: train here; print: a command for each cell; slurm: a job for each.", values
        )
        flags.DEFINE_string("sbatch", "", "Options of sbatch, for --launch=slurm.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config", "workdir"), processes=False)
    jax.config.update("jax_platforms", "cpu")  # of this process: the accelerators are the cells'
    with cli.one_line_errors():
        code = run(
            cli.config_arguments(argv),
            values.vary,
            values.workdir,
            seeds=values.seeds,
            jobs=values.jobs,
            launch=values.launch,
            sbatch=values.sbatch,
        )
    sys.exit(code)
