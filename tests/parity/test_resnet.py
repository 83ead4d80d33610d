"""CLIP's ResNets equal open_clip's ModifiedResNet with the same random weights: evaluation, training, statistics."""

from dataclasses import replace

import jax
import pytest

from clipjax.interop.conv_towers import resnet
from clipjax.models.presets import get_preset
from tests.parity.conv_towers import Pair, randomise
from tests.torch_reference import import_torch

torch = import_torch()
import_torch("open_clip")


@pytest.fixture(scope="module")
def pair():
    from open_clip.modified_resnet import ModifiedResNet

    module = ModifiedResNet([1, 2, 1, 1], output_dim=12, heads=4, image_size=64, width=8)
    randomise(module)
    model = get_preset("clip_rn50")
    image = replace(model.image, stages=(1, 2, 1, 1), width=8, num_heads=4, image_size=64)
    model = replace(model, image=image, embed_dim=12)
    return Pair(torch.nn.ModuleDict({"visual": module}), model, resnet(model), module)


def test_embeddings_equal_open_clip(pair):
    pair.check_embeddings(2e-6)


@pytest.mark.parametrize("train", [False, True])
def test_gradients_and_running_statistics_equal_open_clip(pair, train, monkeypatch):
    # SiLU instead of ReLU: where a unit is at 0 to within rounding, the gradient of a ReLU depends on the order in
    # which each library, version and number of threads adds up, and one unit changes every gradient below it.
    monkeypatch.setattr("flax.linen.relu", jax.nn.silu)
    for module in list(pair.module.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                monkeypatch.setitem(module._modules, name, torch.nn.SiLU())
    pair.check_gradients(train)


@pytest.mark.slow
def test_bfloat16_rounds_as_much_as_pytorch_s(pair):
    pair.check_bfloat16(gradients=True)


def test_weights_come_back_bit_for_bit(pair):
    pair.check_round_trip()
