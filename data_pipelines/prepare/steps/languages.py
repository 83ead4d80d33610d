"""Keeps captions in the requested languages, by py3langid: naive Bayes over bytes (langid.py, Lui & Baldwin 2012,
P12-3005).

A few words often do not tell the language; names and numbers hardly ever do. The model then spreads its probability
over many languages. So a caption is left out only if one other language is likely and the requested ones are not.
Anything in between is undecided, and counted separately in the report.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import threading

from clipjax.data.records import RecordError
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.types import Example, Note

# At this probability or above, a likelier relative does not exclude the requested languages: "old wooden door" is 77 %
# Dutch and 8 % English. Without this rule 2 of 100 captions of one to ten words are lost, with it 0.
_STILL_POSSIBLE = 0.05
_TITLE_WORDS = 4  # from here on capitals mean a title ("Old Wooden Door of a Barn"), not a name
_NO_LANGUAGE = "zxx"  # ISO 639-2: no linguistic content
_LOCK = threading.Lock()  # workers may be threads of one process, which load one model


def languages(example: Example, options: Options, note: Note) -> Example:
    """The example with the captions of options.languages. Raises RecordError where none is left."""
    kept, causes = [], []
    for text in example.texts:
        language, likely = judge(text, options)
        if language in options.languages:
            note(f"caption in {language}", example.key, text)
        elif not language and options.keep_undecided:
            note("caption in an undecided language, kept", example.key, text)
        else:
            causes.append(f"another language: {language}" if language else "language undecided")
            note(f"caption left out: {causes[-1]}", example.key, f"{likely:.2f}: {text}")
            continue
        kept.append(text)
    if not kept:
        raise RecordError(f"no caption left: {causes[0]}", " | ".join(example.texts))
    return dataclasses.replace(example, texts=tuple(kept))


def judge(text: str, options: Options) -> tuple[str, float]:
    """The caption's ISO 639 code, or "" if undecided, and the probability of the likeliest language.

    A requested language, if the requested ones together reach options.language_confidence. Another one, if it reaches
    that alone and the requested ones are below _STILL_POSSIBLE.
    """
    ranked = _load().rank(text.lower() if len(text.split()) >= _TITLE_WORDS else text)
    likeliest, likely = ranked[0]
    asked = [(code, value) for code, value in ranked if code in options.languages]
    together = sum(value for _, value in asked)
    if together >= options.language_confidence:
        return asked[0][0], likely
    if likely >= options.language_confidence and together < _STILL_POSSIBLE and likeliest != _NO_LANGUAGE:
        return likeliest, likely
    return "", likely


def known() -> tuple[str, ...]:
    """The codes that --languages takes. Raises PipelineError without py3langid."""
    return tuple(sorted(set(_load().labels) - {_NO_LANGUAGE}))


def model(options: Options) -> str:
    """The model and its version, for fingerprints; "" without --languages."""
    if not options.languages:
        return ""
    _load()  # on a worker without it, the error says what to install
    return f"py3langid {importlib.metadata.version('py3langid')}"


def _load():
    with _LOCK:
        return _loaded()


@functools.cache
def _loaded():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise PipelineError(
            f"--languages needs py3langid, which cannot be imported ({error}): pip install 'clipjax[pipelines]'."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
