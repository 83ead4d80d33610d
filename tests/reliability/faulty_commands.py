"""Commands that suffer one fault each, as processes forked from this one: python -m tests.reliability.faulty_commands.

Prints {name: [exit code, output, names of the workdir's checkpoints]} as JSON. folder holds tests.runs' data.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR2
from typing import Any

import jax.numpy as jnp

from clipjax.__main__ import COMMANDS
from tests.signalled import at_call, outcome, send

LOGGED = "clipjax.training.loop:progress_line"  # called once a step, after its line in metrics.jsonl


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def rename(workdir: Path) -> Callable[[], None]:
    return lambda: os.rename(workdir, f"{workdir}-renamed")


def in_callback(number: int) -> Callable[[], None]:
    """The signal arrives while C++ calls a Python function, whose exceptions would go no further."""

    def act() -> None:
        import jax

        def called(x: Any) -> Any:
            send(number)()
            return x

        jax.jit(lambda x: jax.pure_callback(called, x, x))(jnp.float32(1)).block_until_ready()

    return act


def file_in_the_way(workdir: Path) -> Callable[[], None]:
    def act() -> None:
        os.rename(workdir / "checkpoints", workdir / "away")
        (workdir / "checkpoints").write_text("a file")

    return act


def full_metrics() -> None:
    import clipjax.runs.metrics_log as log

    class Full:
        def __init__(self, file: Any):
            self.file = file

        def write(self, text: str) -> None:
            no_space()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    init = log.MetricsLog.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.file = Full(self.file)

    log.MetricsLog.__init__ = made


def lock_of_another(workdir: Path) -> Callable[[], None]:
    def act() -> None:
        (workdir / "run.lock").unlink()
        (workdir / "run.lock").write_text("another")

    return act


def ask_for_a_profile() -> None:
    from clipjax import signals

    os.kill(os.getpid(), SIGUSR2)
    while not signals._requested:
        time.sleep(0.01)


def faults(workdir: Path) -> dict[str, Callable[[], None]]:
    """{name: what is prepared in the process of `clipjax train`}."""
    return {
        "Ctrl-C in step 4": lambda: at_call(LOGGED, send(SIGINT), call=4),
        "SIGTERM twice in step 4": lambda: at_call(LOGGED, send(SIGTERM, times=2), call=4),
        "SIGUSR2 in step 4": lambda: at_call(LOGGED, ask_for_a_profile, call=4),
        "SIGTERM in a callback": lambda: at_call(LOGGED, in_callback(SIGTERM), call=4),
        "SIGTERM while compiling": lambda: at_call("clipjax.commands.train:compile_step", send(SIGTERM)),
        "SIGTERM while saving": lambda: at_call("clipjax.runs.checkpoint:gather_json", send(SIGTERM)),
        "SIGTERM in the report": lambda: at_call("clipjax.report.summary:Recorder.finish", send(SIGTERM)),
        "a file in the way of checkpoints": lambda: at_call(LOGGED, file_in_the_way(workdir), call=2),
        "workdir renamed": lambda: at_call(LOGGED, rename(workdir), call=5),
        "lock of another run": lambda: at_call(LOGGED, lock_of_another(workdir), call=5),
        "config.json full": lambda: at_call("clipjax.files:os.fsync", no_space, call=2),  # after the tokenizer's copy
        "metrics.jsonl full": full_metrics,
        "report.html full": lambda: at_call(
            "clipjax.report.page:render_report", lambda: at_call("clipjax.files:os.fsync", no_space)
        ),
        "events full": lambda: at_call("tensorboardX.event_file_writer:EventsWriter.write_event", no_space, call=3),
    }


def quick_step(config: Any, mesh: Any, teacher: Any) -> Callable:
    """A step that changes nothing but the step's number, and needs no compiling."""
    names = ("loss", "logit_scale", "learning_rate", "skipped", "skipped_in_a_row")
    metrics = dict.fromkeys(names, jnp.float32(0))
    return lambda state, batch: (state.replace(step=state.step + 1), metrics)


def main(folder: Path) -> None:
    import clipjax.commands.train as train
    import clipjax.report.summary  # noqa: F401

    train.compile_step = quick_step
    experiment = folder / "plain.py"
    experiment.write_text(
        "from pathlib import Path\nfrom tests.runs import run_config\n\n\ndef get_config():\n"
        f"    config = run_config(Path({str(folder)!r}))\n    config.eval.evaluators = {{}}\n"
        "    config.log.update(tensorboard=True, figures=True)\n    return config\n"
    )
    workdir, found = folder / "faulty", {}
    for name, prepare in faults(workdir).items():
        for left in folder.glob("faulty*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        arguments = ["train", f"--config={experiment}", f"--workdir={workdir}"]
        code, output = outcome(arguments, prepare, folder)
        steps = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
        print(f"{name}: {code}", file=sys.stderr, flush=True)
        found[name] = [code, output, [step for step in steps if step.isdecimal()]]
    for command in COMMANDS:
        prepare = functools.partial(at_call, "clipjax.__main__:importlib.import_module", send(SIGINT))
        code, output = outcome([command], prepare, folder)
        found[command] = [code, output, []]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
