"""big_vision's .npz of SigLIP, with a name per layer ("encoderblock_0", ...) or all layers stacked ("encoderblock").

Names from big_vision models/vit.py, models/proj/image_text/{two_towers,text_transformer}.py and utils.py. The file
holds arrays only; sizes are read from them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from clipjax.config import ModelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop.hf_siglip import scalar
from clipjax.interop.layouts import Layout, reshape
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor
from clipjax.interop.tokenizer_files import own, write_own
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig

PIXELS = PIXEL_PRESETS["big_vision"]
IGNORED = r"params/(opt|chrono|extra)/.*"


def renamed(name: str) -> str:
    """A name in a file, with "params/" in front: files without optimizer state lack it."""
    return name if name.startswith("params/") else f"params/{name}"


def tensors(model: ModelConfig, stacked: bool = False) -> list[Tensor]:
    """The table of names. stacked: whether an array holds all layers."""
    image, text = "params/img", "params/txt"
    head = f"{image}/MAPHead_0"
    grid = reshape((-1, model.image.width), (1, -1, model.image.width))
    rows = reshape((-1, model.text.width), (1, -1, model.text.width))
    patch = reshape((-1, model.image.width), (model.image.patch_size, model.image.patch_size, 3, model.image.width))
    return [
        Tensor("logit_scale", ("params/t",), scalar),
        Tensor("logit_bias", ("params/b",), scalar),
        Tensor("image/patch_embed/kernel", (f"{image}/embedding/kernel",), patch),
        Tensor("image/patch_embed/bias", (f"{image}/embedding/bias",)),
        Tensor("image/position_embedding", (f"{image}/pos_embedding",), grid),
        *_blocks("image", f"{image}/Transformer", model.image, stacked),
        *_same("image/ln_post", f"{image}/Transformer/encoder_norm", "scale"),
        Tensor("image/map_head/probe", (f"{head}/probe",), reshape((-1,), (1, 1, -1))),
        *(
            tensor
            for name in ("query", "key", "value")
            for tensor in _heads(f"image/map_head/attention/{name}", f"{head}/MultiHeadDotProductAttention_0/{name}",
                                 model.image)
        ),
        *_out("image/map_head/attention/out", f"{head}/MultiHeadDotProductAttention_0/out", model.image),
        *_same("image/map_head/ln", f"{head}/LayerNorm_0", "scale"),
        *_same("image/map_head/mlp/up", f"{head}/MlpBlock_0/Dense_0", "kernel"),
        *_same("image/map_head/mlp/down", f"{head}/MlpBlock_0/Dense_1", "kernel"),
        Tensor("text/token_embedding/embedding", (f"{text}/Embed_0/embedding",)),
        Tensor("text/position_embedding", (f"{text}/pos_embedding",), rows),
        *_blocks("text", f"{text}/Encoder_0", model.text, stacked),
        *_same("text/ln_final", f"{text}/Encoder_0/encoder_norm", "scale"),
        *_same("text/projection", f"{text}/head", "kernel"),
    ]  # fmt: skip


stacked_tensors = functools.partial(tensors, stacked=True)


def _blocks(ours: str, theirs: str, tower: Any, stacked: bool) -> list[Tensor]:
    at, layer = f"{ours}/block_{{i}}", f"{theirs}/encoderblock" + ("" if stacked else "_{i}")
    attention = f"{layer}/MultiHeadDotProductAttention_0"
    width, heads = tower.width, tower.num_heads
    each = tuple(f"{attention}/{name}" for name in ("query", "key", "value"))
    return [
        *_same(f"{at}/ln_1", f"{layer}/LayerNorm_0", "scale"),
        Tensor(f"{at}/attention/qkv/kernel", tuple(f"{n}/kernel" for n in each), _qkv((width, heads, -1), width)),
        Tensor(f"{at}/attention/qkv/bias", tuple(f"{n}/bias" for n in each), _qkv((heads, -1), width)),
        *_out(f"{at}/attention/out", f"{attention}/out", tower),
        *_same(f"{at}/ln_2", f"{layer}/LayerNorm_1", "scale"),
        *_same(f"{at}/mlp/up", f"{layer}/MlpBlock_0/Dense_0", "kernel"),
        *_same(f"{at}/mlp/down", f"{layer}/MlpBlock_0/Dense_1", "kernel"),
    ]


def _qkv(theirs: tuple[int, ...], width: int) -> Layout:
    """Query, key and value [..., heads, head width] <-> our [..., 3, width]."""
    ours = (*theirs[:-2], width)

    def read(arrays: list) -> Any:
        return np.stack([array.reshape(ours) for array in arrays], axis=-2)

    return Layout(read, lambda array: [array[..., i, :].reshape(theirs) for i in range(3)])


def _same(ours: str, theirs: str, first: str) -> list[Tensor]:
    return [Tensor(f"{ours}/{name}", (f"{theirs}/{name}",)) for name in (first, "bias")]


def _heads(ours: str, theirs: str, tower: Any) -> list[Tensor]:
    width, heads = tower.width, tower.num_heads
    return [
        Tensor(f"{ours}/kernel", (f"{theirs}/kernel",), reshape((width, width), (width, heads, -1))),
        Tensor(f"{ours}/bias", (f"{theirs}/bias",), reshape((width,), (heads, -1))),
    ]


def _out(ours: str, theirs: str, tower: Any) -> list[Tensor]:
    width, heads = tower.width, tower.num_heads
    kernel = Tensor(f"{ours}/kernel", (f"{theirs}/kernel",), reshape((width, width), (heads, -1, width)))
    return [kernel, Tensor(f"{ours}/bias", (f"{theirs}/bias",))]


def matches(description: Description) -> bool:
    """Whether there is a name per layer."""
    return any(renamed(n).startswith("params/img/Transformer/encoderblock_0/") for n in description.shapes)


def matches_stacked(description: Description) -> bool:
    """Whether an array holds all layers."""
    return any(renamed(n).startswith("params/img/Transformer/encoderblock/") for n in description.shapes)


def read(description: Description) -> Meaning:
    """SigLIP with the sizes of the arrays. Raises InteropError where arrays are missing or a size is ambiguous."""
    shapes = {renamed(name): shape for name, shape in description.shapes.items()}
    try:
        patch, _, _, width = shapes["params/img/embedding/kernel"]
        positions = shapes["params/img/pos_embedding"][1]
        vocab, _ = shapes["params/txt/Embed_0/embedding"]
        context, text_width = shapes["params/txt/pos_embedding"][1:]
        side = math.isqrt(positions)
        if (patch, side) == (14, 27):
            raise InteropError(
                "27 x 27 patches of 14 pixels come from images of 378 or 384 pixels; the file does not say which. "
                "Add --preset=siglip_so400m14_384 or another preset."
            )
        image = ViTConfig(
            image_size=side * patch, patch_size=patch, width=width, pool="map", pre_norm=False, patch_bias=True,
            projection=False, **_tower(shapes, "params/img/Transformer"),
        )  # fmt: skip
        text = TextTransformerConfig(
            vocab_size=vocab, context_length=context, width=text_width, causal=False, pool="last", projection_bias=True,
            **_tower(shapes, "params/txt/Encoder_0"),
        )  # fmt: skip
    except (KeyError, IndexError) as error:
        raise InteropError(f"This is not a SigLIP of big_vision's: {error} is missing.") from error
    scale = dict(logit_scale_init=10.0, logit_scale_max=0.0, logit_bias_init=-10.0)
    return Meaning(ModelConfig(image=image, text=text, embed_dim=width, **scale), PIXELS, own(description))


def write(meaning: Meaning) -> dict[str, Any]:
    """The tokenizer's options: the .npz holds arrays alone, and big_vision has them in its own configuration."""
    return write_own(meaning.tokenizer)


def _tower(shapes: Any, theirs: str) -> dict[str, Any]:
    blocks = {n.removeprefix(f"{theirs}/").split("/")[0] for n in shapes if n.startswith(f"{theirs}/encoderblock")}
    first = f"{theirs}/{min(blocks)}"
    up = shapes[f"{first}/MlpBlock_0/Dense_0/kernel"]
    return dict(
        depth=up[0] if len(up) == 3 else len(blocks),
        num_heads=shapes[f"{first}/MultiHeadDotProductAttention_0/query/kernel"][-2],
        mlp_dim=up[-1],
        activation="gelu_tanh",
        norm_eps=1e-6,
        init="big_vision",
    )


_OPTIONS = dict(write=write, ignored=IGNORED, renamed=renamed, weights="checkpoint.npz")
PER_LAYER = Family(tensors, matches, read, format="big_vision", **_OPTIONS)
STACKED = Family(stacked_tensors, matches_stacked, read, format="big_vision_stacked", **_OPTIONS)
