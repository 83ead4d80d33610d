"""OpenCLIP's ConvNeXt towers equal timm's trunk under open_clip's TimmModel with the same random weights."""

from dataclasses import replace

import pytest

from clipjax.interop.conv_towers import convnext
from clipjax.models.presets import get_preset
from tests.parity.conv_towers import Pair, randomise
from tests.torch_reference import import_torch

torch = import_torch()
timm = import_torch("timm")
import_torch("open_clip")
STAGES, WIDTH = (1, 1, 2, 1), 8


@pytest.fixture(scope="module", params=["convnext_base_w", "convnext_large_d", "convnext_xxlarge"])
def pair(request):
    """A linear head, an MLP, and a linear one over LayerNorms of another eps."""
    from open_clip.timm_model import TimmModel
    from timm.models.convnext import ConvNeXt

    model = get_preset(f"open_clip_{request.param}")
    image = replace(model.image, stages=STAGES, width=WIDTH, image_size=64, drop_path=0.0)
    model = replace(model, image=image, embed_dim=12)

    def small(name, pretrained=False, **options):
        assert name == "convnext_base"
        return ConvNeXt(depths=STAGES, dims=[WIDTH << i for i in range(4)], norm_eps=image.norm_eps, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", small)
        patch.setattr(ConvNeXt, "default_cfg", {"pool_size": (2, 2)}, raising=False)
        module = TimmModel("convnext_base", 12, 64, pool="", proj=image.head)
    randomise(module)
    return Pair(torch.nn.ModuleDict({"visual": module}), model, convnext(model), module)


def test_embeddings_equal_timm(pair):
    pair.check_embeddings(2e-6)


@pytest.mark.slow
def test_gradients_equal_timm(pair):
    pair.check_gradients(train=False)


def test_bfloat16_rounds_as_much_as_pytorch_s(pair):
    pair.check_bfloat16()


def test_weights_come_back_bit_for_bit(pair):
    pair.check_round_trip()
