"""The paths in a configuration: every field that declares one, changed by one function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from clipjax.config.fields import Path, metadata

T = TypeVar("T")


def map_paths(config: T, change: Callable[[str, str, Path], str]) -> T:
    """The configuration with change(dotted name, value, what kind of path) for every path that is not empty."""
    return _map(config, change, "")


def _map(config: Any, change: Callable[[str, str, Path], str], prefix: str) -> Any:
    changed = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            new = _map(value, change, f"{name}.")
        elif isinstance(value, Mapping):
            new = {key: _map(item, change, f"{name}.{key}.") for key, item in value.items()}
        else:
            declared = metadata(type(config), field.name).get("declaration")
            new = change(name, value, declared.path) if declared and declared.path and value else value
        if new != value:
            changed[field.name] = new
    return dataclasses.replace(config, **changed) if changed else config
