"""What a field of a configuration declares about itself: its default, its role, and who reads the section below it.

    width: int = weights(768)                 # shapes or meaning of parameters
    activation: Activation = meaning("gelu")  # the same parameters, another function
    dropout: float = experiment(0.0)          # another curve
    remat: Remat = runtime("none")            # no effect on numbers

A number also declares its range, `weights(768, within=WIDTH)`, from clipjax.config.ranges; a path declares what it is,
`runtime("", path="own")`.

    loss: LossConfig = part("clipjax.losses:LOSSES", "softmax")   # `loss.name` selects the row that has the dataclass

The fingerprint, what a restart refuses, what init_from and export compare, and the docs' table all follow from the
roles. A table of parts is given by its name, not imported, because its modules import this one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from clipjax.config.ranges import Range

Role = Literal["weights", "meaning", "experiment", "runtime"]
# "own": files so small that a run keeps a copy of them, such as class names; "data": where data are; "": no path.
Path = Literal["", "own", "data"]

# Reasons why a restarted run may not change a field.
ORDER = "the checkpoint's position in the data would point elsewhere"
MODEL = "the weights would be used as another model's"
STATE = "the optimizer state in the checkpoint would mean something else"
OBJECTIVE = "one curve would show two experiments"
ADAPTERS = "the adapters in the checkpoint would mean something else"
LAYOUT = "the checkpoint's parameters are stacked in another way"


@dataclasses.dataclass(frozen=True)
class Declaration:
    role: Role
    fixed: str = ""  # why a restarted run may not change it; "": it may
    converted: bool = False  # may differ in init_from, which converts the weights or trains them to the new setting
    at_start: bool = False  # read only when a run begins: a restart does not notice a change
    within: Range | None = None  # the values that a number, or each number of a tuple, may have
    path: Path = ""


class Part(NamedTuple):
    """A row of a table of parts: its options, the function that makes the part, and a check of the options.

    The row is callable: LOSSES["cyclip"](config) is LOSSES["cyclip"].make(config).
    """

    config: type  # a frozen dataclass with a field `name`
    make: Callable[..., Any]
    check: Callable[..., None] | None = None  # (config, ...) -> None; raises ConfigError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.make(*args, **kwargs)


def weights(default: Any, *, within: Range | None = None, converted: bool = False) -> Any:
    """A field that decides the shapes of parameters, or which parameters there are."""
    return _declared(default, Declaration("weights", MODEL, converted, within=within))


def meaning(default: Any, *, within: Range | None = None, converted: bool = False) -> Any:
    """A field that changes what the same parameters compute."""
    return _declared(default, Declaration("meaning", MODEL, converted, within=within))


def experiment(default: Any, *, within: Range | None = None, fixed: str = "", at_start: bool = False) -> Any:
    """A field that changes the training curve. fixed: why a restarted run may not change it."""
    return _declared(default, Declaration("experiment", fixed, at_start=at_start, within=within))


def runtime(default: Any, *, within: Range | None = None, fixed: str = "", path: Path = "") -> Any:
    """A field that does not affect results: speed, memory, paths, logs."""
    return _declared(default, Declaration("runtime", fixed, within=within, path=path))


def section(cls: type, *, role: Role | None = None) -> Any:
    """A field that is a dataclass of its own. role: that of everything below it, instead of its fields' own."""
    return dataclasses.field(default_factory=cls, metadata=_of_all(role))


def part(table: str, default: str, *, role: Role | None = None) -> Any:
    """A section whose dataclass is chosen by its `name`, a row of `table` ("module:NAME")."""
    make = lambda: rows(table)[default].config()  # noqa: E731
    return dataclasses.field(default_factory=make, metadata={"table": table, "name": default, **_of_all(role)})


def parts(table: str, *, role: Role | None = None) -> Any:
    """A dict of sections, each chosen as by `part`; empty by default."""
    return dataclasses.field(default_factory=dict, metadata={"table": table, **_of_all(role)})


@functools.cache
def rows(table: str) -> Mapping[str, Any]:
    """The table that "module:NAME" stands for: name -> a row with the attribute `config`."""
    module, name = table.split(":")
    return getattr(importlib.import_module(module), name)


def metadata(cls: type, name: str) -> Mapping[str, Any]:
    """What a field declares. A subclass that only gives a field another default inherits its declaration."""
    for base in cls.__mro__:
        own = base.__dict__.get("__dataclass_fields__", {}).get(name)
        if own is not None and own.metadata:
            return own.metadata
    return {}


def declarations(config: Any, prefix: str = "", role: Role | None = None) -> Iterator[tuple[str, Any, Declaration]]:
    """(dotted name, value, declaration) of every field of a dataclass and of the sections below it.

    role: an enclosing section's, which counts instead of the fields' own. Raises TypeError for a field without a role.
    """
    for field in dataclasses.fields(config):
        value, name, declared = getattr(config, field.name), prefix + field.name, metadata(type(config), field.name)
        below = role or declared.get("below")
        if dataclasses.is_dataclass(value):
            yield from declarations(value, name + ".", below)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from declarations(item, f"{name}.{key}.", below)
        elif "declaration" in declared:
            own = declared["declaration"]
            yield (
                name,
                value,
                dataclasses.replace(own, role=below, fixed="", converted=False, at_start=False) if below else own,
            )
        elif not below:
            raise TypeError(
                f"{type(config).__name__}.{field.name} declares no role; give it weights(), meaning(), experiment() "
                "or runtime() with its default (clipjax.config.fields)."
            )


def _declared(default: Any, declaration: Declaration) -> Any:
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def _of_all(role: Role | None) -> dict[str, Any]:
    return {"below": role} if role else {}
