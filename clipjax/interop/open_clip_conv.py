"""OpenCLIP's and OpenAI's models with convolutional image towers: ModifiedResNet, and timm's ConvNeXt trunks.

From open_clip model.py, modified_resnet.py and timm_model.py, timm convnext.py, and openai/CLIP clip/model.py. The text
towers, and what no file says of OpenAI's, are those of clipjax.interop.open_clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clipjax.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from clipjax.interop import open_clip, tokenizer_files
from clipjax.interop.conv_towers import convnext, resnet
from clipjax.interop.described import Description, Meaning, config_of
from clipjax.interop.names import InteropError, Tensor
from clipjax.interop.open_clip import PIXELS
from clipjax.interop.open_clip_parts import text_tower

# timm's name -> (blocks of each stage, width of the first, eps of LayerNorm).
TRUNKS = {
    "convnext_tiny": ((3, 3, 9, 3), 96, 1e-6),
    "convnext_small": ((3, 3, 27, 3), 96, 1e-6),
    "convnext_base": ((3, 3, 27, 3), 128, 1e-6),
    "convnext_large": ((3, 3, 27, 3), 192, 1e-6),
    "convnext_xlarge": ((3, 3, 27, 3), 256, 1e-6),
    "convnext_xxlarge": ((3, 4, 30, 3), 384, 1e-5),
}
CONVNEXT_FIXED = dict(timm_pool="", timm_proj_bias=False, timm_drop=0.0)


def resnet_tensors(model: ModelConfig) -> list[Tensor]:
    return [*open_clip.scalars(model), *text_tower(model, ""), *resnet(model)]


def convnext_tensors(model: ModelConfig) -> list[Tensor]:
    return [*open_clip.scalars(model), *text_tower(model, ""), *convnext(model)]


def matches_resnet(description: Description) -> bool:
    return isinstance(_vision(description).get("layers"), list)


def matches_convnext(description: Description) -> bool:
    return str(_vision(description).get("timm_model_name", "")).startswith("convnext_")


def matches_openai(description: Description) -> bool:
    marks = ("input_resolution", "context_length", "vocab_size", "visual.layer1.0.conv1.weight")
    return all(name in description.shapes for name in marks)


def read_resnet(description: Description) -> Meaning:
    vision = _vision(description)
    width = vision.get("width", 64)
    image = ImageTowerConfig(
        name="resnet",
        image_size=vision.get("image_size", 224),
        stages=tuple(vision["layers"]),
        width=width,
        num_heads=32 * width // vision.get("head_width", 64),
        scan_layers=False,
    )
    return _read(description, image)


def read_convnext(description: Description) -> Meaning:
    """Raises InteropError for a trunk or a head that is not ours."""
    vision = _vision(description)
    name, head = vision["timm_model_name"], vision.get("timm_proj", "linear")
    where = f"{open_clip.CONFIG}: vision_cfg"
    if name not in TRUNKS or head not in ("linear", "mlp"):
        raise InteropError(
            f"{where} has timm_model_name='{name}' and timm_proj='{head}'; known are {', '.join(TRUNKS)}, and "
            "linear or mlp."
        )
    open_clip.refuse_others(vision, CONVNEXT_FIXED, where)
    stages, width, norm_eps = TRUNKS[name]
    image = ImageTowerConfig(
        name="convnext",
        image_size=vision.get("image_size", 224),
        stages=stages,
        width=width,
        norm_eps=norm_eps,
        head=head,
        drop_path=float(vision.get("timm_drop_path") or 0.0),
        scan_layers=False,
    )
    return _read(description, image)


def read_openai(description: Description) -> Meaning:
    """Sizes from the tensors; heads of 64, QuickGELU and the largest id are OpenAI's."""
    shapes = {open_clip.renamed(name): shape for name, shape in description.shapes.items()}
    try:
        width = shapes["visual.layer1.0.conv1.weight"][0]
        positions, embed_dim = shapes["visual.attnpool.positional_embedding"][0], shapes["text_projection"][1]
        context, text_width = shapes["positional_embedding"]
        vocab = shapes["token_embedding.weight"][0]
    except KeyError as error:
        raise InteropError(f"This is no CLIP of OpenAI's with a ResNet: {error} is missing.") from error
    blocks = lambda stage: sum(n.startswith(f"visual.layer{stage}.") and n.endswith("conv1.weight") for n in shapes)  # noqa: E731
    image = ImageTowerConfig(
        name="resnet",
        image_size=32 * math.isqrt(positions - 1),
        stages=tuple(blocks(stage) for stage in (1, 2, 3, 4)),
        width=width,
        num_heads=32 * width // 64,
        scan_layers=False,
    )
    text = TextTowerConfig(
        vocab_size=vocab,
        context_length=context,
        width=text_width,
        depth=sum(name.startswith("transformer.") and name.endswith("ln_1.weight") for name in shapes),
        num_heads=text_width // 64,
        mlp_dim=4 * text_width,
        activation="quick_gelu",
    )
    return Meaning(
        ModelConfig(image=image, text=text, embed_dim=embed_dim), PIXELS, tokenizer_files.openai(description.beside)
    )


def write_resnet(meaning: Meaning) -> dict[str, Any]:
    image = meaning.model.image
    vision = dict(image_size=image.image_size, layers=list(image.stages), width=image.width, patch_size=None)
    return _write(meaning, vision | dict(head_width=32 * image.width // image.num_heads))


def write_convnext(meaning: Meaning) -> dict[str, Any]:
    """Raises InteropError for a trunk that timm has no name for."""
    image = meaning.model.image
    names = [name for name, shape in TRUNKS.items() if shape == (image.stages, image.width, image.norm_eps)]
    if not names:
        raise InteropError(
            f"timm has no ConvNeXt of stages={image.stages}, width={image.width} and norm_eps={image.norm_eps}."
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


def _read(description: Description, image: ImageTowerConfig) -> Meaning:
    model = config_of(description, open_clip.CONFIG)["model_cfg"]
    return open_clip.read_around(description, image, open_clip.read_text(model, model.get("text_cfg", {})))


def _write(meaning: Meaning, vision: Mapping[str, Any]) -> dict[str, Any]:
    return open_clip.write_around(meaning, vision, open_clip.write_text(meaning.model))
