"""OpenCLIP's models with convolutional image towers: ModifiedResNet, and timm's ConvNeXt.

Configuration from open_clip model.py, modified_resnet.py and timm_model.py, and from timm convnext.py. The text tower
is that of clipjax.interop.open_clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config import ImageTowerConfig, ModelConfig
from clipjax.interop import open_clip, open_clip_config, timm_trunks
from clipjax.interop.config_files import timm_name
from clipjax.interop.conv_towers import convnext, resnet
from clipjax.interop.json_fields import square
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor
from clipjax.interop.open_clip_parts import text_tower
from clipjax.models.towers.convnext import ConvNeXtConfig
from clipjax.models.towers.resnet import ResNetConfig

# timm's name -> (blocks of each stage, width of the first stage, eps of LayerNorm).
TRUNKS = {
    "convnext_tiny": ((3, 3, 9, 3), 96, 1e-6),
    "convnext_small": ((3, 3, 27, 3), 96, 1e-6),
    "convnext_base": ((3, 3, 27, 3), 128, 1e-6),
    "convnext_large": ((3, 3, 27, 3), 192, 1e-6),
    "convnext_xlarge": ((3, 3, 27, 3), 256, 1e-6),
    "convnext_xxlarge": ((3, 4, 30, 3), 384, 1e-5),
}
CONVNEXT_FIXED = dict(timm_pool="", timm_proj_bias=False, timm_drop=0.0, patch_dropout=0.0)


def resnet_tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names with a ResNet."""
    return [*open_clip.scalars(model), *text_tower(model, ""), *resnet(model)]


def convnext_tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names with a ConvNeXt."""
    return [*open_clip.scalars(model), *text_tower(model, ""), *convnext(model)]


def matches_resnet(description: Description) -> bool:
    """Whether the image tower is a ResNet, which has a list of layers."""
    return isinstance(_vision(description).get("layers"), list) and not _hf_text(description)


def matches_convnext(description: Description) -> bool:
    """Whether the image tower is timm's ConvNeXt."""
    return timm_name(_vision(description)).startswith("convnext_") and not _hf_text(description)


def read_resnet(description: Description) -> Meaning:
    """Raises InteropError for a text tower that clipjax does not support."""
    vision = open_clip_config.model_cfg(description)["vision_cfg"]
    width = vision.get("width", 64)
    image = ResNetConfig(
        image_size=_image_size(vision),
        stages=tuple(vision["layers"]),
        width=width,
        num_heads=32 * width // vision.get("head_width", 64),
    )
    return _read(description, image)


def read_convnext(description: Description) -> Meaning:
    """Raises InteropError for a trunk, head or text tower that clipjax does not support."""
    vision = open_clip_config.model_cfg(description)["vision_cfg"]
    name, head = timm_name(vision) or vision["timm_model_name"], vision.get("timm_proj", "linear")
    where = f"{open_clip.CONFIG}: vision_cfg"
    if name not in TRUNKS or head not in ("linear", "mlp"):
        raise InteropError(
            f"{where} has timm_model_name='{name}' and timm_proj='{head}'. Known: {', '.join(TRUNKS)}; linear, mlp."
        )
    open_clip_config.refuse_others(vision, CONVNEXT_FIXED, where)
    stages, width, norm_eps = TRUNKS[name]
    image = ConvNeXtConfig(
        image_size=_image_size(vision),
        stages=stages,
        width=width,
        norm_eps=norm_eps,
        head=head,
        drop_path=timm_trunks.drop_path(vision),
    )
    return _read(description, image)


def write_resnet(meaning: Meaning) -> dict[str, Any]:
    """open_clip_config.json with a ResNet."""
    image = meaning.model.image
    vision = dict(image_size=image.image_size, layers=list(image.stages), width=image.width, patch_size=None)
    return _write(meaning, vision | dict(head_width=32 * image.width // image.num_heads))


def write_convnext(meaning: Meaning) -> dict[str, Any]:
    """open_clip_config.json with a ConvNeXt. Raises InteropError for one that timm has no name for."""
    image = meaning.model.image
    names = [name for name, shape in TRUNKS.items() if shape == (image.stages, image.width, image.norm_eps)]
    if not names:
        raise InteropError(
            f"timm has no ConvNeXt with config.model.image.stages={image.stages}, width={image.width} and "
            f"norm_eps={image.norm_eps}. It has {', '.join(TRUNKS)}."
        )
    vision = dict(
        timm_model_name=names[0],
        timm_model_pretrained=False,
        timm_pool="",
        timm_proj=image.head,
        timm_drop=0.0,
        timm_drop_path=image.drop_path,
        image_size=image.image_size,
    )
    return _write(meaning, vision)


def _vision(description: Description) -> Mapping[str, Any]:
    return description.files.get(open_clip.CONFIG, {}).get("model_cfg", {}).get("vision_cfg", {})


def _hf_text(description: Description) -> bool:
    text = description.files.get(open_clip.CONFIG, {}).get("model_cfg", {}).get("text_cfg", {})
    return bool(text.get("hf_model_name"))


def _image_size(vision: Mapping[str, Any]) -> int:
    return square(vision.get("image_size", 224), f"{open_clip.CONFIG}: vision_cfg.image_size")


def _read(description: Description, image: ImageTowerConfig) -> Meaning:
    model = open_clip_config.model_cfg(description)
    return open_clip.read_around(description, image, open_clip.read_text(model, model.get("text_cfg", {})))


def _write(meaning: Meaning, vision: Mapping[str, Any]) -> dict[str, Any]:
    return open_clip.write_around(meaning, vision, open_clip.write_text(meaning.model))


RESNET = Family(
    resnet_tensors,
    matches_resnet,
    read_resnet,
    write=write_resnet,
    image=ResNetConfig,
    renamed=open_clip.renamed,
    **open_clip.OPTIONS,
)
CONVNEXT = Family(
    convnext_tensors,
    matches_convnext,
    read_convnext,
    write=write_convnext,
    image=ConvNeXtConfig,
    renamed=open_clip.renamed,
    **open_clip.OPTIONS,
)
