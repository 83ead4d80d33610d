"""The EfficientNets equal transformers' AlignVisionModel with the same random weights, B0 to B7 tensor by tensor."""

import os
from dataclasses import replace

import pytest

from clipjax.config import ImageTowerConfig, ModelConfig
from clipjax.interop.conv_towers import efficientnet
from clipjax.models.efficientnet import COEFFICIENTS, block_shapes
from tests.parity.conv_towers import Pair, image_tower_shapes, randomise
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")


def image_config(width, depth, **changes):
    image = ImageTowerConfig(
        name="efficientnet",
        width_coefficient=width,
        depth_coefficient=depth,
        projection=False,
        scan_layers=False,
        norm_eps=1e-3,
        **changes,
    )
    return replace(image, width=block_shapes(image)[-1].outputs)


def align_vision(image):
    config = transformers.AlignVisionConfig(
        width_coefficient=image.width_coefficient,
        depth_coefficient=image.depth_coefficient,
        depthwise_padding=list(image.depthwise_padding),
        hidden_dim=image.width,
        drop_connect_rate=0.0,
    )
    return transformers.AlignVisionModel(config)


# An even input that halves evenly, and one whose last strides meet odd sizes, with the square padding of published
# EfficientNets for one of them.
@pytest.fixture(scope="module", params=[(64, ()), (72, (3,))])
def pair(request):
    size, depthwise_padding = request.param
    image = image_config(0.25, 0.4, image_size=size, depthwise_padding=depthwise_padding)
    module = align_vision(image)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 0.1  # transformers takes TensorFlow's 0.99, a share that stays, for PyTorch's that goes
    randomise(module)
    model = ModelConfig(image=image, embed_dim=image.width)
    module = torch.nn.ModuleDict({"vision_model": module})
    return Pair(module, model, efficientnet(model), lambda x: module["vision_model"](x).pooler_output)


def test_embeddings_equal_transformers(pair):
    pair.check_embeddings(2e-6)


@pytest.mark.parametrize("train", [False, True])
def test_gradients_and_running_statistics_equal_transformers(pair, train):
    pair.check_gradients(train)


def test_weights_come_back_bit_for_bit(pair):
    pair.check_round_trip()


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_every_efficientnet_has_the_tensors_of_transformers(name):
    image = image_config(*COEFFICIENTS[name])
    with torch.device("meta"):
        module = align_vision(image)
    expected = {f"vision_model.{n}": tuple(value.shape) for n, value in module.state_dict().items()}
    model = ModelConfig(image=image, embed_dim=image.width)
    assert image_tower_shapes(model, efficientnet(model)) == expected
