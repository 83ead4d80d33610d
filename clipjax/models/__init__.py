"""Towers and the dual encoder. Add a tower: one file, one row in IMAGE_TOWERS or TEXT_TOWERS."""

from clipjax.models.dual_encoder import IMAGE_TOWERS, TEXT_TOWERS, DualEncoder, DualEncoderOutput

__all__ = ["IMAGE_TOWERS", "TEXT_TOWERS", "DualEncoder", "DualEncoderOutput"]
