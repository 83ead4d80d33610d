"""The classes that an evaluator tells apart: their names, and which label each name belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from absl import logging

from clipjax.config import ConfigError, EvaluatorConfig, require
from clipjax.config.fields import runtime
from clipjax.data.labels import are_numbers, first_difference, match_names
from clipjax.eval.class_prompts import class_prompts, has_several
from clipjax.eval.embeddings import NotFinite, Where, record_name
from clipjax.eval.prompt_files import read_class_names
from clipjax.files import TextFileError

Ties = Literal["against", "first"]


@dataclass(frozen=True)
class ClassesConfig(EvaluatorConfig):
    """The options of evaluators that compare images with classes, each embedded from prompts with its name."""

    # A text file with one name per line, or a JSON file or folder that `dataset` and `language` select from. "": the
    # names that come with the source.
    class_names: str = runtime("", path="own")
    rename: bool = runtime(False)  # class_names gives other names to the source's classes, line by line
    # Prompts; "{}" stands for the class name. (): the source's own templates, or ("{}",) where it has none.
    templates: tuple[str, ...] = runtime(())
    # a file of templates, read as class_names is, instead of templates
    templates_file: str = runtime("", path="own")
    # a JSON file with the prompts of each class (CuPL), instead of templates
    class_prompts: str = runtime("", path="own")
    dataset: str = runtime("")  # the key of these files for this set, such as "imagenet1k"
    language: str = runtime("")  # the language of class_names and templates_file, such as "it"
    ties: Ties = runtime("against")  # equal scores: against the model, or the class with the lowest index is first
    not_finite: NotFinite = runtime("error")  # NaN embeddings: refused, or counted as wrong answers

    def names_of_labels(self, class_names: Sequence[str]) -> Sequence[str]:
        """The name of each label, of the file or the source. Raises ConfigError."""
        names, lines = resolve_names(self, class_names)
        return [names[line] for line in lines]

    def prompts(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Sequence[str]:
        """Every prompt of every class; templates: the source's own. Raises ConfigError."""
        return class_prompts(self, resolve_names(self, class_names)[0], templates).flat()


def check_classes(
    config: ClassesConfig, *, class_names: Sequence[str] | None = None, templates: Sequence[str] = ()
) -> None:
    """Refuses templates that could not tell the classes apart, and class names that are not the source's.

    class_names, templates: the source's; None while it is not open yet. Raises ConfigError.
    """
    class_prompts(config, (), templates)
    if class_names is not None or config.class_names:
        class_prompts(config, resolve_names(config, class_names or ())[0], templates)


def check_labels(
    config: ClassesConfig, label: np.ndarray, index: np.ndarray, known: int, where: Where | None = None
) -> None:
    """Refuses labels [N] of the records index [N] that are not below `known`, and data without a label (-1: none).

    Raises ConfigError.
    """
    data = f"{config.source.path}, split '{config.source.split}'"
    if beyond := int(np.sum(label >= known)):
        row = int(np.argmax(label))
        raise ConfigError(
            f"{data}: {beyond} record(s) have a label of {known} or more, but there are {known} class names; "
            f"{record_name(int(index[row]), where)} has the label {label[row]}. Expected a name for every label, "
            f"counted from 0, in {names_of(config)}."
        )
    require(
        bool(np.any(label >= 0)),
        f"{data}: no record has a label to classify. Does the source's label_key name the field that has it?",
    )


def resolve_names(config: ClassesConfig, own: Sequence[str]) -> tuple[Sequence[str], list[int]]:
    """(names to classify among, the line of each of the source's labels in them).

    own: the source's names; () where labels are numbers without names, which are lines of the file. Names in another
    order are matched by name, and that is logged. With config.rename, the file's lines are other names of the same
    classes. Raises ConfigError where there are no names, and where a name of the source is not exactly one line of the
    file.
    """
    if not config.class_names:
        require(not config.rename, "rename=True needs class_names, the file with other names for the source's classes.")
        require(
            len(own) > 0,
            f"{config.source.path} names no classes; set the evaluator's class_names to a file with one name per line.",
        )
        if are_numbers(own):
            logging.warning("The classes of %s are named by their numbers: '%s' ...", config.source.path, own[0])
        return own, list(range(len(own)))
    names = _read_file(config)
    if not own:
        return names, list(range(len(names)))
    if config.rename:
        require(
            len(own) == len(names),
            f"class_names='{config.class_names}' has {len(names)} lines and {config.source.path} has {len(own)} "
            "classes; rename=True needs one line for each.",
        )
        return names, list(range(len(own)))
    lines = match_names(own, names)
    require(
        lines is not None,
        f"The class names of {config.source.path} and of class_names='{config.class_names}' differ: "
        f"{first_difference(own, names)}. Labels would mean other classes. Give the file the source's names, or set "
        "rename=True if its lines are other names of the same classes, in the same order.",
    )
    if lines != list(range(len(own))):
        logging.warning(
            "%s has its class names in another order than class_names='%s': labels are matched by name.",
            config.source.path, config.class_names,
        )  # fmt: skip
    return names, lines


def _read_file(config: ClassesConfig) -> Sequence[str]:
    path = config.class_names
    several = has_several(path)
    require(
        several or Path(path).is_file(),
        f"class_names='{path}' is not a file; expected a text file with one class name per line.",
    )
    try:
        return read_class_names(path, *((config.dataset, config.language) if several else ()))
    except (ConfigError, OSError, TextFileError) as error:
        raise ConfigError(f"class_names='{path}' cannot be read: {error}") from error


def names_of(config: ClassesConfig) -> str:
    return config.class_names or f"the class names of {config.source.path}"
