"""What the commands share: parsing of flags, start-up of several processes, one-line errors."""

from __future__ import annotations

import contextlib
import errno
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from logging import LogRecord
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from clipjax.commands import HELP, bucket_paths
from clipjax.commands.config_file import load_config_file
from clipjax.config import ConfigError, ExperimentConfig, from_config_dict, from_eval_config, require_field
from clipjax.files import message_text
from clipjax.machine import environment
from clipjax.storage import StorageError


def parse(
    argv: Sequence[str],
    doc: str,
    define: Callable[[flags.FlagValues], None],
    *,
    required: Sequence[str] = (),
    config: bool = True,
    evaluation: bool = False,
    processes: bool = True,
) -> flags.FlagValues:
    """Parses argv (argv[0] is the command) into FlagValues.

    doc: the module's docstring, whose examples --help shows. config: whether the command reads an experiment file;
    evaluation: whether that may be one with evaluators alone (clipjax.config.eval_config).
    processes: whether several processes may run it together. Exits with 2 and one line on a wrong flag.
    """
    values = flags.FlagValues()
    define(values)
    if processes:
        start = "Number of processes, when you start each by hand; 1: this process alone."
        wait = "Seconds to wait for the other processes (300; doctor: 30)."
        flags.DEFINE_string("coordinator_address", None, "host:port of process 0, when you start each by hand.", values)
        flags.DEFINE_integer("num_processes", None, start, flag_values=values)
        flags.DEFINE_integer("process_id", None, "This process's number, from 0, by hand.", flag_values=values)
        flags.DEFINE_float("start_timeout", None, wait, flag_values=values)
    if any(arg in HELP for arg in argv[1:]):
        if config:
            flags.DEFINE_string("config", None, CONFIG_HELP, flag_values=values)
        print(doc)
        print("\n".join(_describe(values[name]) for name in sorted(values)))
        sys.exit(0)
    try:
        argv = _define_config(values, list(argv), evaluation) if config else list(argv)
        rest = values(argv)[1:]
    except ConfigError as error:
        fail(error)
    except (flags.Error, TypeError, ValueError, OSError) as error:
        unknown = isinstance(error, flags.UnrecognizedFlagError)
        fail(_unknown(error, config) if unknown else _expected(str(error)))
    if rest:
        fail(f"Unexpected argument '{rest[0]}'; flags look like --name=value. Try --help.")
    for name in required:
        if values[name].value in (None, ""):
            missing = values[name].value is None
            fail(f"--{name} is missing. Try --help." if missing else f"--{name}= is empty; give it a value.")
    check_places([(f"--{name}", values[name].value) for name in bucket_paths.FLAGS if name in values])
    return values


def check_places(named: Sequence[tuple[str, str | None]]) -> None:
    """Exits with 2 for a path, of a flag or with the name "", that is in no place that clipjax reads or writes."""
    try:
        bucket_paths.check_paths(named)
    except StorageError as error:
        fail(error)


def experiment_of(values: flags.FlagValues, *, evaluation: bool = False, fetch: bool = True) -> Any:
    """The experiment of --config, or with `evaluation` what from_eval_config reads.

    fetch: with copies of the small files that it names in buckets. Raises ConfigError, StorageError.
    """
    config = (from_eval_config if evaluation else from_config_dict)(values.config)
    bucket_paths.check_config(config)
    return bucket_paths.with_local_files(config) if fetch else config


def refuse_unknown_flags(argv: Sequence[str], names: Sequence[str]) -> None:
    """Exits with 2 as `parse` would for a flag that is none of `names`, the command's own, which need not be imported.

    Silent where it is not sure; fields of the experiment are left to `parse`.
    """
    values = flags.FlagValues()
    for name in names:
        flags.DEFINE_string(name, None, "", flag_values=values)
    arguments = [arg for arg in argv if not arg.lstrip("-").startswith(("config.", "noconfig.", "no"))]
    first = next((place for place, arg in enumerate(arguments) if place and arg.startswith("-")), len(arguments))
    try:
        values(["clipjax", *arguments[first:]])
    except flags.UnrecognizedFlagError as error:
        fail(_unknown(error, "config" in names))
    except flags.Error:
        return


def _unknown(error: flags.UnrecognizedFlagError, config: bool) -> str:
    """The line about a flag that a command does not have; config: whether it reads an experiment file."""
    message = _expected(str(error))
    message += "" if message.endswith("?") else "."
    if config and "'config." in message:
        message += " --config.NAME=value goes with --config=FILE."
    elif config:
        message += " Fields of the experiment are set as --config.NAME=value."
    return message + " Try --help."


PROCESS_FLAGS = ("coordinator_address", "num_processes", "process_id", "start_timeout")
TELLING = ("train", "embed")  # the commands that say what they set for themselves
CONFIG_HELP = "Experiment file: path.py or path.py:argument; --config.a.b=value overrides a field."


def _define_config(values: flags.FlagValues, argv: list[str], evaluation: bool = False) -> list[str]:
    """Defines --config, with the fields of the parts that argv itself chooses; returns argv without --config=FILE.

    `--config.loss.name=cyclip` gives the section cyclip's fields, which later arguments may then set.
    Raises ConfigError.
    """
    place = next((i for i, arg in enumerate(argv) if arg == "--config" or arg.startswith("--config=")), None)
    if place is None:
        flags.DEFINE_string("config", None, CONFIG_HELP, flag_values=values)
        return argv
    _, equals, path = argv[place].partition("=")
    path = path if equals else argv[place + 1] if place + 1 < len(argv) else ""
    if "://" in path or path.startswith(("gs:/", "s3:/")):
        raise ConfigError(f"--config={path}: an experiment is a Python file of this machine. Copy it here first.")
    try:
        config = load_config_file(path, evaluation=evaluation)
    except ConfigError as error:
        if "no such file" not in str(error):
            raise
        raise ConfigError(f"--config={error}") from error
    overrides = [arg for arg in argv if arg.startswith("--config.")]
    # Names of parts come first, because they decide which other fields there are.
    for arg in sorted(overrides, key=lambda arg: not arg.partition("=")[0].endswith(".name")):
        field, equals, value = arg.removeprefix("--config.").partition("=")
        try:
            require_field(config, field)
        except ConfigError as error:
            raise ConfigError(f"{arg[:200]}: {error}") from error
        if field.endswith(".name"):
            *sections, last = field.split(".")
            functools.reduce(getattr, sections, config)[last] = _value_of(arg, argv)
        elif value in ("None", "none") and _takes_none(config, field):
            *sections, last = field.split(".")
            functools.reduce(getattr, sections, config)[last] = None
            argv = [other for other in argv if other != arg]
    argv = argv[:place] + argv[place + (1 if equals else 2) :]
    config_flags.DEFINE_config_dict("config", config, CONFIG_HELP, values, sys_argv=argv)
    return argv


def config_arguments(argv: Sequence[str]) -> list[str]:
    """Those of argv that choose the experiment: --config=FILE first, then its overrides as they were given."""
    place = next(i for i, arg in enumerate(argv) if arg == "--config" or arg.startswith("--config="))
    file = argv[place] if "=" in argv[place] else f"--config={argv[place + 1]}"
    overrides = []
    for arg in argv:
        if arg.lstrip("-").startswith(("config.", "noconfig.")) and arg.startswith("-"):
            bare_name = "=" not in arg and arg.endswith(".name")
            overrides.append(f"{arg}={_value_of(arg, argv)}" if bare_name else arg)
    return [file, *overrides]


def read_config(arguments: Sequence[str]) -> ExperimentConfig:
    """The experiment that --config=FILE and overrides of its fields give, as every command reads them.

    Raises ConfigError for a file, a field or a value that is wrong.
    """
    values = flags.FlagValues()
    try:
        values(_define_config(values, ["clipjax", *arguments]))
    except ConfigError:
        raise
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(_expected(str(error))) from error
    return experiment_of(values, fetch=False)


def _value_of(arg: str, argv: Sequence[str]) -> str:
    """The value of --name=value, or of --name value."""
    _, equals, value = arg.partition("=")
    if equals:
        return value
    following = argv[argv.index(arg) + 1 :]
    if not following:
        raise ConfigError(f"{arg} has no value; expected {arg}=value.")
    return following[0]


def _takes_none(config: ConfigDict, field: str) -> bool:
    """Whether None on the command line is no text: `build` then refuses it where the field needs a value."""
    return not isinstance(functools.reduce(getattr, field.split("."), config), str)


def positional(argv: Sequence[str], count: int, usage: str) -> tuple[str, list[str], list[str]]:
    """(command, the first `count` arguments, the flags after them). Fewer exit with 2, unless --help is among them."""
    places = [arg for arg in argv[1 : count + 1] if arg and not arg.startswith("-")]
    if len(places) < count and not any(arg in ("--help", "-h") for arg in argv):
        fail(f"usage: {usage}. Try --help.")
    check_places([("", place) for place in places])
    return argv[0], places, list(argv[1 + len(places) :])


def run_command(flag_values: flags.FlagValues, body: Callable[[], object], *, cache: bool = True) -> None:
    """Joins the processes of the run and calls body; clipjax's own errors become one line and exit code 1.

    cache: whether compiled programs are kept for the next start, and taken from the last one.
    """
    # Imported here, so that wrong flags are reported without JAX.
    import jax

    from clipjax.machine.compilation_cache import open_cache, quiet_failures
    from clipjax.mesh import initialize_distributed
    from clipjax.processes import announce, stopping_together, take_back_sigterm

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # absl's logging and Grain's workers would wait for it; no command uses FLAGS
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(_printable)
    if PROCESS_FLAGS[0] in flag_values:  # elsewhere each process works alone
        with one_line_errors():
            try:
                initialize_distributed(*(flag_values[name].value for name in PROCESS_FLAGS))
            except ConfigError as error:
                fail(error)
    take_back_sigterm()
    with one_line_errors(), stopping_together(), quiet_failures():
        lines = environment.lines()
        if cache:
            lines.append(open_cache())
        else:
            jax.config.update("jax_enable_compilation_cache", False)
        for line in lines if environment.command() in TELLING else ():
            announce(line)
        body()


def _printable(record: LogRecord) -> bool:
    """Escapes what a terminal would obey: messages name files, keys and captions, which anyone may have written."""
    record.msg, record.args = message_text(record.getMessage()), ()
    return True


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors of clipjax and of files become one line and exit code 1."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if type(error).__module__.startswith("clipjax."):
            fail(error, code=1)
        if isinstance(error, OSError) and error.strerror:
            fail(os_reason(error), code=1)
        raise


def os_reason(error: OSError) -> str:
    """'runs/x/metrics.jsonl: No space left on device. Make room, ...'"""
    room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = " Make room and run the command again; what is complete is kept." if room else ""
    return f"{error.filename}: {error.strerror}.{cure}" if error.filename else f"{error.strerror}.{cure}"


def fail(error: object, code: int = 2) -> None:
    """Prints one line and exits."""
    print(f"error: {message_text(error)}", file=sys.stderr, flush=True)
    sys.exit(code)


def _expected(message: str) -> str:
    """The message of a flag's parser, with what was expected instead of the Python call that failed."""
    for failure, expected in (
        ("invalid literal for int()", "a whole number"),
        ("could not convert string to float", "a number"),
        ("('Non-boolean argument", "true or false"),
    ):
        if failure in message:
            flag = message[: message.index(failure)].rstrip(": ").removeprefix("flag ")
            return f"{flag}: expected {expected}."
    return message


def _describe(flag: flags.Flag) -> str:
    return f"  --{flag.name}\n        {flag.help}"
