"""Imports of PyTorch packages that want torchvision, where only its CUDA wheel can be had."""

import importlib


def shim() -> None:
    """Declares the two operators whose absence keeps a CUDA torchvision from importing on CPU PyTorch."""
    import torch

    for name in ("nms", "qnms"):
        try:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            pass  # declared already


def import_open_clip_loss():
    shim()
    return importlib.import_module("open_clip.loss")
