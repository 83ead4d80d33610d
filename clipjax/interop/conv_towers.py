"""The tables of convolutional towers: OpenAI's and OpenCLIP's ResNet, timm's ConvNeXt, transformers' EfficientNet."""

from __future__ import annotations

import numpy as np

from clipjax.config import ModelConfig
from clipjax.interop.layouts import Layout, conv, linear
from clipjax.interop.names import Tensor, norm, weight_and_bias
from clipjax.models.towers.efficientnet import block_shapes

# PyTorch's BatchNorm also stores a count of its steps. The count has no effect, except with momentum=None, so reading
# drops it and writing gives 0.
_mean_and_count = Layout(lambda theirs: theirs[0], lambda ours: [ours, np.zeros((), np.float32)])


def resnet(model: ModelConfig, theirs: str = "visual") -> list[Tensor]:
    """ModifiedResNet; names from openai/CLIP clip/model.py and open_clip modified_resnet.py."""
    tensors = []
    for i in (1, 2, 3):
        tensors += conv_and_norm(f"conv_{i}", f"bn_{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
    for stage, depth in enumerate(model.image.stages):
        for block in range(depth):
            ours, at = f"stage_{stage}_block_{block}", f"{theirs}.layer{stage + 1}.{block}"
            for i in (1, 2, 3):
                tensors += conv_and_norm(f"{ours}/conv_{i}", f"{ours}/bn_{i}", f"{at}.conv{i}", f"{at}.bn{i}")
            if block == 0:
                shortcut = (f"{ours}/shortcut_conv", f"{ours}/shortcut_bn")
                tensors += conv_and_norm(*shortcut, f"{at}.downsample.0", f"{at}.downsample.1")
    ours, at = "image/attention_pool", f"{theirs}.attnpool"
    tensors.append(Tensor(f"{ours}/position_embedding", (f"{at}.positional_embedding",)))
    for name, their in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "c_proj")):
        tensors += weight_and_bias(f"{ours}/{name}", f"{at}.{their}", linear)
    return tensors


def convnext(model: ModelConfig, theirs: str = "visual") -> list[Tensor]:
    """A ConvNeXt trunk (timm models/convnext.py) with the head of open_clip timm_model.py."""
    trunk, head = f"{theirs}.trunk", f"{theirs}.head"
    tensors = [*weight_and_bias("image/stem", f"{trunk}.stem.0", conv), *norm("image/stem_ln", f"{trunk}.stem.1")]
    for stage, depth in enumerate(model.image.stages):
        if stage > 0:
            ours, at = f"image/downsample_{stage}", f"{trunk}.stages.{stage}.downsample"
            tensors += [*norm(f"{ours}_ln", f"{at}.0"), *weight_and_bias(ours, f"{at}.1", conv)]
        for block in range(depth):
            ours, at = f"image/stage_{stage}_block_{block}", f"{trunk}.stages.{stage}.blocks.{block}"
            tensors += [
                *weight_and_bias(f"{ours}/depthwise", f"{at}.conv_dw", conv),
                *norm(f"{ours}/ln", f"{at}.norm"),
                *weight_and_bias(f"{ours}/mlp/up", f"{at}.mlp.fc1", linear),
                *weight_and_bias(f"{ours}/mlp/down", f"{at}.mlp.fc2", linear),
                Tensor(f"{ours}/layer_scale/scale", (f"{at}.gamma",)),
            ]
    tensors += norm("image/ln_head", f"{trunk}.head.norm")
    if model.image.head == "mlp":
        tensors += weight_and_bias("image/head_up", f"{head}.mlp.fc1", linear)
    last = "mlp.fc2" if model.image.head == "mlp" else "proj"
    return [*tensors, *weight_and_bias("image/projection", f"{head}.{last}", linear, bias=False)]


def efficientnet(model: ModelConfig, theirs: str = "vision_model") -> list[Tensor]:
    """AlignVisionModel; names from transformers models/align/modeling_align.py."""
    at = f"{theirs}.embeddings"
    tensors = conv_and_norm("stem", "stem_bn", f"{at}.convolution", f"{at}.batchnorm")
    for i, shape in enumerate(block_shapes(model.image)):
        ours, at = f"block_{i}", f"{theirs}.encoder.blocks.{i}"
        if shape.expansion != 1:
            theirs_too = (f"{at}.expansion.expand_conv", f"{at}.expansion.expand_bn")
            tensors += conv_and_norm(f"{ours}/expand", f"{ours}/expand_bn", *theirs_too)
        theirs_too = (f"{at}.depthwise_conv.depthwise_conv", f"{at}.depthwise_conv.depthwise_norm")
        tensors += conv_and_norm(f"{ours}/depthwise", f"{ours}/depthwise_bn", *theirs_too)
        tensors += weight_and_bias(f"image/{ours}/squeeze", f"{at}.squeeze_excite.reduce", conv)
        tensors += weight_and_bias(f"image/{ours}/excite", f"{at}.squeeze_excite.expand", conv)
        theirs_too = (f"{at}.projection.project_conv", f"{at}.projection.project_bn")
        tensors += conv_and_norm(f"{ours}/project", f"{ours}/project_bn", *theirs_too)
    return tensors


def conv_and_norm(ours: str, our_norm: str, theirs: str, their_norm: str) -> list[Tensor]:
    """A convolution without bias, and the BatchNorm after it."""
    running = f"batch_stats:image/{our_norm}"
    return [
        *weight_and_bias(f"image/{ours}", theirs, conv, bias=False),
        *norm(f"image/{our_norm}", their_norm),
        Tensor(f"{running}/mean", (f"{their_norm}.running_mean", f"{their_norm}.num_batches_tracked"), _mean_and_count),
        Tensor(f"{running}/var", (f"{their_norm}.running_var",)),
    ]
