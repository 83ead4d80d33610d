"""open_clip's CoCa: both towers and the captioner. Configuration from open_clip coca_model.py (MultimodalCfg).

What the captioner's configuration says beside its width, heads and layers is not looked at by open_clip: its MLP is
four times as wide, its activation is the model's, its LayerNorms have the usual epsilon.
"""

from __future__ import annotations

from typing import Any

from clipjax.config import DecoderConfig, ModelConfig
from clipjax.interop import open_clip
from clipjax.interop.names import Description, InteropError, Meaning, Tensor, config_of
from clipjax.interop.open_clip_parts import decoder, image_tower, text_tower

TEXT_FIXED = {name: value for name, value in open_clip.TEXT_FIXED.items() if name != "embed_cls"}


def tensors(model: ModelConfig) -> list[Tensor]:
    if not model.decoder.depth:
        raise InteropError("open_clip's CoCa needs a captioner, and config.model.decoder.depth is 0.")
    return [*open_clip.scalars(model), *text_tower(model, "text."), *image_tower(model), *decoder()]


def matches(description: Description) -> bool:
    return "multimodal_cfg" in description.files.get(open_clip.CONFIG, {}).get("model_cfg", {})


def read(description: Description) -> Meaning:
    model = config_of(description, open_clip.CONFIG)["model_cfg"]
    text, multimodal = model["text_cfg"], open_clip.TEXT | model["multimodal_cfg"]
    open_clip.refuse_others(multimodal, dict(ls_init_value=None), f"{open_clip.CONFIG}: multimodal_cfg")
    if not text.get("embed_cls", False):
        raise InteropError(f"{open_clip.CONFIG}: text_cfg.embed_cls=false in a CoCa is not computed.")
    if not model["vision_cfg"].get("attentional_pool", False):
        raise InteropError(f"{open_clip.CONFIG}: vision_cfg.attentional_pool=false in a CoCa is not computed.")
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
    """Raises InteropError for a captioner that MultimodalCfg cannot say."""
    model, ours = meaning.model, meaning.model.decoder
    plain = "quick_gelu" if model.text.activation == "quick_gelu" else "gelu"
    wanted = DecoderConfig(
        depth=ours.depth, width=ours.width, num_heads=ours.num_heads, mlp_dim=4 * ours.width, activation=plain
    )
    for field in ("mlp_dim", "activation", "norm", "norm_eps", "mlp", "post_norm", "qkv_bias", "layer_scale"):
        found, only = getattr(ours, field), getattr(wanted, field)
        if found != only:
            raise InteropError(f"open_clip's CoCa cannot say config.model.decoder.{field}={found!r} (only {only!r}).")
    text = model.text
    multimodal = dict(context_length=text.context_length, vocab_size=text.vocab_size)
    multimodal |= dict(width=ours.width, heads=ours.num_heads, layers=ours.depth)
    return open_clip.write_around(
        meaning,
        open_clip.write_image(model.image) | dict(output_tokens=True),
        open_clip.write_text(model) | dict(output_tokens=True),
        multimodal_cfg=multimodal,
        custom_text=True,
    )
