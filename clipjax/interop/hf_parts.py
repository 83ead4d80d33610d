"""What transformers' models share: the names of blocks and activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.interop.json_fields import square
from clipjax.interop.layouts import linear, qkv_bias, qkv_kernel
from clipjax.interop.names import InteropError, Tensor, norm, weight_and_bias

# transformers' hidden_act -> ours. Their "gelu" is exact; the last three are the same approximation.
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
THEIR_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
OPTIONS = dict(format="hf", ignored=r".*\.(position|token_type)_ids")  # of a Family


def blocks(ours: str, theirs: str) -> list[Tensor]:
    """The blocks of a tower of CLIP or SigLIP: ours "image", theirs "vision_model"."""
    at, layer = f"{ours}/block_{{i}}", f"{theirs}.encoder.layers.{{i}}"
    return [
        *norm(f"{at}/ln_1", f"{layer}.layer_norm1"),
        Tensor(f"{at}/attention/qkv/kernel", tuple(f"{layer}.self_attn.{n}_proj.weight" for n in "qkv"), qkv_kernel),
        Tensor(f"{at}/attention/qkv/bias", tuple(f"{layer}.self_attn.{n}_proj.bias" for n in "qkv"), qkv_bias),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.self_attn.out_proj", linear),
        *norm(f"{at}/ln_2", f"{layer}.layer_norm2"),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.mlp.fc1", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.mlp.fc2", linear),
    ]


def bert_embeddings(ours: str, theirs: str) -> list[Tensor]:
    """What comes before the blocks of BERT; `theirs` is the name of the model."""
    embeddings = f"{theirs}.embeddings"
    return [
        Tensor(f"{ours}/token_embedding/embedding", (f"{embeddings}.word_embeddings.weight",)),
        Tensor(f"{ours}/position_embedding", (f"{embeddings}.position_embeddings.weight",)),
        Tensor(f"{ours}/token_type_embedding", (f"{embeddings}.token_type_embeddings.weight",)),
        *norm(f"{ours}/ln_embedding", f"{embeddings}.LayerNorm"),
    ]


def bert_blocks(ours: str, theirs: str) -> list[Tensor]:
    """The blocks of BERT; `theirs` is the name of the model."""
    at, layer = f"{ours}/block_{{i}}", f"{theirs}.encoder.layer.{{i}}"
    qkv = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
    return [
        Tensor(f"{at}/attention/qkv/kernel", tuple(f"{name}.weight" for name in qkv), qkv_kernel),
        Tensor(f"{at}/attention/qkv/bias", tuple(f"{name}.bias" for name in qkv), qkv_bias),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.attention.output.dense", linear),
        *norm(f"{at}/ln_1", f"{layer}.attention.output.LayerNorm"),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.intermediate.dense", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.output.dense", linear),
        *norm(f"{at}/ln_2", f"{layer}.output.LayerNorm"),
    ]


def read_bert(text: Mapping[str, Any], defaults: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """Options of BertConfig for text_config; longest: tokens that texts are cut to, which no file says."""
    return dict(
        vocab_size=text["vocab_size"],
        context_length=min(longest, text["max_position_embeddings"]),
        num_positions=text["max_position_embeddings"],
        token_types=text["type_vocab_size"],
        pad_id=text["pad_token_id"],
        dropout=float(text["hidden_dropout_prob"]),
        **tower(text, defaults, "config.json: text_config"),
    )


def write_bert(text: Any, model_type: str) -> dict[str, Any]:
    """text_config of a BertConfig."""
    return their_tower(text) | dict(
        model_type=model_type,
        vocab_size=text.vocab_size,
        max_position_embeddings=text.num_positions or text.context_length,
        type_vocab_size=text.token_types,
        pad_token_id=text.pad_id,
        hidden_dropout_prob=text.dropout,
    )


def tower(config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """vision_config or text_config -> the fields that image and text towers share.

    defaults: transformers' own for this model; older files leave fields out. where: for messages. Raises InteropError
    for an unknown activation.
    """
    c = {**defaults, **config}
    if c["hidden_act"] not in ACTIVATIONS:
        raise InteropError(f"{where}.hidden_act='{c['hidden_act']}' is not supported. Known: {', '.join(ACTIVATIONS)}.")
    return dict(
        width=c["hidden_size"],
        depth=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        activation=ACTIVATIONS[c["hidden_act"]],
        norm_eps=c["layer_norm_eps"],
    )


def section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """text_config or vision_config (`name`) of config.json, over transformers' defaults for it.

    Older files have a text_config_dict, alone or beside text_config. As in transformers, it then is the whole section,
    with the defaults for what it leaves out; values of text_config that have no default remain. Raises InteropError
    for a field that is null and has a default.
    """
    read = {**defaults, **config.get(name, {})}
    complete = config.get(f"{name}_dict")
    if complete is not None:
        read |= {**defaults, **complete}
    if empty := [field for field in defaults if read[field] is None]:
        raise InteropError(f"config.json: {name}.{empty[0]} is null; expected a value such as {defaults[empty[0]]!r}.")
    return read


def grid(vision: Mapping[str, Any]) -> dict[str, int]:
    """image_size and patch_size of vision_config. Raises InteropError where one is not a square."""
    names = ("image_size", "patch_size")
    return {name: square(vision[name], f"config.json: vision_config.{name}") for name in names}


def their_tower(c: Any) -> dict[str, Any]:
    """The reverse of `tower`; c: our image or text tower's configuration."""
    return dict(
        hidden_size=c.width,
        num_hidden_layers=c.depth,
        num_attention_heads=c.num_heads,
        intermediate_size=c.mlp_dim,
        hidden_act=THEIR_ACTIVATIONS[c.activation],
        layer_norm_eps=c.norm_eps,
    )
