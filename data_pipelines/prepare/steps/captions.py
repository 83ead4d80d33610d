"""Cleans captions, and leaves out those that are not language, too short, too long or in another script.

Scripts are told apart by the Unicode names of letters; steps/languages.py tells languages apart.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import re
import unicodedata

from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.records import RecordError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.types import Example, Note

SCRIPTS = (
    "arabic", "armenian", "bengali", "cyrillic", "devanagari", "ethiopic", "georgian", "greek", "gujarati", "gurmukhi",
    "hangul", "han", "hebrew", "hiragana", "kannada", "katakana", "khmer", "lao", "latin", "malayalam", "mongolian",
    "myanmar", "oriya", "sinhala", "tamil", "telugu", "thai", "tibetan",
)  # fmt: skip
_SCRIPT_SHARE = 0.9  # of the letters, for a caption to be of the scripts asked for
_MAX_CHARACTERS = 4000  # a longer text is not a caption and would slow down the regular expressions
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\S+")
# File names as cameras, phones and screen shots make them, and any file name with its suffix.
_FILE_NAME = re.compile(
    r"(?i)(?:(?:img|image|dsc[fn]?|pict?|p|photo|screenshot|untitled|wp|vid|mvi)[\s_-]*\(?[\d\s_()-]+\)?)"
    rf"|\S+(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})|[0-9a-f]{{16,}}"
)


def captions(example: Example, options: Options, note: Note) -> Example:
    """The example with its captions cleaned, each once. Raises RecordError where none is left."""
    kept: dict[str, str] = {}  # caption in lower case -> caption; keeps each once
    causes = []
    for text in example.texts:
        cleaned = text[:_MAX_CHARACTERS]
        cleaned = clean(cleaned) if options.clean_captions else " ".join(cleaned.split())
        cause = fault(cleaned, options) if len(text) <= _MAX_CHARACTERS else "too many characters"
        if cause:
            causes.append(cause)
            note(f"caption left out: {cause}", example.key, text)
        else:
            if cleaned != text:
                note("caption cleaned", example.key, text)
            kept.setdefault(cleaned.lower(), cleaned)
    if not kept:
        raise RecordError(f"no caption left: {causes[0]}" if causes else "no caption", " | ".join(example.texts))
    return dataclasses.replace(example, texts=tuple(kept.values()))


def clean(text: str) -> str:
    """The text with entities resolved, without HTML tags, addresses and control characters, in NFC, spaces joined."""
    text = _ADDRESS.sub(" ", _TAG.sub(" ", html.unescape(html.unescape(text))))
    # Of category Cf the joiners stay: emoji and Indic scripts need them.
    text = "".join(
        c if c in "\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs") else " " for c in text
    )
    return " ".join(unicodedata.normalize("NFC", text).split())


def fault(text: str, options: Options) -> str:
    """Why a caption is left out; "" if it is kept."""
    words = text.split()
    letters = [c for c in text if c.isalpha()]
    if not text:
        return "empty"
    if options.clean_captions and _FILE_NAME.fullmatch(text):
        return "a file name"
    if len(letters) < options.min_letters:
        return "hardly a letter"
    if len(words) < options.min_words:
        return "too few words"
    if options.max_words and len(words) > options.max_words:
        return "too many words"
    if options.scripts:
        share = sum(script(c) in options.scripts for c in letters) / max(1, len(letters))
        if share < _SCRIPT_SHARE:
            return "another script"
    return ""


@functools.lru_cache(1 << 16)
def script(letter: str) -> str:
    """The script of a letter: one of SCRIPTS, or else the first word of its Unicode name."""
    name = unicodedata.name(letter, "").lower()
    if name.startswith("cjk"):
        return "han"
    return next((word for word in name.split() if word in SCRIPTS), name.partition(" ")[0])
