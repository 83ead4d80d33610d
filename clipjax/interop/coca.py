"""open_clip's CoCa: both towers and the captioner."""

from __future__ import annotations

from clipjax.config import ModelConfig
from clipjax.interop.names import Tensor
from clipjax.interop.open_clip_parts import decoder, image_tower, text_tower


def tensors(model: ModelConfig) -> list[Tensor]:
    return [Tensor("logit_scale", ("logit_scale",)), *text_tower(model, "text."), *image_tower(model), *decoder()]
