"""Reads a compiled program's optimised HLO text: loops and trip counts, collectives, estimated cycles.

Works for every backend; only TPU programs have `estimated_cycles`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from clipjax.planning.groups import first_group, pairs

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "ragged-all-to-all")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}  # of one element; others: the number in the name / 8

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}])([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass
class Instruction:
    """A line of the program."""

    name: str
    opcode: str
    shapes: list[tuple[str, tuple[int, ...]]]  # (type, dimensions) of the result; a tuple's parts one by one
    text: str
    times: float = 0.0  # executions per run of the program
    root: bool = False  # whether its result is that of its computation

    @property
    def op_name(self) -> str:
        """The JAX call path that it came from; "" where the compiler gives none."""
        match = re.search(r'op_name="([^"]*)"', self.text)
        return match.group(1) if match else ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one execution; 0 where it gives none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(match.group(1)) if match else 0

    @property
    def bytes(self) -> int:
        """Size of the result."""
        return sum(shape_bytes(*shape) for shape in self.shapes)

    @property
    def operands(self) -> list[str]:
        """The names of the instructions whose results it takes, in order."""
        return _NAME.findall(_arguments(self.text))

    @property
    def called(self) -> list[tuple[str, str]]:
        """(attribute, computation) pairs: ("body", "while_body.3") and the like."""
        named = _CALLED.findall(self.text)
        for branches in _BRANCHES.findall(self.text):
            named += [("branch", name.strip().lstrip("%")) for name in branches.split(",")]
        return named


@dataclass
class Program:
    """The computations of a program; `entry` is the one that runs."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""
    fused: set[str] = field(default_factory=set)  # computations inside a single instruction
    unknown_loops: list[str] = field(default_factory=list)  # loops counted as one trip

    def executed(self) -> Iterator[Instruction]:
        """Instructions that run on their own, without those inside fusions; `times` says how often."""
        for name, instructions in self.computations.items():
            if name not in self.fused:
                yield from (instruction for instruction in instructions if instruction.times)


@dataclass(frozen=True)
class Collective:
    """A collective operation, and the bytes that one execution moves."""

    kind: str
    op_name: str
    bytes_in: int  # input of one device
    bytes_out: int  # output on one device
    group: tuple[int, ...]  # devices that take part together, of the first of the groups
    times: float  # executions per step
    pairs: tuple[tuple[int, int], ...] = ()  # (source, target) of a permutation

    @property
    def group_size(self) -> int:
        """Devices that take part together."""
        return len(self.group)

    def spread(self, host_of: Sequence[int]) -> tuple[int, int]:
        """(devices of the group on its first host, hosts of the group); host_of: each device's host.

        A permutation that stays inside hosts spans one.
        """
        hosts = [host_of[device] for device in self.group]
        if self.pairs and all(host_of[source] == host_of[target] for source, target in self.pairs):
            return len(self.group), 1
        return hosts.count(hosts[0]), len(set(hosts))

    @property
    def bytes_received(self) -> float:
        """Bytes per device and execution, with ring algorithms: (g-1)/g of a gather's result, twice that for a sum."""
        share = (self.group_size - 1) / self.group_size
        return {
            "all-gather": self.bytes_out * share,
            "reduce-scatter": self.bytes_in * share,
            "all-reduce": 2 * self.bytes_in * share,
            "all-to-all": self.bytes_in * share,
        }.get(self.kind, float(self.bytes_out))


def parse(text: str) -> Program:
    """HLO text -> Program. An instruction in a loop has the product of the trip counts in `times`."""
    program, current = Program(), None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = program.computations.setdefault(header.group(2), [])
            if header.group(1):
                program.entry = header.group(2)
        elif current is not None and (match := _INSTRUCTION.match(line)):
            root, name, rest = match.groups()
            # The result's shape comes before the opcode; its layouts have parentheses too.
            opcode = next((m for m in _OPCODE.finditer(rest) if not re.match(r"[TS]$", m.group(1))), None)
            if opcode:
                shapes = [_shape(*s) for s in _SHAPE.findall(rest[: opcode.start(1)])]
                text = rest[opcode.start(1) :]
                current.append(Instruction(name, opcode.group(1), shapes, text, root=bool(root)))
    _count(program)
    return program


def collectives(program: Program, num_devices: int) -> list[Collective]:
    """Every collective once, with the number of its executions. num_devices: devices of the whole program.

    A TPU's asynchronous collective appears in pieces, inside the fusions that run between its start and its end; it is
    counted at the start. A sum whose result is sliced in the same fusion is a reduce-scatter.
    """
    result = []
    for name, instructions in program.computations.items():
        around = {one.name: one for one in instructions}
        for one in instructions:
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or not one.times:
                continue
            if name in program.fused:
                starts = any("AsyncCollectiveStart" in other.text for other in instructions)
                if kind != "all-reduce" and not starts:
                    continue
                if kind == "all-reduce" and any(other.opcode == "dynamic-slice" for other in instructions):
                    kind = "reduce-scatter"
            result.append(collective_of(one, kind, origin(one, around), num_devices))
    return [item for item in result if item.group_size > 1]


def origin(one: Instruction, around: dict[str, Instruction]) -> str:
    """An instruction's op_name; where the compiler gives it none, that of most bytes that its operands come from.

    Combined collectives have none. around: the instructions of its computation, by name.
    """
    layer, seen = [one], {one.name}
    while layer and not any(value.op_name for value in layer):
        names = dict.fromkeys(name for value in layer for name in value.operands if name in around)
        layer = [around[name] for name in names if name not in seen and around[name].opcode != "parameter"]
        seen.update(names)
    sizes: dict[str, int] = defaultdict(int)
    for value in layer:
        sizes[value.op_name] += value.bytes
    return max((name for name in sizes if name), key=sizes.__getitem__, default="")


def collective_of(one: Instruction, kind: str, op_name: str, num_devices: int) -> Collective:
    """What a collective's instruction, or its start, moves; kind: its opcode, or what it amounts to."""
    moves = tuple(pairs(one.text))
    group = tuple(range(num_devices)) if moves else first_group(one.text, num_devices)
    size, result = len(group), float(one.bytes)
    if one.opcode.endswith("-start") and kind != "all-reduce":
        # The start's result is (operands, results, ...).
        count = max(len(one.operands), 1)
        results = one.shapes[count : 2 * count] or one.shapes
        result = float(sum(shape_bytes(*shape) for shape in results))
    if kind == "reduce-scatter":
        summed = result if one.opcode.startswith("all-reduce") else result * size
        return Collective(kind, op_name, int(summed), int(summed / size), group, one.times)
    into = result / size if kind == "all-gather" else result
    return Collective(kind, op_name, int(into), int(result), group, one.times, moves)


def _arguments(text: str) -> str:
    """What is between the parentheses after the opcode."""
    start = text.index("(")
    depth = 0
    for end in range(start, len(text)):
        depth += (text[end] == "(") - (text[end] == ")")
        if not depth:
            return text[start + 1 : end]
    return text[start + 1 :]


def shapes_in(text: str) -> set[tuple[int, ...]]:
    """The dimensions of every array in HLO text."""
    return {_shape(kind, dims)[1] for kind, dims in _SHAPE.findall(text)}


def shape_bytes(kind: str, dims: tuple[int, ...]) -> int:
    """Size of an array; kind: HLO's type, such as "bf16"."""
    bits = re.search(r"\d+", kind)
    size = BYTES.get(kind) or (int(bits.group()) / 8 if bits else 0)
    return int(math.prod(dims) * size)


def _shape(kind: str, dims: str) -> tuple[str, tuple[int, ...]]:
    return kind, tuple(int(d) for d in dims.split(",") if d)


def _count(program: Program) -> None:
    """Sets `times` of all instructions, and `fused`, from the entry down."""
    times: dict[str, float] = defaultdict(float)
    pending = [(program.entry, 1.0, False)]
    while pending:
        name, factor, fused = pending.pop()
        times[name] += factor
        if fused:
            program.fused.add(name)
        for one in program.computations.get(name, []):
            trips = _trip_count(one, program) if one.opcode == "while" else 1.0
            for how, called in one.called:
                inside = fused or how in ("calls", "to_apply") and one.opcode not in ("call", "async-start")
                pending.append((called, factor * (trips if how in ("body", "condition") else 1.0), inside))
    for name, instructions in program.computations.items():
        for one in instructions:
            one.times = times[name]


def _trip_count(loop: Instruction, program: Program) -> float:
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.text)
    if known:
        return float(known.group(1))
    condition = program.computations.get(dict(loop.called).get("condition", ""), [])
    compares = [one for one in condition if one.opcode == "compare" and "direction=LT" in one.text]
    constants = {one.name: one.text for one in condition if one.opcode == "constant"}
    for compare in compares:
        for operand in re.findall(r"%?([\w.\-]+)", compare.text.split("(", 1)[1].split(")", 1)[0]):
            if operand in constants and (value := re.match(r"constant\((\d+)\)", constants[operand])):
                return float(value.group(1))
    program.unknown_loops.append(loop.name)
    return 1.0
