"""Bytes and elements that an instruction of a GPU program reads and writes, and operations that it executes.

As XLA's own cost analysis does: a fusion reads its operands and writes its results; of an operand that it only slices
or gathers from, what it takes; of a result that it updates in place, the update.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from clipjax.planning.hlo import Instruction, Program, shape_bytes

# Operations per element, of those that are more than one; roughly the instructions of CUDA's float32 library.
COSTLY = {
    **dict.fromkeys(("divide", "sqrt", "rsqrt", "exponential", "log", "sine", "cosine"), 8),
    **dict.fromkeys(("tanh", "logistic", "exponential-minus-one", "log-plus-one"), 20),
    **dict.fromkeys(("power", "erf", "cbrt", "atan2"), 40),
}
# Instructions without arithmetic.
MOVES = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "broadcast", "reshape", "transpose", "copy"),
    *("slice", "dynamic-slice", "dynamic-update-slice", "pad", "concatenate", "gather", "scatter", "iota", "reverse"),
    *("dot", "convolution", "custom-call", "partition-id", "replica-id", "bitcast-convert"),
}
_SAME = ("bitcast", "reshape", "convert", "copy", "transpose")  # a view of their operand inside a fusion
_TAKES = ("slice", "dynamic-slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")
_NUMBER = re.compile(r"parameter\((\d+)\)")

Table = dict[str, Instruction]
Size = Callable[[str, tuple[int, ...]], float]  # of an array, from its type and dimensions


def table(instructions: list[Instruction]) -> Table:
    """A computation's instructions by name."""
    return {one.name: one for one in instructions}


def moved_bytes(one: Instruction, around: Table, program: Program) -> float:
    """Bytes that one execution reads and writes; around: the instructions of its computation."""
    return _moved(one, around, program, shape_bytes)


def moved_elements(one: Instruction, around: Table, program: Program) -> float:
    """Elements that one execution reads and writes, of whatever type."""
    return _moved(one, around, program, lambda _, dims: math.prod(dims))


def operations(one: Instruction, program: Program, around: Table) -> float:
    """Elementwise operations of one execution: of a fusion, those of all instructions inside."""
    inside = _fused(one, program)
    return sum(_operations(inner, inside) for inner in inside.values()) if inside else _operations(one, around)


def called(one: Instruction, program: Program) -> list[Instruction]:
    """The instructions inside a fusion; [] for others."""
    return [inner for how, name in one.called if how == "calls" for inner in program.computations.get(name, [])]


def _moved(one: Instruction, around: Table, program: Program, size: Size) -> float:
    if inside := _fused(one, program):
        return _fusion_moves(one, inside, size)
    operands = [around[name] for name in one.operands if name in around]
    written = _without_workspace(one, size)
    if one.opcode in _TAKES:
        return 2 * written + (_whole(operands[-1], size) if one.opcode == "gather" and operands else 0)
    if one.opcode in _UPDATES and operands:
        return 2 * _update(one, around, size)
    if one.opcode in ("broadcast", "iota"):
        return written
    return written + sum(_whole(operand, size) for operand in operands)


def _whole(one: Instruction, size: Size) -> float:
    return sum(size(*shape) for shape in one.shapes)


def _fused(one: Instruction, program: Program) -> Table:
    return table(called(one, program)) if one.opcode == "fusion" else {}


def _operations(one: Instruction, around: Table) -> float:
    if one.opcode in MOVES:
        return 0.0
    elements = sum(math.prod(dims) for _, dims in one.shapes)
    if one.opcode in ("reduce", "reduce-window"):
        operands = [around[name] for name in one.operands if name in around]
        elements = max([elements, *(math.prod(dims) for operand in operands for _, dims in operand.shapes)])
    return COSTLY.get(one.opcode, 1) * elements


def _fusion_moves(one: Instruction, inside: Table, size: Size) -> float:
    users: dict[str, list[Instruction]] = {}
    for inner in inside.values():
        for name in inner.operands:
            users.setdefault(name, []).append(inner)
    total = 0.0
    for inner in inside.values():
        number = _NUMBER.match(inner.text) if inner.opcode == "parameter" else None
        if number and int(number.group(1)) < len(one.operands):
            total += _read(inner, users, inside, size)
    roots = _roots(inside)
    return total + sum(_written(root, inside, size) for root in roots)


def _read(parameter: Instruction, users: dict[str, list[Instruction]], inside: Table, size: Size) -> float:
    """What a fusion reads of an operand: slices of it, if nothing in the fusion uses it otherwise."""
    whole, taken, pending = _whole(parameter, size), 0.0, [parameter]
    while pending:
        value = pending.pop()
        for user in users.get(value.name, []):
            first = user.operands[:1] == [value.name]
            if user.opcode in _TAKES and first:
                taken += _whole(user, size)
            elif user.opcode in _UPDATES and first:
                taken += _update(user, inside, size) if user.opcode == "scatter" else 0
            elif user.opcode in _SAME:
                pending.append(user)
            else:
                return whole
        if not users.get(value.name):
            return whole
    return min(taken, whole)


def _roots(inside: Table) -> list[Instruction]:
    """The instructions whose results a fusion writes."""
    last = next((inner for inner in inside.values() if inner.root), list(inside.values())[-1])
    return [inside[name] for name in last.operands if name in inside] if last.opcode == "tuple" else [last]


def _written(root: Instruction, inside: Table, size: Size) -> float:
    value = root
    while value.opcode in _SAME and value.operands and value.operands[0] in inside:
        value = inside[value.operands[0]]
    return _update(value, inside, size) if value.opcode in _UPDATES else _whole(root, size)


def _update(one: Instruction, around: Table, size: Size) -> float:
    """What an update in place writes: of dynamic-update-slice its operand 1, of scatter its last."""
    place = 1 if one.opcode == "dynamic-update-slice" else -1
    names = one.operands
    update = around.get(names[place]) if len(names) > 1 else None
    return _whole(update or one, size)


def _without_workspace(one: Instruction, size: Size) -> float:
    """A library call's last result is its workspace, which belongs to no array."""
    shapes = one.shapes
    if one.opcode == "custom-call" and len(shapes) > 1 and shapes[-1][0] in ("s8", "u8"):
        shapes = shapes[:-1]
    return float(sum(size(*shape) for shape in shapes))
