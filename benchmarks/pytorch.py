"""Imports of the PyTorch libraries that benchmarks compare with."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def import_torch(name: str = "torch") -> ModuleType:
    """Returns torch, or a module that needs it, such as "open_clip"; exits with the cure where it is not installed."""
    try:
        torch = importlib.import_module("torch")
        declare_missing_operators(torch)
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"Cannot import {name} ({error}). Install the PyTorch libraries with: make parity")


def declare_missing_operators(torch: ModuleType) -> None:
    """Lets torchvision be imported beside a CPU build of torch, which lacks two operators that torchvision names."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError:
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
