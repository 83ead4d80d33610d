"""The part of the training step that an instruction belongs to, from the JAX call path that the compiler keeps."""

from __future__ import annotations

import re

PARTS = (
    "image tower",
    "image attention",
    "text tower",
    "text attention",
    "captioner",
    "loss",
    "optimizer",
    "other",
)


def part_of(op_name: str) -> str:
    """ "jit(train_step)/transpose(jvp(DualEncoder))/image/while/body/blocks/mlp/up/dot_general" -> "image tower".

    "attention" is what lies between the projections. "other": instructions without a call path.
    """
    for tower in ("image", "text"):
        if f"/{tower}/" in op_name:
            inside = re.search(r"/attention/(?!qkv|query|key|value|out|attended)", op_name)
            return f"{tower} {'attention' if inside else 'tower'}"
    if "/decoder/" in op_name:
        return "captioner"
    if re.search(r"[/(]loss[/)]|shard_map", op_name):
        return "loss"
    if "/optimizer/" in op_name:
        return "optimizer"
    return "other"


def purpose_of(op_name: str) -> str:
    """What a collective is for: its part, where attention counts as its tower, and ", backward" for gradients."""
    part = part_of(op_name).replace("attention", "tower")
    return f"{part}, backward" if "transpose(" in op_name and part != "loss" else part
