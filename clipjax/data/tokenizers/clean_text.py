"""Cleaning of a text before it is split into pieces."""

from __future__ import annotations

import functools
import html
import re
import string
from collections.abc import Callable

from clipjax.config import ConfigError, TokenizerConfig

# Printable ASCII and white space without "&": ftfy and html.unescape change nothing in it except white space.
PLAIN = re.compile(r"[\t\n\r -%'-~]*")


def make_clean(config: TokenizerConfig) -> Callable[[str], str] | None:
    """A function text -> text for config's clean, canonicalize and lowercase; None where all are off (None is off).

    Can be pickled. Raises ConfigError where config.clean is set and ftfy is not installed.
    """
    steps: list[Callable[[str], str]] = []
    if config.clean:
        _ftfy()
        steps.append(repair)
    if config.canonicalize:
        steps.append(functools.partial(canonicalize, drop_underscore=config.drop_underscore))
    if config.lowercase:
        steps.append(str.lower)
    return functools.partial(_all, steps) if steps else None


def repair(text: str) -> str:
    """Undoes wrong encodings, ligatures and curly quotes (ftfy), resolves HTML entities twice, joins and strips white
    space: basic_clean and whitespace_clean of openai/CLIP's simple_tokenizer.py."""
    if not PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(_ftfy()(text)))
    return " ".join(text.split())


def canonicalize(text: str, drop_underscore: bool = False) -> str:
    """Removes ASCII punctuation ("_" becomes a space), joins white space and strips it.

    The canonical form of big_vision's zero-shot evaluator (evaluators/proj/image_text/prompt_engineering.py).
    drop_underscore: remove "_" too, as transformers' SiglipTokenizer does.
    """
    text = text if drop_underscore else text.replace("_", " ")
    return re.sub(r"\s+", " ", text.translate(PUNCTUATION)).strip()


PUNCTUATION = str.maketrans("", "", string.punctuation)


def _all(steps: list[Callable[[str], str]], text: str) -> str:
    for step in steps:
        text = step(text)
    return text


@functools.cache
def _ftfy() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError as error:
        raise ConfigError("config.tokenizer.clean needs ftfy, which is not installed: pip install ftfy.") from error
    return ftfy.fix_text
