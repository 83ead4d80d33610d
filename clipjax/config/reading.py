"""ConfigDict and JSON -> frozen dataclasses, and back; every field's name, type and range is checked on the way."""

from __future__ import annotations

import collections
import dataclasses
import functools
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, TypeVar

from ml_collections import ConfigDict, FieldReference, config_dict

from clipjax.config.errors import ConfigError, nearest, require, shown
from clipjax.config.fields import declarations, metadata, rows

T = TypeVar("T")


def build(cls: type[T], tree: Mapping[str, Any], path: str = "config") -> T:
    """A mapping (ConfigDict, or a dict read from JSON) -> an instance of the frozen dataclass cls.

    Raises ConfigError for an unknown field (naming the part that has it, or the nearest known one), for a wrong type,
    and for a value that is not among a field's choices.
    """
    kinds = _kinds(cls)
    for key in tree:
        if key not in kinds:
            raise ConfigError(f"Unknown field {path}.{key}.{nearest(key, kinds)}")
    return cls(**{key: _convert(kinds[key], tree[key], f"{path}.{key}", metadata(cls, key)) for key in tree})


def check_values(config: T, path: str = "config") -> T:
    """config, if all its numbers are within the ranges that their fields declare.

    path: what the dataclass is called in messages. Raises ConfigError with a line for every number that is not; NaN and
    the infinities are in no range.
    """
    wrong = []
    for name, value, declared in declarations(config):
        for number in value if isinstance(value, tuple) else (value,):
            if declared.within is not None and number is not None and number not in declared.within:
                wrong.append(f"{path}.{name}={shown(value)} must be {declared.within}.")
                break
    require(not wrong, "\n".join(wrong))
    return config


def to_config_dict(config: Any) -> ConfigDict:
    """A configuration dataclass as a ConfigDict: floats stay floats, tuples stay tuples.

    A ConfigDict of clipjax also takes the dataclass itself: `config.model = get_preset("siglip_b16")`.
    """
    return _fill(SectionDict(), config)


def tied_fields(given: Mapping[str, Any]) -> list[str]:
    """The dotted names of fields that share another one's value, or compute theirs from it (ConfigDict.get_ref)."""
    found = dict(_references(given))
    times = collections.Counter(map(id, found.values()))
    # A reference to a value alone, such as a placeholder, is an ordinary field.
    return [
        name
        for name, reference in found.items()
        if times[id(reference)] > 1 or isinstance(getattr(reference, "_value", None), FieldReference)
    ]


def _references(given: Any, prefix: str = "") -> Iterator[tuple[str, FieldReference]]:
    for key, value in given.items(preserve_field_references=True) if isinstance(given, ConfigDict) else ():
        if isinstance(value, FieldReference):
            yield f"{prefix}{key}", value
        else:
            yield from _references(value, f"{prefix}{key}.")


def require_field(config: ConfigDict, name: str) -> None:
    """Raises ConfigError unless the dotted name is a field of config.

    The message names the part that has such a field, or the nearest field.
    """
    section, path = config, "config"
    whole, index, _ = name.partition("[")
    for key in whole.split("."):
        known = list(section) if isinstance(section, ConfigDict) else []
        if key not in known:
            table = rows(section._table) if isinstance(section, SectionDict) and section._table else {}
            chosen = section["name"] if table else ""
            elsewhere = [field for field in _names(config) if field.rpartition(".")[2] == key][:3]
            hint = f" Fields of that name: {', '.join(f'config.{field}' for field in elsewhere)}." if elsewhere else ""
            raise ConfigError(f"no such field {path}.{key[:100]}" + _who_has_it(key, chosen, known, table, path) + hint)
        section, path = section[key], f"{path}.{key}"
    if isinstance(section, ConfigDict):
        raise ConfigError(
            f"{path} is a section; set its fields one by one: {', '.join(sorted(section)) or 'none yet'}."
        )
    if index:
        raise ConfigError(f"{path}={shown(section)} is set as a whole; expected {path}=value.")


def to_json_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of JSON values; `build` gives the same dataclass back."""
    return dataclasses.asdict(config)


class SectionDict(ConfigDict):
    """A section of a configuration. If a `name` chooses its fields, setting another name swaps the fields.

    Values that were set stay, if the new part has the field too. Fields at the old part's defaults take the new
    part's defaults. Fields that only the old part has are removed. An unknown name is kept, for `build` to refuse.
    """

    def __init__(self, initial_dictionary: Any = None, type_safe: bool = True, *, table: str = ""):
        object.__setattr__(self, "_table", table)  # the table that `name` selects from; "": no table
        super().__init__(initial_dictionary, type_safe)

    def __setitem__(self, key: str, value: Any) -> None:
        before = self.get(key)
        super().__setitem__(key, _as_sections(value))
        after = self[key]
        if isinstance(before, SectionDict) and isinstance(after, SectionDict) and not after._table:
            object.__setattr__(after, "_table", before._table)  # another section replaced this one as a whole
        if key == "name" and self._table and before is not None and value != before:
            table = rows(self._table)
            if value in table and before in table:
                self._exchange(table[before].config, table[value].config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "_table", "")  # ConfigDict fills the fields while it restores
        super().__setstate__(state)
        object.__setattr__(self, "_table", state["_table"])

    def _exchange(self, old: type, new: type) -> None:
        before = _fill(SectionDict(), old())
        name, found = self["name"], dict(self.items())
        kept = {key: value for key, value in found.items() if key not in before or value != before[key]}
        names = {field.name for field in dataclasses.fields(new)}
        with self.unlocked():
            for key in found:
                if key != "name":
                    del self[key]
            _fill(self, new(), leave_out=("name",))
            for key, value in kept.items():
                # Fields that the old part never had stay too; `build` refuses them if the new part lacks them as well.
                if key != "name" and (key in names or key not in before):
                    super().__setitem__(key, value)
            super().__setitem__("name", name)


_kinds = functools.cache(typing.get_type_hints)  # evaluating a dataclass's annotations takes a millisecond


def _fill(target: ConfigDict, config: Any, leave_out: tuple[str, ...] = ()) -> ConfigDict:
    kinds = _kinds(type(config))
    for field in dataclasses.fields(config):
        if field.name in leave_out:
            continue
        value, table = getattr(config, field.name), metadata(type(config), field.name).get("table", "")
        if dataclasses.is_dataclass(value):
            value = _section(value, table)
        elif isinstance(value, Mapping):
            value = SectionDict({key: _section(item, table) for key, item in value.items()})
        optional = [kind for kind in typing.get_args(kinds[field.name]) if kind is not type(None)]
        if type(None) in typing.get_args(kinds[field.name]):
            # ConfigDict fixes a field's type by its first value; a placeholder takes None and the other type.
            target[field.name] = config_dict.placeholder(optional[0])
        target[field.name] = value
    return target


def _names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields below a ConfigDict."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _as_sections(value: Any) -> Any:
    """Dataclasses, also those in a dict, as ConfigDicts, and a ConfigDict as a dict; any other value as it is."""
    if type(value) is ConfigDict:  # which is no section, and could not take the place of one
        value = value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_config_dict(value)
    return {key: _as_sections(item) for key, item in value.items()} if type(value) is dict else value


def _section(config: Any, table: str) -> ConfigDict:
    return _fill(SectionDict(table=table), config)


def _convert(kind: Any, value: Any, path: str, declared: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
    """value as `kind`, or ConfigError naming the field, what it is and what it must be."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    is_tree = isinstance(value, Mapping | ConfigDict)
    if origin is dict and is_tree:
        for key in value:
            if not isinstance(key, str) or not key or "/" in key:
                raise ConfigError(f"{path} has the name {shown(key)}; expected a non-empty name without '/'.")
        return {key: _convert(args[1], value[key], f"{path}.{key}", declared) for key in value}
    if is_tree and declared.get("table"):
        return _build_part(declared, value, path)
    if dataclasses.is_dataclass(kind) and is_tree:
        return build(kind, value, path)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path}={shown(value)} is not a choice.{nearest(str(value), map(str, args))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{path}={shown(value)} is too large for a floating-point number.") from None
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ConfigError(f"{path} is {shown(value)} ({type(value).__name__}); expected {expected}.")


def _build_part(declared: Mapping[str, Any], tree: Mapping[str, Any], path: str) -> Any:
    """The dataclass that tree's name selects. Raises ConfigError naming the part that has an unknown field."""
    table = rows(declared["table"])
    name = tree["name"] if "name" in tree else declared.get("name", next(iter(table)))
    if not isinstance(name, str) or name not in table:
        raise ConfigError(f"{path}.name={shown(name)} is unknown.{nearest(str(name), table)}")
    cls = table[name].config
    own = {field.name for field in dataclasses.fields(cls)}
    for key in tree:
        if key not in own:
            raise ConfigError(f"Unknown field {path}.{key}" + _who_has_it(key, name, own, table, path))
    return build(cls, {**tree, "name": name}, path)


def _who_has_it(key: str, name: str, own: Collection[str], table: Mapping[str, Any], path: str) -> str:
    """The end of a message about a field that part `name` does not have: other parts that do, or the nearest field."""
    having = [other for other, row in table.items() if key in {field.name for field in dataclasses.fields(row.config)}]
    if not having:
        return "." + nearest(key, own)
    return (
        f": '{name}' has no such field, {', '.join(map(repr, having))} {'has' if len(having) == 1 else 'have'}. "
        f"Set {path}.name, or leave {key} out. Fields of '{name}': {', '.join(sorted(own))}."
    )
