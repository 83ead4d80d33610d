"""OpenCLIP's CoCa: both towers and the captioner. Configuration from open_clip coca_model.py (MultimodalCfg).

open_clip reads only width, heads and layers of the captioner. Its MLP is always four times as wide, its activation is
the model's, and its LayerNorms have the default epsilon.
"""

from __future__ import annotations

from typing import Any

from clipjax.config import DecoderConfig, ModelConfig
from clipjax.interop import open_clip, open_clip_config
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor
from clipjax.interop.open_clip_parts import decoder, image_tower, text_tower

TEXT_FIXED = {name: value for name, value in open_clip.TEXT_FIXED.items() if name != "embed_cls"}


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names. Raises InteropError for a model without a captioner."""
    if not model.decoder.depth:
        raise InteropError("open_clip's CoCa needs a captioner; config.model.decoder.depth is 0.")
    return [*open_clip.scalars(model), *text_tower(model, "text."), *image_tower(model), *decoder()]


def matches(description: Description) -> bool:
    """Whether the configuration has a captioner."""
    return "multimodal_cfg" in description.files.get(open_clip.CONFIG, {}).get("model_cfg", {})


def read(description: Description) -> Meaning:
    """Raises InteropError for options that clipjax does not support."""
    model = open_clip_config.model_cfg(description)
    text, multimodal = model["text_cfg"], open_clip.TEXT | model["multimodal_cfg"]
    open_clip_config.refuse_others(multimodal, dict(ls_init_value=None), f"{open_clip.CONFIG}: multimodal_cfg")
    if text.get("hf_model_name"):
        raise InteropError(
            f"{open_clip.CONFIG}: a CoCa with text_cfg.hf_model_name={text['hf_model_name']!r} is not supported."
        )
    if not text.get("embed_cls", False):
        raise InteropError(f"{open_clip.CONFIG}: a CoCa with text_cfg.embed_cls=false is not supported.")
    if not model["vision_cfg"].get("attentional_pool", False):
        raise InteropError(f"{open_clip.CONFIG}: a CoCa with vision_cfg.attentional_pool=false is not supported.")
    captioner = DecoderConfig(
        depth=multimodal["layers"],
        width=multimodal["width"],
        num_heads=multimodal["heads"],
        mlp_dim=4 * multimodal["width"],
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
    )
    towers = open_clip.read_image(model), open_clip.read_text(model, text, TEXT_FIXED)
    return open_clip.read_around(description, *towers, decoder=captioner)


def write(meaning: Meaning) -> dict[str, Any]:
    """open_clip_config.json. A captioner that it cannot express is refused when it is read back."""
    model, text, captioner = meaning.model, meaning.model.text, meaning.model.decoder
    multimodal = dict(context_length=text.context_length, vocab_size=text.vocab_size)
    multimodal |= dict(width=captioner.width, heads=captioner.num_heads, layers=captioner.depth)
    return open_clip.write_around(
        meaning,
        open_clip.write_image(model.image) | dict(output_tokens=True),
        open_clip.write_text(model) | dict(output_tokens=True),
        multimodal_cfg=multimodal,
        custom_text=True,
    )


FAMILY = Family(tensors, matches, read, write=write, **open_clip.OPTIONS)
