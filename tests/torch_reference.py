"""Other people's PyTorch code to compare with; skips the test where it is not installed."""

from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks.pytorch import declare_missing_operators


def import_torch(name: str = "torch") -> ModuleType:
    """torch, or a module that needs it ("timm.optim", "open_clip", "transformers")."""
    declare_missing_operators(pytest.importorskip("torch"))
    return pytest.importorskip(name)
