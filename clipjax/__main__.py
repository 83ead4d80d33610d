"""The command line: `clipjax COMMAND ...`, or `python -m clipjax COMMAND ...`. Each command is a file in commands/."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import sys
import traceback
from pathlib import Path

from clipjax import signals
from clipjax.commands import HELP
from clipjax.machine import environment

# command -> (module with main(argv), what it does)
COMMANDS = {
    "init": ("clipjax.commands.init", "write a small experiment for your own images and captions"),
    "train": ("clipjax.commands.train", "train a dual encoder, or continue a stopped run"),
    "sweep": ("clipjax.commands.sweep", "train a grid of settings with several seeds, and continue it"),
    "compare": ("clipjax.commands.compare", "a table of runs or of a sweep: means over seeds, and what differs"),
    "config": ("clipjax.commands.config", "every field of an experiment: value, default and meaning"),
    "embed": ("clipjax.commands.embed", "embed the training data with a frozen tower, once, to train from"),
    "eval": ("clipjax.commands.eval", "zero-shot classification and retrieval of a checkpoint"),
    "report": ("clipjax.commands.report", "a page about one or more runs, with everything they have stored"),
    "import": ("clipjax.commands.import_weights", "published weights -> a directory to evaluate or train from"),
    "export": ("clipjax.commands.export", "a run -> the files that transformers, open_clip or big_vision read"),
    "check": ("clipjax.commands.check", "check an experiment and its data, list all errors, show samples"),
    "doctor": ("clipjax.commands.doctor", "check this machine or pod before a run, and say how to fix what is wrong"),
    "check-data": ("clipjax.commands.check_data", "read all data of an experiment and count what is bad"),
    "plan": ("clipjax.commands.plan", "memory, collectives and time on TPUs, GPUs or any mesh, before running there"),
}

# {command: what its --help prints}, made by python -m docs.generate, so that help needs no import of JAX.
HELP_TEXTS = Path(__file__).parent / "commands" / "help.json"
FLAG = re.compile(r"^  --(\w+)$", re.MULTILINE)


def main() -> None:
    """Entry point of the console command: from its first moment, Ctrl-C and SIGTERM end it with one line."""
    environment.prepare(sys.argv[1] if len(sys.argv) > 1 else "")  # first, because malloc counts its threads
    signals.install(f"clipjax {sys.argv[1]}" if sys.argv[1:2] and sys.argv[1] in COMMANDS else "clipjax")
    signals.quiet_threads()
    try:
        dispatch()
    except SystemExit as error:
        _leave(error.code if isinstance(error.code, int) else int(error.code is not None))
    except BaseException:
        traceback.print_exc()
        _leave(1)


def _leave(code: int) -> None:
    """Exits; after an error at once, because threads that wait for a failed checkpoint would go on for minutes."""
    if not code:
        sys.exit()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def dispatch() -> None:
    """Executes sys.argv; exits with 2 for an unknown command."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command not in COMMANDS:
        width = max(map(len, COMMANDS))
        print("usage: clipjax COMMAND [--help | flags]\n")
        print("\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()))
        print("\nclipjax COMMAND --help shows examples and every flag.")
        if command not in ("--help", "-h", "help"):
            from clipjax.config.errors import meant

            print(f"\nUnknown command '{command}'.{meant(command, COMMANDS)}", file=sys.stderr)
            sys.exit(2)
        return
    help_texts = json.loads(HELP_TEXTS.read_text("utf-8")) if HELP_TEXTS.is_file() else {}
    if text := help_texts.get(command):
        if any(arg in HELP for arg in sys.argv[2:]):
            print(text, end="")
            return
        from clipjax.commands.flags import refuse_unknown_flags  # which is slower to import than help should be

        refuse_unknown_flags(sys.argv[1:], FLAG.findall(text))
    importlib.import_module(COMMANDS[command][0]).main(sys.argv[1:])


def help_of(command: str) -> str:
    """What `clipjax COMMAND --help` prints, from the command itself, which takes JAX seconds to import."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        importlib.import_module(COMMANDS[command][0]).main([command, "--help"])
    return output.getvalue()


if __name__ == "__main__":
    main()
