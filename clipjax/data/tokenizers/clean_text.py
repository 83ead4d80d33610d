"""What happens to a text before it is cut into pieces."""

from __future__ import annotations

import functools
import html
import re
import string
from collections.abc import Callable

from clipjax.config import ConfigError, TokenizerConfig

# Printable ASCII and white space without "&": nothing in it for ftfy or html.unescape to change but the white space.
PLAIN = re.compile(r"[\t\n\r -%'-~]*")


def make_clean(config: TokenizerConfig) -> Callable[[str], str] | None:
    """Text -> text by config's clean, canonicalize and lowercase (None counts as False); None: nothing to do.

    Raises ConfigError where config.clean is set and ftfy is not installed. Picklable.
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
    """Wrong encodings, ligatures and curly quotes undone by ftfy, HTML entities resolved twice, white space joined and
    stripped: openai/CLIP simple_tokenizer.py basic_clean and whitespace_clean."""
    if not PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(_ftfy()(text)))
    return " ".join(text.split())


def canonicalize(text: str, drop_underscore: bool = False) -> str:
    """Without ASCII punctuation ("_" becomes a space), runs of white space as one space, stripped: the
    canonical form of big_vision's zero-shot evaluator (evaluators/proj/image_text/prompt_engineering.py).

    drop_underscore: "_" is dropped like the rest, as transformers' SiglipTokenizer does.
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
        raise ConfigError(
            "config.tokenizer.clean needs ftfy, which is not installed: pip install 'clipjax[interop]'."
        ) from error
    return ftfy.fix_text
