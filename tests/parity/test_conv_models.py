"""Whole OpenCLIP and OpenAI models with convolutional towers: recognised, read, written, equal again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.interop.convert import read_variables, their_arrays
from clipjax.interop.families import recognise, weights
from clipjax.interop.names import Description, InteropError, check_tensors, flatten, stored, their_shapes
from clipjax.models import DualEncoder
from tests.parity.conv_towers import randomise
from tests.torch_reference import import_torch

torch = import_torch()
open_clip = import_torch("open_clip")

TEXT = dict(context_length=12, vocab_size=99, width=64, heads=1, layers=2)
MODELS = {
    "open_clip_resnet": dict(
        embed_dim=16,
        quick_gelu=True,
        vision_cfg=dict(image_size=64, layers=[1, 1, 2, 1], width=8, patch_size=None),
        text_cfg=TEXT,
    ),
    "open_clip_convnext": dict(
        embed_dim=16,
        vision_cfg=dict(
            timm_model_name="convnext_tiny", timm_model_pretrained=False, timm_pool="", timm_proj="mlp", image_size=64
        ),
        text_cfg=TEXT,
    ),
}


@pytest.fixture(scope="module", params=list(MODELS))
def original(request):
    config = MODELS[request.param]
    module = open_clip.model.CLIP(**config).eval()
    randomise(module)
    return request.param, config, module


def arrays(module):
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def described(name, config, state):
    file = {"model_cfg": config, "preprocess_cfg": {"resize_mode": "shortest", "interpolation": "bicubic"}}
    return Description({"open_clip_config.json": file}, {n: a.shape for n, a in state.items()})


def read(family, name, meaning, state):
    model = meaning.model
    inputs = dict(
        image=jnp.zeros((1, model.image.image_size, model.image.image_size, 3)),
        text=jnp.zeros((1, model.text.context_length), jnp.int32),
    )
    target = jax.eval_shape(lambda: DualEncoder(model).init(jax.random.key(0), **inputs))
    table, found = family.tensors(model), weights(family, stored(state))
    shapes = their_shapes(table, model, flatten(target))
    check_tensors(found, shapes, where="state dict", family=name)
    return table, read_variables(table, model, found, target)


def test_models_are_recognised_and_come_back_bit_for_bit(original):
    name, config, module = original
    state = arrays(module)
    found, family = recognise(described(name, config, state))
    assert found == name
    meaning = family.read(described(name, config, state))
    table, variables = read(family, name, meaning, state)
    written = dict(their_arrays(table, meaning.model, variables))
    again = family.write(meaning)["open_clip_config.json"]
    assert family.read(Description({"open_clip_config.json": again}, {})) == meaning
    other = open_clip.model.CLIP(**json.loads(json.dumps(again["model_cfg"])))
    other.load_state_dict({n: torch.tensor(a) for n, a in written.items()}, strict=True)
    for n, value in other.state_dict().items():
        if not n.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), state[n], err_msg=n)
    # One tensor missing, named.
    missing = next(n for n in state if n.endswith(("bn2.running_var", "blocks.1.gamma")))
    with pytest.raises(InteropError, match=f"missing: {missing.replace('.', '[.]')}"):
        read(family, name, meaning, {n: a for n, a in state.items() if n != missing})


def test_logits_of_a_resnet_equal_open_clip_and_openai_files_are_the_same_model():
    config = MODELS["open_clip_resnet"]
    module = open_clip.model.CLIP(**config).eval()
    randomise(module)
    with torch.no_grad():
        module.logit_scale.fill_(2.0)
    state = arrays(module)
    name, family = recognise(described("open_clip_resnet", config, state))
    meaning = family.read(described(name, config, state))
    _, variables = read(family, name, meaning, state)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 64, 64, 3)).astype(np.float32)
    text = rng.integers(3, 99, (4, 12), dtype=np.int32)
    out = jax.jit(DualEncoder(meaning.model).apply)(variables, image, text)
    logits = out.logit_scale * out.image_embedding @ out.text_embedding.T
    with torch.no_grad():
        x, y, scale = module(torch.tensor(image.transpose(0, 3, 1, 2)), torch.tensor(text).long())
    np.testing.assert_allclose(logits, (scale * x @ y.T).numpy(), rtol=1e-5, atol=1e-5)

    # OpenAI's archive of the same weights: three numbers more and no configuration.
    numbers = {"input_resolution": 64, "context_length": 12, "vocab_size": 99}
    openai = state | {n: np.array(value) for n, value in numbers.items()}
    found, family = recognise(Description({}, {n: a.shape for n, a in openai.items()}))
    assert found == "openai_resnet"
    theirs = family.read(Description({}, {n: a.shape for n, a in openai.items()}))
    assert (theirs.model.image, theirs.model.text) == (meaning.model.image, meaning.model.text)
    assert theirs.model.embed_dim == meaning.model.embed_dim
    _, again = read(family, found, theirs, openai)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
