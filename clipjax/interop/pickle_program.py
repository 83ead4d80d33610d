"""Reads the programs of pickle's machine as data: nothing is imported, nothing is called.

Such a program could call any function. Here its instructions build dicts, lists, tuples, numbers, strings and tensors;
a call of anything else yields an inert object. A program may also be made to take all memory or time: the number of
its instructions, of the objects that it copies, and the kinds of its keys are limited.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.interop.names import InteropError

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "LONG", "INT", "BINFLOAT", "FLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
KEYS = (str, int, float, bool, bytes, type(None))  # a deep tuple cannot even be hashed
MAX_PROGRAM = 64 << 20  # bytes
MAX_STEPS = 2_000_000  # instructions, 40 of which describe a tensor; also the objects that are copied


class Global(NamedTuple):
    """A name that pickle would import; here it stays a name."""

    name: str  # "torch FloatStorage"


class Tensor(NamedTuple):
    """A tensor as the program describes it; its parts may be anything."""

    storage: Any  # ("storage", Global, key, device, elements)
    offset: Any  # elements
    shape: Any
    strides: Any  # elements


class Inert:
    """Takes the place of an object of an unknown class, and of what an unknown function would return."""

    state: Any = None


def interpret(program: bytes, path: Path) -> Any:
    """The object that a program describes, made of dicts, lists, tuples, numbers, strings, Tensor, Global and Inert.

    It may contain itself. Raises InteropError for a program that is damaged, without end, or above the limits.
    """
    machine = _Machine()
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if opcode.name == "STOP":
                return machine.stack[-1]
            if steps + machine.copied > MAX_STEPS:
                raise InteropError(f"{path}: its description has more than {MAX_STEPS:,} steps: no model needs those.")
            if not machine.value(opcode.name, argument) and not machine.container(opcode.name):
                raise InteropError(f"{path}: its description uses pickle's {opcode.name}, which no state dict needs.")
    except InteropError:
        raise
    except Exception as error:  # whatever a damaged program may do
        raise InteropError(f"{path} has a damaged description: {type(error).__name__} {error!s:.200}.") from error
    raise InteropError(f"{path} is truncated: its description has no end.")


class _Machine:
    """pickle's machine, which here imports nothing and calls nothing. Both methods return False for other opcodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0  # objects in containers that were copied, each a step of its own

    def value(self, name: str, argument: Any) -> bool:
        """Literals, the memo, and objects."""
        stack, memo = self.stack, self.memo
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(Global(argument))
        elif name == "STACK_GLOBAL":
            module, function = stack[-2:]
            if not (isinstance(module, str) and isinstance(function, str)):
                raise TypeError("a name that is no text")
            stack[-2:] = [Global(f"{module} {function}")]
        elif name == "BINPERSID":
            stack.append(self._tuple(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Inert):
                stack[-1].state = state
        else:
            return name in ("PROTO", "FRAME")
        return True

    def container(self, name: str) -> bool:
        """Marks, and tuples, lists and dicts of the items above them."""
        stack = self.stack
        if name == "MARK":
            self.marks.append(len(stack))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._popped()
        elif name == "TUPLE":
            stack.append(tuple(self._popped()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "LIST":
            stack.append(self._popped())
        elif name == "DICT":
            stack.append(_dict(self._popped()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._popped()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._popped()
            if isinstance(stack[-1], dict):
                stack[-1].update(_dict(items))
        else:
            return False
        return True

    def _popped(self) -> list[Any]:
        """Removes and returns everything above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _tuple(self, items: Any) -> tuple:
        self.copied += len(items)
        return tuple(items)

    def _called(self, function: Any, arguments: Any) -> Any:
        """What the function returns for tensors and their wrappers; Inert for any other."""
        for _ in range(3):  # a wrapper's arguments hold another function and its arguments
            name = function.name if isinstance(function, Global) else ""
            if name != "torch._tensor _rebuild_from_type_v2":  # a tensor with attributes of its own
                break
            function, arguments = arguments[0], self._tuple(arguments[2])
        if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
            return Tensor(*arguments[:4])
        if name in ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"):
            return arguments[0]
        if name == "collections OrderedDict":
            if not arguments:
                return {}
            self.copied += len(arguments[0])
            return (
                arguments[0].copy() if isinstance(arguments[0], dict) else _dict([i for p in arguments[0] for i in p])
            )
        return Inert()


def _dict(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn, as a dict. A key that is a container becomes an Inert, found by nothing."""
    keys = (key if isinstance(key, KEYS) else Inert() for key in items[::2])
    return dict(zip(keys, items[1::2], strict=True))
