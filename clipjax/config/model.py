"""The model's sections: what all towers share. Each tower's own options stand in its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipjax.config.fields import LAYOUT, MODEL, experiment, meaning, runtime, section, weights

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]  # gelu is exact (erf); quick_gelu is OpenAI CLIP's
Remat = Literal["none", "attention", "dots", "offload", "full"]  # see docs/mesh.md for what each costs
Init = Literal["clip", "big_vision"]  # whose initial weights
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class BlockConfig:
    """What a transformer's blocks are made of, for both towers and the decoder; the defaults are CLIP's."""

    norm: Literal["layer", "rms"] = weights("layer")
    post_norm: bool = meaning(False)  # x + LN(f(x)) instead of x + f(LN(x)) (EVA-02-CLIP E/14)
    mlp: Literal["plain", "swiglu"] = weights("plain")  # swiglu: silu(gate) * up in the activation's place
    qkv_bias: Literal["qkv", "qv", "none"] = weights("qkv")  # which of query, key and value have a bias (EVA: qv)
    attention_norm: bool = weights(False)  # a norm between attention and its output matrix (EVA-02's sub-LN)
    mlp_norm: bool = weights(False)  # a norm before the MLP's last matrix (EVA-02's sub-LN)
    layer_scale: float = weights(0.0)  # initial value of a learned factor per channel on every branch; 0: none
    # flash: on TPUs one kernel, weights never in HBM (docs/mesh.md)
    attention: Literal["dense", "flash"] = runtime("dense")


@dataclass(frozen=True)
class ImageTowerConfig(BlockConfig):
    name: str = weights("vit")  # a row of clipjax.models.IMAGE_TOWERS
    # pixels; images are square. naflex: the side of the grid of positions, in pixels
    image_size: int = weights(224, converted=True)
    patch_size: int = weights(32)
    max_patches: int = runtime(256)  # naflex: patches an image has at most; batches are padded to as many
    width: int = weights(768)
    depth: int = weights(12)
    num_heads: int = meaning(12)
    mlp_dim: int = weights(3072)
    pool: Literal["cls", "gap", "map", "attentional", "parallel", "cascade"] = meaning("cls")  # docs/models.md
    pooler_queries: int = weights(256)  # pool attentional, parallel, cascade: how many tokens the pooler makes (CoCa)
    pooler_heads: int = meaning(8)
    class_token: bool = weights(False)  # one that is not pooled, where pool is not "cls" (CLIPA, CoCa)
    norm_after_pool: bool = meaning(False)  # ln_post on what pool "cls" or "gap" gives and not on all tokens (CLIPA)
    position: Literal["learned", "sincos", "none"] = weights("learned")
    rope: bool = meaning(False)  # rotary positions in two dimensions (EVA-02)
    rope_theta: float = meaning(10_000.0)
    rope_grid: int = meaning(16)  # rows and columns are scaled to as many, whatever the resolution; 0: not scaled
    pre_norm: bool = weights(True)  # CLIP's LayerNorm between the position embedding and the first block
    patch_bias: bool = weights(False)
    patch_dropout: float = experiment(0.0)  # share of the patches left out, training only (FLIP, 2212.00794)
    projection: bool = weights(True)  # linear map to embed_dim; False: width == embed_dim
    projection_bias: bool = weights(False)
    activation: Activation = meaning("gelu")
    norm_eps: float = meaning(1e-5)
    init: Init = experiment("clip", at_start=True)
    dropout: float = experiment(0.0)
    drop_path: float = experiment(0.0)
    scan_layers: bool = runtime(True, fixed=LAYOUT)
    remat: Remat = runtime("none")
    # resnet, convnext: blocks of each; stage i is 2^i width wide (resnet: 2^(i + 2))
    stages: tuple[int, ...] = weights(())
    # resnet, efficientnet: how much of BatchNorm's running statistics a step keeps
    norm_momentum: float = experiment(0.9)
    width_coefficient: float = weights(1.0)  # efficientnet
    depth_coefficient: float = weights(1.0)  # efficientnet
    # efficientnet: blocks with a stride of 2 whose input has an odd size
    depthwise_padding: tuple[int, ...] = meaning(())
    head: Literal["linear", "mlp"] = weights("linear")  # convnext
    attention_chunk: int = runtime(0)  # a device's examples whose attention weights exist at a time; 0: all


@dataclass(frozen=True)
class TextTowerConfig(BlockConfig):
    # a row of clipjax.models.TEXT_TOWERS; what is marked "bert" is read by that one only
    name: str = weights("transformer")
    vocab_size: int = weights(49408)
    context_length: int = weights(77, converted=True)
    width: int = weights(512)
    depth: int = weights(12)
    num_heads: int = meaning(8)
    mlp_dim: int = weights(2048)
    causal: bool = meaning(True)
    # eos: at eos_id. last: the last position, padding included (SigLIP). cls: a token appended (CoCa), or bert's first
    # position. bert: mean, of all but padding; pooler, BERT's tanh layer on the first position.
    pool: Literal["eos", "last", "gap", "cls", "mean", "pooler"] = meaning("eos")
    eos_id: int = meaning(-1)  # where a text ends: the first position with this id; < 0: the largest id (OpenAI)
    pad_id: int = meaning(0)  # pool="cls" and bert: the padding, which nothing attends to
    position: Literal["learned", "none"] = weights("learned")
    rope: bool = meaning(False)  # rotary positions
    rope_theta: float = meaning(10_000.0)
    projection_bias: bool = weights(False)
    # none: width == embed_dim. bert: mlp, two maps with a GELU between (open_clip).
    projection: Literal["linear", "mlp", "none"] = weights("linear")
    num_positions: int = weights(0)  # bert: rows of the position table; 0: context_length
    positions_after_padding: bool = meaning(False)  # bert: counted from pad_id + 1 on, padding not counted (RoBERTa)
    token_types: int = weights(2)  # bert: rows of the token type table, of which the first is used
    pooler: bool = weights(False)  # bert: has the parameters of BERT's pooler; ALIGN has them and does not use them
    activation: Activation = meaning("gelu")
    norm_eps: float = meaning(1e-5)
    init: Init = experiment("clip", at_start=True)
    dropout: float = experiment(0.0)
    drop_path: float = experiment(0.0)
    scan_layers: bool = runtime(True, fixed=LAYOUT)
    remat: Remat = runtime("none")
    attention_chunk: int = runtime(0)  # a device's examples whose attention weights exist at a time; 0: all


@dataclass(frozen=True)
class DecoderConfig(BlockConfig):
    """The captioner of loss "coca"; depth 0: none."""

    depth: int = weights(0)  # pairs of a self-attention and a cross-attention block
    width: int = weights(512)  # the text tower's
    num_heads: int = meaning(8)
    mlp_dim: int = weights(2048)
    activation: Activation = meaning("gelu")
    norm_eps: float = meaning(1e-5)
    init: Init = experiment("clip", at_start=True)
    dropout: float = experiment(0.0)
    drop_path: float = experiment(0.0)
    remat: Remat = runtime("none")
    attention_chunk: int = runtime(0)


@dataclass(frozen=True)
class ModelConfig:
    image: ImageTowerConfig = section(ImageTowerConfig)
    text: TextTowerConfig = section(TextTowerConfig)
    decoder: DecoderConfig = section(DecoderConfig)
    embed_dim: int = weights(512)
    logit_scale_init: float = experiment(1 / 0.07, at_start=True)  # the scale itself; the parameter is its logarithm
    logit_scale_max: float = experiment(100.0, fixed=MODEL)  # 0: not clipped
    logit_bias_init: float | None = experiment(None, fixed=MODEL)  # None: no bias parameter (CLIP); -10.0 for SigLIP
    dtype: Dtype = experiment("float32")  # compute dtype; parameters are float32
