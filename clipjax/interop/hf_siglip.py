"""transformers' SiglipModel: SigLIP, and SigLIP 2 of a fixed resolution, which is stored the same way.

Names and defaults from transformers models/siglip/{modeling,configuration}_siglip.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config import ModelConfig, PixelConfig, TokenizerConfig
from clipjax.interop import hf_parts, hf_pixels
from clipjax.interop.layouts import linear, patch_conv, reshape
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor, config_of, norm, weight_and_bias
from clipjax.interop.tokenizer_files import name_of, tokenizer_json
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig

PIXELS = PixelConfig()  # squashed to a square, [-1, 1]
PROCESSOR = "SiglipImageProcessor"
SHARED = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)
TEXT = SHARED | dict(vocab_size=32000, max_position_embeddings=64)
VISION = SHARED | dict(image_size=224, patch_size=16, vision_use_head=True)

GEMMA = ("Gemma", "GemmaTokenizer", "Siglip2Tokenizer")
AS_THE_FILE_SAYS = ("PreTrainedTokenizer", "TokenizersBackend")  # transformers' names for any tokenizer.json
NAMED_PAD = {"</s>": dict(pad_id=1)}  # SigLIP's EOS is its padding; any other name is the model's own padding

scalar = reshape(ours=(), theirs=(1,))


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    vision, text, head = "vision_model", "text_model", "vision_model.head"
    ours, parts = "image/map_head/attention", ("query", "key", "value")
    return [
        Tensor("logit_scale", ("logit_scale",), scalar),
        Tensor("logit_bias", ("logit_bias",), scalar),
        Tensor("text/token_embedding/embedding", (f"{text}.embeddings.token_embedding.weight",)),
        Tensor("text/position_embedding", (f"{text}.embeddings.position_embedding.weight",)),
        *hf_parts.blocks("text", text),
        *norm("text/ln_final", f"{text}.final_layer_norm"),
        *weight_and_bias("text/projection", f"{text}.head", linear),
        *weight_and_bias(
            "image/patch_embed", f"{vision}.embeddings.patch_embedding", patch_conv(model.image.patch_size)
        ),
        Tensor("image/position_embedding", (f"{vision}.embeddings.position_embedding.weight",)),
        *hf_parts.blocks("image", vision),
        *norm("image/ln_post", f"{vision}.post_layernorm"),
        Tensor("image/map_head/probe", (f"{head}.probe",), reshape(ours=(-1,), theirs=(1, 1, -1))),
        *(
            Tensor(f"{ours}/{name}/kernel", (f"{head}.attention.in_proj_weight[{i}/3]",), linear)
            for i, name in enumerate(parts)
        ),
        *(Tensor(f"{ours}/{name}/bias", (f"{head}.attention.in_proj_bias[{i}/3]",)) for i, name in enumerate(parts)),
        *weight_and_bias(f"{ours}/out", f"{head}.attention.out_proj", linear),
        *norm("image/map_head/ln", f"{head}.layernorm"),
        *weight_and_bias("image/map_head/mlp/up", f"{head}.mlp.fc1", linear),
        *weight_and_bias("image/map_head/mlp/down", f"{head}.mlp.fc2", linear),
    ]


def matches(description: Description) -> bool:
    """Whether config.json is a SiglipModel's."""
    return description.files.get("config.json", {}).get("model_type") == "siglip"


def read(description: Description) -> Meaning:
    """Raises InteropError for an activation, image processor or head that clipjax does not support."""
    model = read_model(config_of(description, "config.json"))
    return Meaning(model, read_pixels(description, model), tokenizer(description, model.text.vocab_size))


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for the model."""
    return hf_pixels.pixels_of(description, model, PROCESSOR, PIXELS)


def read_model(config: Mapping[str, Any]) -> ModelConfig:
    """The model of config.json (`config`). Raises InteropError for an activation or head that is not supported."""
    vision = hf_parts.section(config, "vision_config", VISION)
    text = hf_parts.section(config, "text_config", TEXT)
    if not vision["vision_use_head"]:
        raise InteropError("config.json: vision_config.vision_use_head is false; expected true, SigLIP's pooling head.")
    return ModelConfig(
        image=ViTConfig(
            **hf_parts.grid(vision),
            pool="map",
            pre_norm=False,
            patch_bias=True,
            projection=False,
            init="big_vision",
            **hf_parts.tower(vision, VISION, "config.json: vision_config"),
        ),
        text=TextTransformerConfig(
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            causal=False,
            pool="last",
            projection_bias=True,
            init="big_vision",
            **hf_parts.tower(text, TEXT, "config.json: text_config"),
        ),
        embed_dim=vision["hidden_size"],
        logit_scale_init=10.0,
        logit_scale_max=0.0,
        logit_bias_init=-10.0,
    )


def tokenizer(description: Description, vocab_size: int) -> TokenizerConfig:
    """SigLIP's tokenizer, or SigLIP 2's, which is Gemma's: whose files they are, tokenizer_config.json says.

    SigLIP: lower case, no punctuation, EOS, padding with EOS. Without tokenizer_config.json, spiece.model is SigLIP's,
    and so is a tokenizer.json for 32,000 pieces; another tokenizer.json and tokenizer.model are SigLIP 2's.
    """
    beside, settings = description.beside, description.files.get("tokenizer_config.json", {})
    kind = settings.get("tokenizer_class", "").removesuffix("Fast")
    if kind in AS_THE_FILE_SAYS and "tokenizer.json" in beside:
        return tokenizer_json(beside)
    if kind in GEMMA or not (kind or "spiece.model" in beside or vocab_size == TEXT["vocab_size"]):
        return gemma(description)
    lowercase = settings.get("do_lower_case", True)
    ends = NAMED_PAD.get(name_of(settings.get("pad_token", "</s>")), {})
    rules = dict(canonicalize=True, drop_underscore=True, **ends)
    if "spiece.model" in beside:
        return TokenizerConfig(path="spiece.model", lowercase=lowercase, **rules)
    return tokenizer_json(beside, lowercase=lowercase, add_bos=False, add_eos=True, **rules)


def gemma(description: Description) -> TokenizerConfig:
    """SigLIP 2's rules for Gemma's tokenizer.model or tokenizer.json: lower case, EOS, no BOS, padding 0."""
    beside, settings = description.beside, description.files.get("tokenizer_config.json", {})
    ends = dict(add_bos=settings.get("add_bos_token") or False, add_eos=settings.get("add_eos_token", True))
    if "tokenizer.model" in beside:
        return TokenizerConfig(path="tokenizer.model", lowercase=True, pad_id=0, **ends)
    return tokenizer_json(beside, lowercase=True, **ends)


def write(meaning: Meaning) -> dict[str, Any]:
    """config.json and preprocessor_config.json."""
    model, image, text = meaning.model, meaning.model.image, meaning.model.text
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "vision_config": hf_parts.their_tower(image)
        | dict(model_type="siglip_vision_model", image_size=image.image_size, patch_size=image.patch_size),
        "text_config": hf_parts.their_tower(text)
        | dict(
            model_type="siglip_text_model",
            vocab_size=text.vocab_size,
            max_position_embeddings=text.context_length,
            projection_size=model.embed_dim,
        ),
    }
    processor = hf_pixels.write_square(PROCESSOR, meaning.pixels, image.image_size)
    return {"config.json": config, hf_pixels.LEGACY: processor}


FAMILY = Family(tensors, matches, read, write=write, pixels=PIXELS, read_pixels=read_pixels, **hf_parts.OPTIONS)
