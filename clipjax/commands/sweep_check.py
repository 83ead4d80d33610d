"""What would refuse the cells of a sweep, before the first begins. `clipjax sweep` runs it as a process of its own, so
that the accelerators are free again when the cells start: python -m clipjax.commands.sweep_check REQUEST RESULT
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipjax.commands.bucket_paths import with_local_files
from clipjax.commands.check import Errors
from clipjax.commands.flags import read_config
from clipjax.commands.preflight import Preflight
from clipjax.config import ConfigError, ExperimentConfig
from clipjax.inference.evaluate import check_evaluators
from clipjax.processes import run_child
from clipjax.training.check import part_checks


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
