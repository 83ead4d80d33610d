"""How each family's own code turns an image into pixels: values of config.data.pixels.

    config.data.pixels = PIXEL_PRESETS["siglip2_hf"]

A preset without its own mean and deviation has 0.5, that is pixels in [-1, 1]. The same weights may be used with
several presets: SigLIP was trained with "big_vision", while transformers and open_clip publish scores with theirs.
"""

from __future__ import annotations

from clipjax.config import PixelConfig

CLIP_STATISTICS = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
IMAGENET_STATISTICS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

PIXEL_PRESETS: dict[str, PixelConfig] = {
    # openai/CLIP, EVA-CLIP, MetaCLIP, and open_clip's resize mode "shortest" with its default mean and deviation.
    "openai": PixelConfig(resize="center_crop", interpolation="bicubic", alpha="drop", **CLIP_STATISTICS),
    # transformers' CLIPImageProcessor: halves an odd margin the other way, composes transparency over white.
    "clip_hf": PixelConfig(resize="center_crop", interpolation="bicubic", center="floor", **CLIP_STATISTICS),
    # open_clip's LAION-2B ViT-L/14.
    "openai_half": PixelConfig(resize="center_crop", interpolation="bicubic", alpha="drop"),
    # open_clip's resize mode "longest".
    "open_clip_longest": PixelConfig(resize="pad", interpolation="bicubic", alpha="drop", **CLIP_STATISTICS),
    # CLIPA in open_clip.
    "clipa": PixelConfig(resize="squash", interpolation="bilinear", alpha="drop", **IMAGENET_STATISTICS),
    # open_clip's SigLIP and SigLIP 2 differ from these in transparency only.
    "siglip_hf": PixelConfig(resize="squash", interpolation="bicubic"),
    "siglip2_hf": PixelConfig(resize="squash", interpolation="bilinear"),
    "big_vision": PixelConfig(resize="squash", interpolation="bilinear", antialias=False, alpha="drop"),
    # MobileCLIP's, in open_clip: values of 0 to 1.
    "mobileclip": PixelConfig(
        resize="center_crop", interpolation="bilinear", alpha="drop", mean=(0.0,) * 3, std=(1.0,) * 3
    ),
    # transformers' align-base: both sides to 346, 289 from the centre.
    "align": PixelConfig(resize="squash", scale_to=346, center="floor", interpolation="bilinear"),
}
