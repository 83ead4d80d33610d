"""Configuration errors, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the field, the value, and what to do."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless condition holds."""
    if not condition:
        raise ConfigError(message)


def shown(value: object) -> str:
    """A value as it is shown in a message: its repr, cut to 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "an enormous integer"
    return text if len(text) <= 200 else f"{text[:180]} ... ({len(text):,} characters)"


def nearest(name: object, known: Iterable[str]) -> str:
    """' Did you mean ...? Known: ...' for an error about an unknown name."""
    known = sorted(known)
    return f"{meant(name, known)} Known: {', '.join(known)}."


def meant(name: object, known: Iterable[str]) -> str:
    """' Did you mean ...?' for an unknown name; "" where none is near it."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    return f" Did you mean '{close[0]}'?" if close else ""
