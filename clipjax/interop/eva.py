"""EVA-CLIP under both of its sets of names: baaivision/EVA's own, and timm's trunk inside OpenCLIP (visual.trunk).

OpenCLIP's configuration names timm's trunk; its settings are those of our presets. The original files have no
configuration: they are state dicts for rei/eva_clip/factory.py, where the user names the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config import ModelConfig
from clipjax.interop import open_clip, open_clip_config, timm_trunks, tokenizer_files
from clipjax.interop.layouts import in_proj_kernel, linear, patch_conv, qkv_bias, qkv_kernel, reshape
from clipjax.interop.names import (
    Description,
    Family,
    InteropError,
    Meaning,
    Tensor,
    computed_fields,
    norm,
    weight_and_bias,
)
from clipjax.interop.open_clip_parts import text_tower
from clipjax.models.presets.eva import EVA_PRESETS
from clipjax.models.towers.vit import ViTConfig

# timm models/eva.py: the trunks of OpenCLIP's EVA01-* and EVA02-* -> our image tower.
TRUNKS: dict[str, ViTConfig] = {
    "eva_giant_patch14_224": EVA_PRESETS["eva01_clip_g14"].image,
    "eva02_base_patch16_clip_224": EVA_PRESETS["eva02_clip_b16"].image,
    "eva02_large_patch14_clip_224": EVA_PRESETS["eva02_clip_l14"].image,
    "eva02_large_patch14_clip_336": EVA_PRESETS["eva02_clip_l14_336"].image,
    "eva02_enormous_patch14_clip_224": EVA_PRESETS["eva02_clip_bige14"].image,
}
# timm's name of a part of a block -> the original's (rei/eva_clip/eva_vit_model.py).
ORIGINAL_NAMES = {
    "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias",
    "attn.norm": "attn.inner_attn_ln",
    "mlp.fc1_g": "mlp.w1",
    "mlp.fc1_x": "mlp.w2",
    "mlp.norm": "mlp.ffn_ln",
    "mlp.fc2": "mlp.w3",
}
IGNORED = r".*rope\.freqs_(cos|sin)|.*\.rope\..*|text\.attn_mask"  # tables of constants, which code computes itself


def timm_tensors(model: ModelConfig) -> list[Tensor]:
    """The names in OpenCLIP's EVA01-* and EVA02-*."""
    return _tensors(model, "visual.trunk", {})


def original_tensors(model: ModelConfig) -> list[Tensor]:
    """The names in baaivision/EVA's EVA_CLIP_*.pt and EVA01/02_CLIP_*.pt."""
    return _tensors(model, "visual", ORIGINAL_NAMES)


def matches(description: Description) -> bool:
    """Whether OpenCLIP's configuration names one of timm's EVA trunks."""
    return timm_trunks.named(description).startswith(("eva_", "eva02_"))


def read(description: Description) -> Meaning:
    """Raises InteropError for a trunk, a pooling or an image size that no EVA-CLIP has."""
    model = open_clip_config.model_cfg(description)
    vision = model["vision_cfg"]
    image = timm_trunks.known(vision, TRUNKS)
    if vision.get("timm_pool", "avg") != "token" or vision.get("timm_proj", "linear"):
        raise InteropError(f"{timm_trunks.WHERE}: expected timm_pool 'token' and timm_proj null; got {vision}.")
    image = timm_trunks.with_dropouts(image, vision)
    return open_clip.read_around(description, image, open_clip.read_text(model, model.get("text_cfg", {})))


def write(meaning: Meaning) -> dict[str, Any]:
    """Raises InteropError for a trunk that timm has no name for."""
    image = meaning.model.image
    names = [name for name, trunk in TRUNKS.items() if computed_fields(trunk) == computed_fields(image)]
    if not names:
        raise InteropError(f"config.model.image is not one of timm's EVA trunks: {', '.join(TRUNKS)}.")
    vision = timm_trunks.write(names[0], image, timm_pool="token", timm_proj=None)
    return open_clip.write_around(meaning, vision, open_clip.write_text(meaning.model), custom_text=True)


def matches_original(description: Description) -> bool:
    """Whether there is a q_bias and no trunk. EVA-CLIP-8B and 18B have no such bias and need --family."""
    return "visual.cls_token" in description.shapes and "visual.blocks.0.attn.q_bias" in description.shapes


def read_original(description: Description) -> Meaning:
    """The preset with these sizes, which no two EVA-CLIP models share. Raises InteropError where there is none."""
    fitting = [model for model in EVA_PRESETS.values() if _has_sizes(model, description.shapes)]
    if len(fitting) != 1:
        raise InteropError(
            "EVA-CLIP's own files have no configuration, and no published model has these sizes. Name one with "
            f"--preset, such as {next(iter(EVA_PRESETS))}."
        )
    return Meaning(fitting[0], open_clip.PIXELS, tokenizer_files.openai(description.beside))


def write_original(meaning: Meaning) -> dict[str, Any]:
    """No files: their code is told the model's name, and prepares images in one way, which export.py compares."""
    return {}


def _has_sizes(model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    image, text = model.image, model.text
    tokens = (image.image_size // image.patch_size) ** 2 + 1
    depths = f"visual.blocks.{image.depth - 1}.norm1.weight", f"text.transformer.resblocks.{text.depth - 1}.ln_1.weight"
    beyond = f"visual.blocks.{image.depth}.norm1.weight", f"text.transformer.resblocks.{text.depth}.ln_1.weight"
    up = "w1" if image.mlp == "swiglu" else "fc1"
    expected = {
        "visual.pos_embed": (1, tokens, image.width),
        "visual.patch_embed.proj.weight": (image.width, 3, image.patch_size, image.patch_size),
        f"visual.blocks.0.mlp.{up}.weight": (image.mlp_dim, image.width),
        "visual.head.weight": (model.embed_dim, image.width),
        "text.token_embedding.weight": (text.vocab_size, text.width),
        "text.positional_embedding": (text.context_length, text.width),
    }
    return (
        all(shapes.get(name) == shape for name, shape in expected.items())
        and all(name in shapes for name in depths)
        and not any(name in shapes for name in beyond)
    )


def _vision(description: Description) -> dict[str, Any]:
    return description.files.get(open_clip.CONFIG, {}).get("model_cfg", {}).get("vision_cfg", {})


def _tensors(model: ModelConfig, theirs: str, renamed: dict[str, str]) -> list[Tensor]:
    image = model.image
    ours, at = "image/block_{i}", theirs + ".blocks.{i}"
    separate = image.attention_norm  # models with sub-LN keep q, k and v apart
    gated, fused_gate = image.mlp == "swiglu", image.mlp == "swiglu" and not image.mlp_norm and not renamed

    def name(part: str) -> str:
        # Without a gate the original's names are fc1 and fc2 too.
        return f"{at}.{renamed.get(part, part)}" if gated or not part.startswith("mlp.fc") else f"{at}.{part}"

    def scale(ours: str, theirs: str) -> list[Tensor]:
        return norm(ours, theirs)[: 1 if image.norm == "rms" else 2]

    def bias(part: str) -> str:
        return name(f"attn.{part}_proj.bias") if separate else f"{at}.attn.{part}_bias"

    weights = tuple(f"{at}.attn.{part}_proj.weight" for part in "qkv")
    qkv = Tensor(f"{ours}/attention/qkv/kernel", (f"{at}.attn.qkv.weight",), in_proj_kernel)
    if separate:
        qkv = Tensor(f"{ours}/attention/qkv/kernel", weights, qkv_kernel)
    tensors = [
        *open_clip.scalars(model),
        *text_tower(model, "text."),
        Tensor("image/cls_token", (f"{theirs}.cls_token",), reshape((-1,), (1, 1, -1))),
        Tensor("image/position_embedding", (f"{theirs}.pos_embed",), reshape((-1, image.width), (1, -1, image.width))),
        *weight_and_bias("image/patch_embed", f"{theirs}.patch_embed.proj", patch_conv(image.patch_size)),
        *scale(f"{ours}/ln_1", f"{at}.norm1"),
        qkv,
        *([Tensor(f"{ours}/attention/qkv/bias", (bias("q"), bias("v")), qkv_bias)] if image.qkv_bias == "qv" else []),
        *(scale(f"{ours}/attention/ln", name("attn.norm")) if image.attention_norm else []),
        *weight_and_bias(f"{ours}/attention/out", f"{at}.attn.proj", linear),
        *scale(f"{ours}/ln_2", f"{at}.norm2"),
    ]
    if fused_gate:
        for i, part in enumerate(("gate", "up")):
            tensors.append(Tensor(f"{ours}/mlp/{part}/kernel", (f"{at}.mlp.fc1.weight[{i}/2]",), linear))
            tensors.append(Tensor(f"{ours}/mlp/{part}/bias", (f"{at}.mlp.fc1.bias[{i}/2]",)))
    elif gated:
        tensors += weight_and_bias(f"{ours}/mlp/gate", name("mlp.fc1_g"), linear)
        tensors += weight_and_bias(f"{ours}/mlp/up", name("mlp.fc1_x"), linear)
    else:
        tensors += weight_and_bias(f"{ours}/mlp/up", name("mlp.fc1"), linear)
    return [
        *tensors,
        *(scale(f"{ours}/mlp/ln", name("mlp.norm")) if image.mlp_norm else []),
        *weight_and_bias(f"{ours}/mlp/down", name("mlp.fc2"), linear),
        *scale("image/ln_post", f"{theirs}.norm"),
        *weight_and_bias("image/projection", f"{theirs}.head", linear),
    ]


TIMM = Family(timm_tensors, matches, read, write=write, **open_clip.OPTIONS | dict(ignored=IGNORED))
ORIGINAL = Family(
    original_tensors,
    matches_original,
    read_original,
    write=write_original,
    **open_clip.OPTIONS | dict(ignored=IGNORED, format="eva_clip", weights="model.pt", read_pixels=None),
)
