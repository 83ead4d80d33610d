"""What would refuse the cells of a sweep, before the first begins.

`clipjax sweep` runs the checks that need this machine's devices as a process of their own, so that the accelerators are
free again when the cells start: python -m clipjax.commands.sweep_check REQUEST RESULT
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipjax.commands.bucket_paths import with_local_files
from clipjax.commands.check import Errors
from clipjax.commands.flags import read_config
from clipjax.commands.preflight import Preflight
from clipjax.commands.vary import arguments_of
from clipjax.config import ConfigError, ExperimentConfig, declared, differences, flat
from clipjax.config.fields import Declaration
from clipjax.inference.evaluate import check_evaluators
from clipjax.processes import run_child
from clipjax.report.compare_groups import kind_of
from clipjax.runs.own_files import keep_files
from clipjax.runs.sweep import Cell, trained_config
from clipjax.training.check import part_checks


def refuse_changed(folder: Path, begun: Sequence[Cell], file: str, overrides: list[str]) -> None:
    """Raises ConfigError where the command would train cells that have begun with another configuration.

    Fields that affect results must be equal, and so must what `clipjax compare` would note: data and evaluators.
    """
    changed: dict[str, list[str]] = {}
    for cell in begun:
        trained = trained_config(folder / cell.path)
        if trained is None:  # a job that has not begun
            continue
        now = read_config(arguments_of(file, overrides, cell.set, cell.seed))
        if now.data.decoder == "auto":  # which each run resolves on its own machine
            now = dataclasses.replace(now, data=dataclasses.replace(now.data, decoder=trained.data.decoder))
        if now.model.dtype == "auto":
            now = dataclasses.replace(now, model=dataclasses.replace(now.model, dtype=trained.model.dtype))
        roles = declared(trained, now)
        kept = flat(keep_files(now, folder / cell.path, copy=False).config)
        for name, (old, new) in differences(flat(trained), flat(now)).items():
            told = roles[name].role != "runtime" or kind_of(name)
            if told and not _same_files(roles[name], old, new, kept.get(name)):
                changed.setdefault(f"  {name}={old!r}, config.{name} is now {new!r}", []).append(cell.path)
    if changed:
        lines = [f"{line} ({paths[0]}{and_more(paths)})" for line, paths in changed.items()]
        raise ConfigError(
            f"Cells of {folder} were trained with another configuration:\n" + "\n".join(lines) + "\nA sweep compares "
            "cells that differ only in what it varies: use the old values, or another --workdir. If data were "
            "moved, put a link at the old path."
        )


def and_more(paths: Sequence[str]) -> str:
    """What follows the first of several paths."""
    return f" and {len(paths) - 1} more" if len(paths) > 1 else ""


def _same_files(declaration: Declaration, old: Any, new: Any, kept: Any) -> bool:
    """Whether two different values of a field name the same files.

    old: in a run's config.json, which names copies after their content; new: today's; kept: what config.json would
    have for it, which is `new` itself for a file that is not there: the run then reads its copy.
    """
    if declaration.path == "own":
        return bool(old and new) and kept in (old, new)
    return declaration.path == "data" and bool(old and new) and os.path.abspath(old) == os.path.abspath(new)


def errors_here(cells: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """{workdir: what clipjax train would refuse it with on this machine}, by a process that sees its devices.

    cells: {workdir: arguments}. Data are opened once for cells that read the same. Raises ConfigError where the check
    itself fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.json"
        request.write_text(json.dumps({workdir: list(arguments) for workdir, arguments in cells.items()}))
        command = [sys.executable, "-m", "clipjax.commands.sweep_check", str(request), str(result)]
        env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        process = run_child(command, env)
        if process.returncode:
            last = (process.stderr.strip() or process.stdout.strip() or f"exit code {process.returncode}").splitlines()
            raise ConfigError(f"The cells cannot be checked on this machine: {last[-1]}")
        return json.loads(result.read_text())


def errors_elsewhere(config: ExperimentConfig) -> list[str]:
    """What is wrong with a configuration whatever machine runs it; opens no file. The devices fit its mesh."""
    sizes = [size for size in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) if size > 0]
    devices = 1
    for size in sizes:
        devices *= size
    errors = Errors()
    checks, _ = errors.caught(lambda: part_checks(config, num_devices=devices))
    for refuse in (*(checks or ()), lambda: check_evaluators(config)):
        errors.caught(refuse)
    return errors.messages


def main(request: str, result: str) -> None:
    """Reads {workdir: arguments} and writes {workdir: errors} for the workdirs that have any."""
    found, seen = {}, set()
    for workdir, arguments in json.loads(Path(request).read_text()).items():
        errors = Errors()
        config, _ = errors.caught(lambda arguments=arguments: with_local_files(read_config(arguments)))
        if config is not None:
            start_from = Preflight(config, workdir)
            checks = start_from.before_data()
            for _, refuse in checks:
                errors.caught(refuse)
            data = repr((config.data, config.eval, config.tokenizer, config.model.text.context_length))
            if not errors.messages and data not in seen:
                seen.add(data)
                for _, refuse in start_from.of_data():
                    errors.caught(refuse)
        if errors.messages:
            found[workdir] = errors.messages
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
