"""The model's sections: what all towers share. Each tower's own options are in its file in models/towers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from clipjax.config.fields import MODEL, experiment, meaning, part, runtime, section, weights
from clipjax.config.ranges import (
    BIAS,
    DEPTH,
    DEPTH_OR_ZERO,
    EXAMPLES_OR_ZERO,
    PIXELS,
    POSITIONS,
    RATE,
    SCALE,
    SCALE_OR_ZERO,
    SHARE,
    VOCABULARY,
    WEIGHT,
    WIDTH,
)

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]  # gelu is exact (erf); quick_gelu is OpenAI CLIP's
Remat = Literal["none", "attention", "dots", "offload", "full"]  # docs/mesh.md says what each costs
# auto: fused kernels on TPUs and GPUs, whose attention weights never reach memory; plain elsewhere (docs/mesh.md)
AttentionKind = Literal["auto", "dense", "flash"]
Init = Literal["clip", "big_vision"]  # the codebase whose initial weights a tower starts from
Dtype = Literal["float32", "bfloat16"]
ComputeDtype = Literal["auto", "float32", "bfloat16"]


class PatchBudget(NamedTuple):
    """How an image is cut into patches at its own aspect ratio: a patch's side in pixels, and the most patches.

    training: the budgets of which each training batch draws one as its max_patches; (): max_patches itself.
    """

    patch_size: int
    max_patches: int
    training: tuple[int, ...] = ()


@dataclass(frozen=True)
class BlockConfig:
    """The options of a block in the ViTs, the text transformer and the decoder. The defaults are CLIP's."""

    width: int = weights(512, within=WIDTH)  # channels of a token
    depth: int = weights(12, within=DEPTH)  # number of blocks
    num_heads: int = meaning(8, within=WIDTH)  # of attention; a divisor of width
    mlp_dim: int = weights(2048, within=WIDTH)  # hidden units of a block's MLP
    activation: Activation = meaning("gelu")  # of the MLP, unless mlp="swiglu"
    norm: Literal["layer", "rms"] = weights("layer")  # LayerNorm, or RMSNorm without a bias
    norm_eps: float = meaning(1e-5, within=SHARE)  # added to the variance in norms
    post_norm: bool = meaning(False)  # x + LN(f(x)) instead of x + f(LN(x)) (EVA-02-CLIP E/14)
    # swiglu: silu(gate) * up instead of the activation; geglu: activation(gate) * up
    mlp: Literal["plain", "swiglu", "geglu"] = weights("plain")
    qkv_bias: Literal["qkv", "qv", "none"] = weights("qkv")  # which of query, key and value have a bias (EVA: qv)
    attention_norm: bool = weights(False)  # a norm between attention and its output matrix (EVA-02's sub-LN)
    mlp_norm: bool = weights(False)  # a norm before the MLP's last matrix (EVA-02's sub-LN)
    mlp_first_norm: bool = weights(False)  # a second norm before the MLP's first matrix (ViTamin)
    # initial value of a learned factor per channel on every branch; 0: none
    layer_scale: float = weights(0.0, within=WEIGHT)
    init: Init = experiment("clip", at_start=True)  # whose initial weights
    dropout: float = experiment(0.0, within=RATE)  # rate after each branch of a block, in training
    drop_path: float = experiment(0.0, within=RATE)  # rate of the last block; it grows linearly from 0
    remat: Remat = runtime("none")
    attention: AttentionKind = runtime("auto")
    # examples per device whose attention weights exist at a time; 0: all
    attention_chunk: int = runtime(0, within=EXAMPLES_OR_ZERO)


@dataclass(frozen=True)
class ImageTowerConfig:
    """The options of every image tower. The rest are in the dataclass of the row that `name` selects."""

    name: str = weights("vit")  # a row of clipjax.models.IMAGE_TOWERS
    image_size: int = weights(224, within=PIXELS, converted=True)  # pixels; images are square
    width: int = weights(768, within=WIDTH)  # channels of a token
    norm_eps: float = meaning(1e-5, within=SHARE)
    remat: Remat = runtime("none")  # what the backward pass computes again to save memory (docs/mesh.md)


@dataclass(frozen=True)
class TextTowerConfig:
    """The options of every text tower. The rest are in the dataclass of the row that `name` selects."""

    name: str = weights("transformer")  # a row of clipjax.models.TEXT_TOWERS
    # rows of the token embedding; at least the tokenizer's pieces
    vocab_size: int = weights(49408, within=VOCABULARY)
    context_length: int = weights(77, within=POSITIONS, converted=True)  # tokens
    width: int = weights(512, within=WIDTH)  # channels of a token
    norm_eps: float = meaning(1e-5, within=SHARE)
    remat: Remat = runtime("none")  # what the backward pass computes again to save memory (docs/mesh.md)


@dataclass(frozen=True)
class DecoderConfig(BlockConfig):
    """The captioner of loss "coca"; depth 0: none. Its width is the text tower's."""

    depth: int = weights(0, within=DEPTH_OR_ZERO)  # pairs of a self-attention and a cross-attention block


@dataclass(frozen=True)
class ModelConfig:
    """Two towers, the space they share, and the learned temperature."""

    image: ImageTowerConfig = part("clipjax.models:IMAGE_TOWERS", "vit")
    text: TextTowerConfig = part("clipjax.models:TEXT_TOWERS", "transformer")
    decoder: DecoderConfig = section(DecoderConfig)
    embed_dim: int = weights(512, within=WIDTH)  # length of an embedding
    # the scale itself; the parameter is its logarithm
    logit_scale_init: float = experiment(1 / 0.07, within=SCALE, at_start=True)
    # clipped after each update (training/temperature.py); 0: never
    logit_scale_max: float = experiment(100.0, within=SCALE_OR_ZERO, fixed=MODEL)
    # None: no bias parameter (CLIP); -10.0 for SigLIP
    logit_bias_init: float | None = experiment(None, within=BIAS, fixed=MODEL)
    # compute dtype; parameters are float32. auto: bfloat16 where it is at least twice as fast (docs/startup.md)
    dtype: ComputeDtype = experiment("float32")
