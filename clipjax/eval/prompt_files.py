"""Class names and prompt templates in the files in which published sets have them.

read_templates("templates.txt")                                            # a template a line
read_templates("en_zeroshot_classification_templates.json", "imagenet1k")  # CLIP_benchmark's, by data set
read_class_names("clip_benchmark/datasets", "imagenet1k", language="it")   # its folder of it_classnames.json, ...
read_class_prompts("cupl_prompts.json", "imagenet1k")                      # prompts of each class
read_translated_classes("babel_imagenet.json", "sw")                       # the classes that have a Swahili name
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipjax.config import ConfigError, nearest, require
from clipjax.data.labels import read_class_names as read_names
from clipjax.data.templates import TemplateError, pieces_of, read_template_lines
from clipjax.files import TextFileError
from clipjax.json_files import read_json

NAMES_SUFFIX = "_classnames.json"
TEMPLATES_SUFFIX = "_zeroshot_classification_templates.json"
SHOWN = 12  # keys of a file that an error lists


def read_templates(path: str | Path, dataset: str = "", language: str = "") -> tuple[str, ...]:
    """The templates of a file, each with a place for the class name.

    path: a text file with a template a line; a JSON file with a list, or with lists by data set or language; or a
    folder with files LANGUAGE_zeroshot_classification_templates.json. dataset: as CLIP_benchmark names it; of
    "wds/imagenet1k" the file may have "imagenet1k". Raises ConfigError for a file, data set or language that is not
    there, listing those that are, and for a template without a place, quoting it.
    """
    path = _file(path, language, TEMPLATES_SUFFIX)
    if path.suffix.lower() != ".json":
        _no_choice(path, dataset, language)
        return _read(path, read_template_lines)
    value, place = _select(path, dataset, language)
    require(
        not isinstance(value, dict),
        f"{place} has prompts of each class, not templates; read them with read_class_prompts.",
    )
    templates = _texts(value, place, "templates")
    for number, template in enumerate(templates):
        try:
            pieces_of(template)
        except TemplateError as error:
            raise ConfigError(f"{place}, number {number}: {error}") from error
    return templates


def read_class_names(path: str | Path, dataset: str = "", language: str = "") -> tuple[str, ...]:
    """The class names of a file; the first is that of label 0.

    path: a text file with a name a line; a JSON file with a list, or with lists by data set or language; or a folder
    with files LANGUAGE_classnames.json. Raises ConfigError as read_templates does, and for a file of Babel-ImageNet's
    kind, which names only some of the classes.
    """
    path = _file(path, language, NAMES_SUFFIX)
    if path.suffix.lower() != ".json":
        _no_choice(path, dataset, language)
        names = _read(path, read_names)
        require(len(names) > 0, f"{path} is empty; expected one class name per line.")
        return names
    value, place = _select(path, dataset, language)
    require(not isinstance(value, dict), f"{place} is an object, expected a list of class names.")
    require(
        not _is_translated(value),
        f"{place} has the numbers of some classes and their names; read them with read_translated_classes.",
    )
    return _texts(value, place, "class names", empty=True)


def read_class_prompts(path: str | Path, dataset: str = "", language: str = "") -> dict[str, tuple[str, ...]]:
    """{class name: its prompts} of a JSON file such as CuPL's, {data set: {class name: [prompt, ...]}}.

    The level of data sets may be missing. Raises ConfigError as read_templates does.
    """
    value, place = _select(_file(path, language, ""), dataset, language, leaf=_is_prompts)
    require(_is_prompts(value), f"{place} is no object of lists of prompts by class name.")
    return {name: _texts(texts, f"{place}, class '{name}'", "prompts") for name, texts in value.items()}


def prompts_of_classes(prompts: Mapping[str, Sequence[str]], class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """The prompts of each class name, in the order of the names.

    Names are compared as they are, then without regard to case and "_". Raises ConfigError for a class without prompts.
    """
    plain = {_plain(name): name for name in prompts}
    missing = [name for name in class_names if name not in prompts and _plain(name) not in plain]
    require(
        not missing,
        f"{len(missing)} of {len(class_names)} classes have no prompts, such as '{(missing or [''])[0]}'."
        f"{nearest(missing[0], prompts) if missing else ''}",
    )
    return [tuple(prompts[name if name in prompts else plain[_plain(name)]]) for name in class_names]


def read_translated_classes(path: str | Path, language: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(numbers of the classes that have a name in the language, increasing, and their names) of a JSON file.

    The file is of Babel-ImageNet's kind, {language: [[numbers], [names]]}. Raises ConfigError for a language that is
    not there, for lists of two lengths, and for numbers that are not distinct whole numbers from 0.
    """
    value, place = _select(Path(path), "", language)
    require(_is_translated(value), f"{place} is not a list of class numbers and a list of their names.")
    numbers, names = value
    names = _texts(names, place, "class names", empty=True)
    require(len(numbers) == len(names), f"{place} has {len(numbers)} class numbers and {len(names)} names.")
    wrong = [number for number in numbers if type(number) is not int or number < 0]
    require(not wrong, f"{place} has {wrong[:1]} among the class numbers, expected whole numbers from 0.")
    repeated = [number for number, count in collections.Counter(numbers).items() if count > 1]
    require(not repeated, f"{place} has the class {repeated[:1]} more than once.")
    pairs = sorted(zip(numbers, names, strict=True))
    return tuple(number for number, _ in pairs), tuple(name for _, name in pairs)


def _file(path: str | Path, language: str, suffix: str) -> Path:
    """The file itself, or that of the language in a folder. Raises ConfigError, listing the folder's languages."""
    path = Path(path)
    if path.is_dir() and suffix:
        found = sorted(file.name.removesuffix(suffix) for file in path.glob(f"*{suffix}"))
        require(found, f"{path} has no file LANGUAGE{suffix}.")
        language = language or "en"
        require(language in found, f"{path} has no {language}{suffix}; its languages are {', '.join(found)}.")
        return path / f"{language}{suffix}"
    require(path.is_file(), f"{path} is not a file.")
    own = path.name.removesuffix(suffix) if suffix and path.name.endswith(suffix) else ""
    require(
        not (own and language and language != own),
        f"{path} is of the language '{own}', not '{language}'; name {language}{suffix}, or the folder.",
    )
    return path


def _no_choice(path: Path, dataset: str, language: str) -> None:
    asked = dataset or language
    require(not asked, f"{path} is a text file with one list; it has none for '{asked}'. Only JSON files have several.")


def _read(path: Path, read: Any) -> tuple[str, ...]:
    try:
        return read(path)
    except (OSError, TextFileError) as error:
        raise ConfigError(str(error)) from error


def _select(path: Path, dataset: str, language: str, leaf: Any = lambda value: False) -> tuple[Any, str]:
    """(what a JSON file has for a data set and a language, the place that names it in errors). Raises ConfigError.

    The file may have either, both or none as levels of keys; the language may be that of the file's name. leaf: whether
    an object is what is looked for, and no further level.
    """
    require(path.is_file(), f"{path} is not a file.")
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    of_name = path.name.startswith(f"{language}_") if language else True
    left, place = [key for key in (dataset, language) if key], str(path)
    while isinstance(value, dict) and left:
        found = [(key, own) for key in left if (own := _own_key(value, key)) is not None]
        if not found:
            break
        key, own = found[0]
        left.remove(key)
        value, place = value[own], f"{place}, '{own}'"
    left = [key for key in left if key != language or not of_name]
    if isinstance(value, dict) and (left or not leaf(value)):
        keys = ", ".join(f"'{key}'" for key in list(value)[:SHOWN]) + (", ..." if len(value) > SHOWN else "")
        if left:
            raise ConfigError(f"{place} has no '{left[0]}'. It has {len(value)}: {keys or 'nothing'}.")
        if not all(isinstance(texts, list) for texts in value.values()) or not dataset:
            raise ConfigError(f"{place} has several lists; say which of them: {keys or 'it is empty'}.")
    elif left:
        raise ConfigError(f"{place} has one list, and none for '{left[0]}'.")
    return value, place


def _own_key(value: Mapping[str, Any], key: str) -> str | None:
    """The object's key for a data set or language: itself, its name after the "/", or in other capitals."""
    for name in (key, key.partition("/")[2]):
        if name in value:
            return name
    same = [own for own in value if own.lower() == key.lower()]
    return same[0] if len(same) == 1 else None


def _texts(value: Any, place: str, what: str, empty: bool = False) -> tuple[str, ...]:
    """The texts of a list. Raises ConfigError for anything else, and for empty ones unless they may be."""
    require(isinstance(value, list) and len(value) > 0, f"{place} has no {what}; expected a list of texts.")
    for number, text in enumerate(value):
        require(isinstance(text, str), f"{place}, number {number} is {str(text)[:40]!r}, expected a text.")
        require(empty or text.strip(), f"{place}, number {number} is empty.")
    return tuple(value)


def _is_translated(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, list) for one in value)


def _is_prompts(value: Any) -> bool:
    lists = isinstance(value, dict) and all(isinstance(texts, list) for texts in value.values())
    return lists and all(isinstance(text, str) for texts in value.values() for text in texts)


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()
