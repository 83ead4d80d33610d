"""The prompts of classes and their embeddings: a class's embedding is the normalised mean of its prompts'.

Prompt ensembling as in Radford et al. (2103.00020, section 3.1.4).
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from clipjax.config import ConfigError, require
from clipjax.eval.embeddings import NotFinite, broken_rows, not_finite_error
from clipjax.eval.prompt_files import prompts_of_classes, read_class_prompts, read_templates
from clipjax.eval.prompts import fill

PROMPTS_AT_A_TIME = 8192  # bounds host memory: the embeddings of 21,000 classes in 80 prompts are 5 GB
BARE = ("{}",)


class ClassPrompts(NamedTuple):
    """The prompts of each class, and what they were made from."""

    of_class: list[list[str]]
    templates: tuple[str, ...]  # () where each class has prompts of its own

    def flat(self) -> list[str]:
        """All prompts: those of the first class, then those of the second, ..."""
        return [prompt for prompts in self.of_class for prompt in prompts]

    def document(self) -> dict[str, Any]:
        """What results keep: the templates, the number of prompts, and the SHA-256 of all prompts, a line each."""
        prompts = self.flat()
        digest = hashlib.sha256("\n".join(prompts).encode("utf-8", "surrogatepass")).hexdigest()
        return {"templates": list(self.templates), "number": len(prompts), "sha256": digest}


def class_prompts(config: Any, names: Sequence[str], templates: Sequence[str] = ()) -> ClassPrompts:
    """The prompts of every name by the options of a ClassesConfig; templates: the source's own.

    Raises ConfigError for a template without a place for the name, and for two of the options at once.
    """
    options = {name: getattr(config, name) for name in ("templates", "templates_file", "class_prompts")}
    given = [f"{name}={value!r}" for name, value in options.items() if value]
    require(len(given) <= 1, f"{' and '.join(given)} are both set; use one of them.")
    key = config.dataset, config.language
    files = [config.class_names, config.templates_file, config.class_prompts]
    require(
        not any(key) or any(map(has_several, files)),
        f"dataset='{key[0]}' and language='{key[1]}' select from JSON files or folders, but none of class_names, "
        "templates_file and class_prompts is one.",
    )
    try:
        if config.class_prompts:
            prompts = prompts_of_classes(read_class_prompts(config.class_prompts, *key), names)
            return ClassPrompts([list(own) for own in prompts], ())
        if path := config.templates_file:
            return _filled(read_templates(path, *(key if has_several(path) else ())), names)
    except ConfigError as error:
        option = "class_prompts" if config.class_prompts else "templates_file"
        raise ConfigError(f"{option}: {error}") from error
    return _filled(tuple(config.templates) or tuple(templates) or BARE, names)


def has_several(path: str) -> bool:
    """Whether a path is a folder or a file that may have names or templates of several data sets or languages."""
    return bool(path) and (Path(path).is_dir() or Path(path).suffix.lower() == ".json")


def _filled(templates: Sequence[str], names: Sequence[str]) -> ClassPrompts:
    prompts, count = fill(templates, names), len(templates)
    return ClassPrompts([prompts[i : i + count] for i in range(0, len(prompts), count)], tuple(templates))


def embed_classes(
    names: Sequence[str],
    prompts: ClassPrompts,
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    not_finite: NotFinite = "error",
) -> tuple[np.ndarray, int]:
    """The embeddings [C, D] float32 of C classes, and the number of indistinguishable classes.

    A class's embedding is the normalised mean of its prompts' normalised embeddings. Classes whose prompts all have
    the same tokens (equal names, names cut at the context length, words the tokenizer does not know) have equal
    embeddings; they are logged and counted. Raises EmbeddingError for an embedding that is not finite.
    """
    means, hashes = [], []
    for start, stop in _blocks([len(own) for own in prompts.of_class]):
        block = prompts.of_class[start:stop]
        flat = [prompt for own in block for prompt in own]
        tokens = tokenizer(flat)
        embedding = embed_texts(tokens)
        if len(broken := broken_rows(embedding, not_finite)):
            raise not_finite_error(f"the prompt '{flat[broken[0]]}'", broken, len(flat))
        first = np.concatenate([[0], np.cumsum([len(own) for own in block])]).astype(int)
        means.append(np.add.reduceat(embedding.astype(np.float64), first[:-1], axis=0) / np.diff(first)[:, None])
        rows = zip(first[:-1], first[1:], strict=True)
        hashes += [hashlib.sha256(tokens[a:b].tobytes()).digest() for a, b in rows]
    repeats = collections.Counter(hashes)
    first_of = {key: number for number, key in reversed(list(enumerate(hashes)))}
    mean = np.concatenate(means)[[first_of[key] for key in hashes]]  # of equal texts, equal to the last bit
    alike = [name for name, key in zip(names, hashes, strict=True) if repeats[key] > 1]
    if alike:
        logging.warning(
            "%d of %d classes have the same tokens in all prompts as another class, and are right only by the tie "
            "rule: %s", len(alike), len(names), ", ".join(f"'{name}'" for name in alike[:10]),
        )  # fmt: skip
    # Prompts whose embeddings cancel out, or are zeros, give zeros: a score that ties with every other such class.
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    unit = np.divide(mean, length, out=np.zeros_like(mean), where=length != 0).astype(np.float32)
    return unit, len(alike)


def _blocks(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive classes with at most PROMPTS_AT_A_TIME prompts in all, at least one class each: (first, stop)."""
    blocks, start, total = [], 0, 0
    for number, count in enumerate(counts):
        if number > start and total + count > PROMPTS_AT_A_TIME:
            blocks.append((start, number))
            start, total = number, 0
        total += count
    return [*blocks, (start, len(counts))]
