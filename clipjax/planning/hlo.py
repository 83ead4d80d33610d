"""Reads a compiled program's optimised HLO text: loops and trip counts, collectives, estimated cycles.

Works for every backend; only TPU programs have `estimated_cycles`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "ragged-all-to-all")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}  # of one element; others: the number in the name / 8

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}])([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass
class Instruction:
    """A line of the program."""

    name: str
    opcode: str
    shapes: list[tuple[str, tuple[int, ...]]]  # (type, dimensions) of the result; a tuple's parts one by one
    text: str
    times: float = 0.0  # executions per run of the program

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
    group_size: int  # devices that take part together
    times: float  # executions per step

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
            name, rest = match.groups()
            # The result's shape comes before the opcode; its layouts have parentheses too.
            opcode = next((m for m in _OPCODE.finditer(rest) if not re.match(r"[TS]$", m.group(1))), None)
            if opcode:
                shapes = [_shape(*s) for s in _SHAPE.findall(rest[: opcode.start(1)])]
                current.append(Instruction(name, opcode.group(1), shapes, rest[opcode.start(1) :]))
    _count(program)
    return program


def collectives(program: Program, num_devices: int) -> list[Collective]:
    """Every collective once, with the number of its executions. num_devices: devices of the whole program.

    A TPU's asynchronous collective appears in pieces, inside the fusions that run between its start and its end; it is
    counted at the start. A sum whose result is sliced in the same fusion is a reduce-scatter.
    """
    result = []
    for name, instructions in program.computations.items():
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
            result.append(_collective(kind, one, num_devices))
    return [item for item in result if item.group_size > 1]


def _collective(kind: str, one: Instruction, num_devices: int) -> Collective:
    size, result = _group_size(one.text, num_devices), float(one.bytes)
    if one.opcode.endswith("-start") and kind != "all-reduce":
        # The start's result is (operand, result, ...).
        result = result / 2 if kind == "collective-permute" else max(shape_bytes(*s) for s in one.shapes)
    if kind == "reduce-scatter":
        summed = result if one.opcode.startswith("all-reduce") else result * size
        return Collective(kind, one.op_name, int(summed), int(summed / size), size, one.times)
    into = result / size if kind == "all-gather" else result
    return Collective(kind, one.op_name, int(into), int(result), size, one.times)


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


def _group_size(text: str, num_devices: int) -> int:
    """The number of devices that take part together."""
    if "source_target_pairs" in text:
        return num_devices
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(explicit.group(1).split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota.group(2))
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*\)[^)]*\))?(?:\s*\{([^}]*)\})?", text
    ):
        sizes = dict(re.findall(r"'?(\w+)'?=(\d+)", named.group(1)))
        used = re.findall(r"\w+", named.group(2) or "") or list(sizes)
        return math.prod(int(sizes[axis]) for axis in used if axis in sizes)
    return num_devices
