"""What differs between two configurations, and what each field says about a difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config.fields import Declaration, declarations


def flat(config: Any) -> dict[str, Any]:
    """{"optimizer.name": "lion", ...}: every field by its dotted name; tuples become lists, as in JSON."""
    return {name: _as_read(value) for name, value, _ in declarations(config)}


def declared(*configs: Any) -> dict[str, Declaration]:
    """Dotted name -> declaration of every field that any of the configurations has."""
    return {name: declaration for config in configs for name, _, declaration in declarations(config)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (old value, new value)} of every field that differs, sorted by name; None where one lacks the field."""
    names = sorted(old.keys() | new.keys())
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _as_read(value: Any) -> Any:
    return [_as_read(item) for item in value] if isinstance(value, list | tuple) else value
