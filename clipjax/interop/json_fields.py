"""Fields of the JSON files beside published weights: each is what it must be, or refused by file and name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from clipjax.config import nearest
from clipjax.config.errors import shown
from clipjax.files import printable
from clipjax.interop.names import InteropError

MOST = 2**31 - 1  # of sizes and counts


def whole_number(value: Any, where: str, least: int = 1) -> int:
    """A JSON number without a fraction, at least `least`. Raises InteropError; where: file and field, for messages."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not (least <= number <= MOST and number == int(number)):
        raise InteropError(f"{where}={shown(value)} is not supported; expected a whole number of at least {least}.")
    return int(number)


def square(value: Any, where: str) -> int:
    """A size as one number, or as height and width that are equal. Raises InteropError; where: file and field."""
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise InteropError(
            f"{where}={shown(value)} is not supported; expected one number, or two that are equal (a square)."
        )
    return whole_number(sides[0], where)


def three_numbers(value: Any, where: str) -> tuple[float, ...]:
    """One number, or one for each of red, green and blue, as three. Raises InteropError; where: file and field."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    known = [n for n in numbers if isinstance(n, (int, float)) and not isinstance(n, bool) and -1e9 < n < 1e9]
    if len(numbers) != 3 or len(known) != 3:
        raise InteropError(
            f"{where}={shown(value)} is not supported; expected a number, or one each of red, green and blue."
        )
    return tuple(map(float, numbers))


def refuse_unknown(config: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises InteropError for a field that is not known, unless it is null; where: file and section, for messages."""
    if not isinstance(config, Mapping):
        raise InteropError(f"{where} is {shown(config)}; expected an object of fields and values.")
    known = set(known)
    for name, value in config.items():
        if name not in known and value is not None:
            raise InteropError(
                f"{where} has an unknown field {printable(name)}={shown(value)}, which may change what is computed."
                f"{nearest(name, known)} Remove it if it has no effect."
            )
