"""Captions in the languages asked for, by py3langid: naive Bayes over bytes (langid.py, Lui & Baldwin 2012, P12-3005).

A few words tell a language only sometimes, names and numbers hardly ever. The model knows: its probabilities spread
over many languages then. So a caption goes only when one other language is likely and those asked for are not; what is
between is undecided, and told apart in the report.
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

# Languages asked for that are together as likely as this are not excluded by a likelier relative of theirs: "old wooden
# door" is 77 % Dutch and 8 % English. Of 100 captions of one to ten words none is lost with it, two without.
_STILL_POSSIBLE = 0.05
_TITLE_WORDS = 4  # from here on titles ("Old Wooden Door of a Barn") are read as what they are, not as names
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

    A language asked for, if those have options.language_confidence together; another one, if it has that alone and
    those asked for are out of the question.
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
    """Codes of the languages that can be asked for. Raises PipelineError without py3langid."""
    return tuple(sorted(set(_load().labels) - {_NO_LANGUAGE}))


def model(options: Options) -> str:
    """What judges, for fingerprints; "": nothing does."""
    if not options.languages:
        return ""
    _load()  # its error says what to install on a worker that lacks it
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
