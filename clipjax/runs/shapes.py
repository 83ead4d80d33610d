"""Which arrays of two trees differ in shape, as the error says it that refuses a checkpoint."""

from __future__ import annotations

from typing import Any

from clipjax.config import differences
from clipjax.mesh import named_leaves
from clipjax.runs.integrity import CheckpointError

SHOWN = 20  # differing parameters named in an error


def check_shapes(stored: Any, expected: Any, *, where: str, cure: str = "") -> None:
    """Raises CheckpointError naming the arrays whose shapes differ between two trees; leaves need only a shape."""
    lines = [
        f"  {name}: checkpoint {old or 'nothing'}, configuration {new or 'nothing'}"
        for name, (old, new) in differences(_shapes(stored), _shapes(expected)).items()
    ]
    if lines:
        more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        cures = [cure] if cure else []
        raise CheckpointError("\n".join([f"{where}:", *lines[:SHOWN], *more, *cures]))


def _shapes(tree: Any) -> dict[str, str]:
    """Path -> shape, as text: () is a shape too."""
    return {name: str(tuple(leaf.shape)) for name, leaf in named_leaves(tree).items() if hasattr(leaf, "shape")}
