"""Configuration errors, and helpers for their messages."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
from collections.abc import Iterable, Iterator

_collected: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("collected", default=None)


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the field, the value, and what to do."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless condition holds; within `collecting`, notes the message instead."""
    if condition:
        return
    collected = _collected.get()
    if collected is None:
        raise ConfigError(message)
    collected.append(message)


@contextlib.contextmanager
def collecting() -> Iterator[list[str]]:
    """Collects the messages of all failing `require` calls in the block, and goes on after each.

    Code after a failed check may meet values that it was promised not to meet. So an exception ends the block, and is
    raised only if nothing was collected before it; an error of clipjax is added to the list.
    """
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    except ConfigError as error:
        messages.append(str(error))
    except Exception:
        if not messages:
            raise
    finally:
        _collected.reset(token)


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
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    return (f" Did you mean '{close[0]}'?" if close else "") + f" Known: {', '.join(known)}."
