"""The convolutional presets have open_clip's tensors: every name and shape of the image tower, every parameter."""

import jax
import jax.numpy as jnp
import pytest

from clipjax.interop.conv_towers import convnext, resnet
from clipjax.models import DualEncoder, image_tower
from clipjax.models.presets import get_preset
from clipjax.models.presets.conv import CONV_PRESETS
from clipjax.planning.flops import tower_flops
from tests.parity.conv_towers import image_tower_shapes
from tests.torch_reference import import_torch

torch = import_torch()
open_clip = import_torch("open_clip")
OPENAI = {"rn50": "RN50-quickgelu", "rn101": "RN101-quickgelu"} | {
    f"rn50x{n}": f"RN50x{n}-quickgelu" for n in (4, 16, 64)
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONV_PRESETS if name.startswith(("clip_", "open_clip_"))])
def test_presets_are_the_published_models(name):
    model = get_preset(name)
    theirs = name.removeprefix("open_clip_") if name.startswith("open_clip_") else OPENAI[name.removeprefix("clip_")]
    config = open_clip.get_model_config(theirs)
    config.pop("quick_gelu", None)
    with torch.device("meta"):
        module = open_clip.model.CLIP(**config)
    expected = {n: tuple(v.shape) for n, v in module.state_dict().items() if n.startswith("visual.")}
    table = convnext if model.image.name == "convnext" else resnet
    assert image_tower_shapes(model, table(model)) == expected

    size = model.image.image_size
    assert config["vision_cfg"]["image_size"] == size
    shapes = jax.eval_shape(
        lambda: DualEncoder(model).init(
            jax.random.key(0), image=jnp.zeros((1, size, size, 3)), text=jnp.zeros((1, 77), jnp.int32)
        )["params"]
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(p.numel() for p in module.parameters())
    heads = {n: m for n, m in module.named_modules() if hasattr(m, "num_heads") or isinstance(m, torch.nn.LayerNorm)}
    if model.image.name == "resnet":
        assert heads["visual.attnpool"].num_heads == model.image.num_heads
    else:
        assert {m.eps for n, m in heads.items() if n.startswith("visual.")} == {model.image.norm_eps}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_rn50", "open_clip_convnext_base_w"])
def test_model_flops_are_those_pytorch_counts(name):
    from torch.utils.flop_counter import FlopCounterMode

    model = get_preset(name)
    theirs = {"clip_rn50": "RN50"}.get(name, name.removeprefix("open_clip_"))
    with torch.device("meta"):
        visual = open_clip.model.CLIP(**open_clip.get_model_config(theirs)).visual.eval()
        pixels = torch.zeros(1, 3, model.image.image_size, model.image.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            visual(pixels)
    expected = counter.get_total_flops()
    if name == "clip_rn50":
        # PyTorch computes the pool's query, attention and output for all 50 tokens and keeps the mean token's.
        expected -= 2 * 49 * (2048 * 2048 + 2048 * 1024) + 4 * 49 * 50 * 2048
    assert tower_flops(image_tower(model.image), model.image, model.embed_dim).products == pytest.approx(
        expected, rel=1e-3
    )
