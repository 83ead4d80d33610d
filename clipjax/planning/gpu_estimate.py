"""Estimates the time of a step on GPUs: its instructions in the compiler's order, with collectives beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from clipjax.planning import gpu_factors as factors
from clipjax.planning.estimate import Estimate
from clipjax.planning.gpu_bytes import Table, table
from clipjax.planning.gpu_cards import Gpu
from clipjax.planning.gpu_kernels import Cost, cost
from clipjax.planning.hlo import COLLECTIVES, Collective, Instruction, Program, collective_of, origin
from clipjax.planning.parts import part_of

SLOWEST = 20  # instructions that a plan's JSON lists


def gpu_estimate(program: Program, card: Gpu, host_of: Sequence[int]) -> Estimate:
    """Seconds of one step by part, from each instruction's roofline; host_of: the host of each device.

    A collective runs beside the instructions that the compiler scheduled between its start and its end; what is left
    of it then is waited for, and counts to the collective's part.
    """
    walk = _Walk(program, card, host_of)
    walk.duration(program.entry)
    return Estimate(
        dict(walk.seconds),
        work=sorted(walk.work.values(), key=lambda row: -row["seconds"]),
        transfers={"seconds": walk.moving, "waited_for": walk.waiting},
        slowest=sorted(walk.instructions, key=lambda row: -row["seconds"])[:SLOWEST],
        factors={factor.name: factor.value for factor in factors.FACTORS} | _card_factors(card),
    )


def collective_seconds(collective: Collective, card: Gpu, host_of: Sequence[int]) -> float:
    """Seconds of one execution: the published bandwidth's bound over the share that NCCL reaches, and a latency."""
    per_host, hosts = collective.spread(host_of)
    bound = card.transfer_seconds(collective.kind, collective.bytes_in, collective.bytes_received, per_host, hosts)
    summed = collective.kind == "all-reduce" and card.switched_sums and hosts == 1
    share = factors.SWITCH_SHARE if summed else factors.TRANSFER_SHARE
    latency = factors.LATENCY_INSIDE if hosts == 1 else factors.LATENCY_BETWEEN
    return latency.value + bound / share.value


def _card_factors(card: Gpu) -> dict[str, float]:
    return {
        "sustained share of peak in products": card.sustained,
        "share of peak in fused attention, forward": card.attention[0],
        "share of peak in fused attention, backward": card.attention[1],
    }


class _Walk:
    """Adds up what a program's computations cost; `seconds` by part, `work` by kind of kernel."""

    def __init__(self, program: Program, card: Gpu, host_of: Sequence[int]):
        self.program, self.card, self.host_of = program, card, host_of
        self.durations: dict[str, float] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.work: dict[str, dict[str, Any]] = {}
        self.instructions: list[dict[str, Any]] = []
        self.moving = self.waiting = 0.0

    def duration(self, name: str) -> float:
        """Seconds of one execution of a computation, whose costs are added, with those of what it calls, once."""
        if name not in self.durations:
            self.durations[name] = self._in_order(self.program.computations.get(name, []))
        return self.durations[name]

    def _in_order(self, instructions: list[Instruction]) -> float:
        around = table(instructions)
        now, network = 0.0, 0.0  # when the kernels so far, and the collectives so far, are done
        ends: dict[str, tuple[float, float, str]] = {}  # start's name -> end, duration and part of a collective
        for one in instructions:
            if moves := self._collective(one, around):
                seconds, part = moves
                begin = max(now, network)
                network = begin + seconds
                ends[one.name] = (network, seconds, part)
                self.moving += seconds * one.times
                if not one.opcode.endswith("-start"):
                    now += self._wait(ends.pop(one.name), now, one.times)
            elif one.opcode.endswith("-done") and one.operands[:1] and one.operands[0] in ends:
                now += self._wait(ends.pop(one.operands[0]), now, one.times)
            elif paid := cost(one, around, self.program, self.card):
                now += paid.seconds
                self._add(one, paid, part_of(origin(one, around)))
            else:
                now += self._inner(one)
        return now

    def _collective(self, one: Instruction, around: Table) -> tuple[float, str] | None:
        """Seconds and part of a collective's start, or of a whole one; None for other instructions."""
        inner = one
        if one.opcode == "async-start":
            names = [name for how, name in one.called if how == "calls"]
            inside = [i for name in names for i in self.program.computations.get(name, []) if i.opcode in COLLECTIVES]
            inner = inside[0] if inside else one
        if inner.opcode.removesuffix("-start") not in COLLECTIVES:
            return None
        kind, op_name = inner.opcode.removesuffix("-start"), origin(inner, {}) or origin(one, around)
        moved = collective_of(inner, kind, op_name, len(self.host_of))
        if moved.group_size == 1:
            return None
        return collective_seconds(moved, self.card, self.host_of), part_of(op_name)

    def _wait(self, transfer: tuple[float, float, str], now: float, times: float) -> float:
        end, seconds, part = transfer
        waited = max(end - now, 0.0)
        lost = factors.OVERLAP_COST.value * max(seconds - waited, 0.0)
        self.seconds[part] += (waited + lost) * times
        self.waiting += waited * times
        return waited + lost

    def _inner(self, one: Instruction) -> float:
        """The duration of a loop, a call or a choice, for the collectives that are under way around it."""
        inside = [name for how, name in one.called if how != "to_apply" or one.opcode == "call"]
        if one.opcode not in ("while", "call", "conditional", "async-start") or not one.times:
            return 0.0
        seconds = [
            self.duration(name) * self.program.computations[name][0].times / one.times
            for name in inside
            if self.program.computations.get(name)
        ]
        return max(seconds, default=0.0) if one.opcode == "conditional" else sum(seconds)

    def _add(self, one: Instruction, paid: Cost, part: str) -> None:
        seconds = paid.seconds * one.times
        self.seconds[part] += seconds
        row = self.work.setdefault(
            paid.kind, {"kind": paid.kind, "times": 0.0, "flops": 0.0, "bytes": 0.0, "seconds": 0.0, "limited_by": {}}
        )
        row["times"] += one.times
        row["flops"] += paid.flops * one.times
        row["bytes"] += paid.bytes * one.times
        row["seconds"] += seconds
        row["limited_by"][paid.limit] = row["limited_by"].get(paid.limit, 0.0) + seconds
        self.instructions.append(
            {
                "name": one.name,
                "kind": paid.kind,
                "part": part,
                "from": one.op_name,
                "times": one.times,
                "flops": paid.flops,
                "bytes": paid.bytes,
                "seconds": seconds,
                "limited_by": paid.limit,
            }
        )
