"""Loads an experiment file: path.py, or path.py:argument."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from clipjax.config import ConfigError, EvaluationConfig, ExperimentConfig, build, require, to_config_dict
from clipjax.config.reading import SectionDict, tied_fields


def load_config_file(path: str, *, evaluation: bool = False) -> ConfigDict:
    """What the file's get_config returns, as a ConfigDict that has every field.

    path: "path.py", or "path.py:argument" for get_config(argument). get_config may return default_config() with
    changes, a ConfigDict or dict of the fields that differ from the defaults, or an ExperimentConfig. evaluation:
    whether it may also return eval_config(), which has no model, with changes.
    Raises ConfigError naming the file, and the line where it fails.
    """
    name, colon, argument = path.partition(":")
    file = Path(name)
    require(file.is_file(), f"{name}: there is no such file; try experiments/quickstart.py.")
    require(file.suffix == ".py", f"{name} is not a Python file; expected one that defines get_config().")
    spec = importlib.util.spec_from_file_location("clipjax_experiment", file.absolute())
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(_where(file, error)) from error
    get_config = getattr(module, "get_config", None)
    require(
        callable(get_config),
        f"{name} defines no function get_config(); expected one that returns clipjax.config.default_config() with "
        "changes (see experiments/quickstart.py).",
    )
    given = (argument,) if colon else ()
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError as error:
        raise ConfigError(
            f"{name}: get_config{inspect.signature(get_config)} does not take {len(given)} argument(s), which "
            f"--config={path} gives it ({error}). What follows the colon of path.py:argument is its argument."
        ) from error
    try:
        config = get_config(*given)
    except (Exception, SystemExit) as error:
        raise ConfigError(_where(file, error)) from error
    return _complete(config, name, evaluation)


def _complete(config: Any, name: str, evaluation: bool) -> ConfigDict:
    """config as default_config() would have it, or, for an evaluation, eval_config()."""
    if isinstance(config, ExperimentConfig | EvaluationConfig):
        config = to_config_dict(config)
    if tied := tied_fields(config):
        logging.warning(
            "%s ties config.%s to other fields (get_ref), but a flag moves only the field that it names. Set each by a "
            "flag, or use an argument of get_config.", name, ", config.".join(tied),
        )  # fmt: skip
    if isinstance(config, SectionDict):
        require(
            evaluation or "model" in config,
            f"{name} has evaluators and no model (clipjax.config.eval_config): use it with clipjax eval "
            f"--checkpoint=... --config={name}. Other commands need clipjax.config.default_config().",
        )
        kind = ExperimentConfig if "model" in config else EvaluationConfig
        try:
            return to_config_dict(build(kind, config))  # a section that the file replaced may lack fields
        except ConfigError:
            return config  # which flags may mend; else it is refused where it is read
    require(
        isinstance(config, ConfigDict | Mapping),
        f"{name}: get_config() returned {config!r:.80}"
        + (" (is its return statement missing?)" if config is None else "")
        + "; expected a ConfigDict, such as clipjax.config.default_config() with changes.",
    )
    known = {field.name for field in dataclasses.fields(EvaluationConfig)}
    only_eval = evaluation and "eval" in config and known.issuperset(config)
    return to_config_dict(build(EvaluationConfig if only_eval else ExperimentConfig, config))


def _where(file: Path, error: BaseException) -> str:
    """One line: the file, the line that failed, and the error."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == file.absolute():
        return f"{file}, line {error.lineno}: {error.msg} ({(error.text or '').strip()[:60]!r})."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file.absolute()]
    line = f", line {frames[-1].lineno}" if frames else ""
    return f"{file}{line}: {type(error).__name__}: {text[:300]}"
