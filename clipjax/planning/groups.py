"""Which devices take part in a collective together, from the text of its instruction."""

from __future__ import annotations

import re

import numpy as np

_PAIRS = re.compile(r"source_target_pairs=\{([^a-z]*)\}")
_EXPLICIT = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?)?[^)]*\))?(?:\s*\{([^}]*)\})?"
)


def pairs(text: str) -> list[tuple[int, int]]:
    """(source, target) devices of a permutation; [] for other collectives."""
    found = _PAIRS.search(text)
    return [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", found.group(0))] if found else []


def first_group(text: str, num_devices: int) -> tuple[int, ...]:
    """The devices of the group that device 0 is in; all of num_devices where the text names no groups."""
    if explicit := _EXPLICIT.search(text):
        return tuple(map(int, explicit.group(1).split(",")))
    if iota := _IOTA.search(text):
        groups, size = int(iota.group(1)), int(iota.group(2))
        order = _order(groups * size, iota.group(3), iota.group(4))
        return tuple(order.reshape(groups, size)[0].tolist())
    if named := _MESH.search(text):
        axes, shape, permutation, used = named.groups()
        sizes = {axis: int(size) for axis, size in re.findall(r"'?(\w+)'?=(\d+)", axes)}
        used = [axis for axis in re.findall(r"\w+", used or "") if axis in sizes] or list(sizes)
        grid = _order(int(np.prod(list(sizes.values()))), shape, permutation).reshape(tuple(sizes.values()))
        return tuple(grid[tuple(slice(None) if axis in used else 0 for axis in sizes)].ravel().tolist())
    return tuple(range(num_devices))


def _order(count: int, shape: str | None, permutation: str | None) -> np.ndarray:
    """The numbers below count, reshaped to "4,2" and transposed by "1,0", as a list."""
    numbers = np.arange(count)
    if shape:
        numbers = numbers.reshape([int(side) for side in shape.split(",")])
    if permutation:
        numbers = numbers.transpose([int(axis) for axis in permutation.split(",")])
    return numbers.ravel()
