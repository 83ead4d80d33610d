"""Other people's PyTorch code to compare with; skips the test where it is not installed."""

from __future__ import annotations

from types import ModuleType

import pytest


def import_torch(name: str = "torch") -> ModuleType:
    """torch, or a module that needs it ("timm.optim", "open_clip", "transformers")."""
    torch = pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # torchvision's operators are missing next to a CPU torch; their names are enough for importing it.
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
    except ImportError:
        pass
    return pytest.importorskip(name)
