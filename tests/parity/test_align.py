"""AlignModel as a whole, files and weights both ways, and every EfficientNet of transformers tensor by tensor."""

import json
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ModelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import hf_align
from clipjax.interop.conv_towers import efficientnet
from clipjax.interop.convert import read_variables, their_arrays
from clipjax.interop.families import recognise
from clipjax.interop.names import Description, InteropError, Meaning, check_tensors, flatten, their_shapes
from clipjax.interop.safetensors import open_safetensors, write_safetensors
from clipjax.models import DualEncoder
from clipjax.models.presets import get_preset
from clipjax.models.towers.efficientnet import COEFFICIENTS, EfficientNetConfig, block_shapes
from tests.parity.conv_towers import Pair, image_tower_shapes, randomise
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")


def image_config(width, depth, **changes):
    image = EfficientNetConfig(
        width_coefficient=width,
        depth_coefficient=depth,
        projection=False,
        norm_eps=1e-3,
        norm_momentum=0.9,  # PyTorch's 0.1, see below
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


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_gradients_and_running_statistics_equal_transformers(pair, train):
    pair.check_gradients(train)


def test_bfloat16_rounds_as_much_as_pytorch_s(pair):
    pair.check_bfloat16()


def test_weights_come_back_bit_for_bit(pair):
    pair.check_round_trip()


@pytest.mark.slow
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_every_efficientnet_has_the_tensors_of_transformers(name):
    image = image_config(*COEFFICIENTS[name])
    with torch.device("meta"):
        module = align_vision(image)
    expected = {f"vision_model.{n}": tuple(value.shape) for n, value in module.state_dict().items()}
    model = ModelConfig(image=image, embed_dim=image.width)
    assert image_tower_shapes(model, efficientnet(model)) == expected


def tiny_align():
    image = image_config(0.25, 0.4, image_size=64)
    text = dict(vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    vision = dict(width_coefficient=0.25, depth_coefficient=0.4, hidden_dim=image.width, image_size=64)
    config = transformers.AlignConfig(
        text_config=text, vision_config=vision, projection_dim=image.width, temperature_init_value=0.2
    )
    module = transformers.AlignModel(config).eval()
    randomise(module)
    with torch.no_grad():
        module.temperature.fill_(0.173)
    return module


@pytest.mark.slow
def test_the_whole_model_equals_transformers_and_goes_back(tmp_path):
    """Logits and gradients; then written, loaded by transformers without a word, and equal bit for bit."""
    original = tiny_align()
    original.save_pretrained(tmp_path / "theirs")
    files = {"config.json": json.loads((tmp_path / "theirs" / "config.json").read_text())}
    found = open_safetensors(tmp_path / "theirs" / "model.safetensors")
    name, family = recognise(Description(files, {n: s.shape for n, s in found.items()}))
    assert name == "hf_align"
    meaning = family.read(Description(files, {}))
    model = meaning.model
    rng = np.random.default_rng(0)
    image = rng.normal(size=(6, 64, 64, 3)).astype(np.float32)
    text = rng.integers(1, 99, (6, model.text.context_length), dtype=np.int32)
    text[2, 5:] = 0
    dual = DualEncoder(model)
    target = jax.eval_shape(lambda: dual.init(jax.random.key(0), image=image, text=text))
    table = family.tensors(model)
    shapes = their_shapes(table, model, flatten(target))
    check_tensors(found, shapes, where="theirs", family=name)
    variables = read_variables(table, model, found, target)

    def loss(params):
        out = dual.apply({**variables, "params": params}, image=image, text=text)
        logits = out.logit_scale * out.image_embedding @ out.text_embedding.T
        both = jax.nn.logsumexp(logits, 1).mean() + jax.nn.logsumexp(logits, 0).mean()
        return both / 2 - jnp.trace(logits) / 6, logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    theirs = original(
        input_ids=torch.tensor(text).long(),
        attention_mask=torch.tensor(text != 0).long(),
        pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)),
    ).logits_per_image
    labels, cross_entropy = torch.arange(6), torch.nn.functional.cross_entropy
    expected = (cross_entropy(theirs, labels) + cross_entropy(theirs.T, labels)) / 2
    expected.backward()
    np.testing.assert_allclose(logits, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    scale = grads.pop("logit_scale")  # d / d log(1 / t) = -t d / dt
    assert float(scale) == pytest.approx(-0.173 * original.temperature.grad.item(), rel=1e-4)
    moved = [tensor for tensor in table if tensor.ours != "logit_scale"]
    ours = dict(their_arrays(moved, model, {**variables, "params": grads}))
    gradients = {n: p.grad.numpy() for n, p in original.named_parameters() if p.grad is not None and p.ndim}
    largest = max(np.abs(g).max() for g in gradients.values())
    assert len(gradients) == sum(1 for _ in original.parameters()) - 3, "all but the temperature and the unused pooler"
    for n, wanted in gradients.items():
        assert np.abs(ours[n] - wanted).max() <= 1e-4 * np.abs(wanted).max() + 1e-6 * largest, n

    written = family.write(meaning)
    (tmp_path / "ours").mkdir()
    for file, content in written.items():
        (tmp_path / "ours" / file).write_text(json.dumps(content))
    write_safetensors(tmp_path / "ours" / "model.safetensors", shapes, their_arrays(table, model, variables))
    again, info = transformers.AlignModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    state = again.state_dict()
    for n, value in original.state_dict().items():
        if n == "temperature":
            assert state[n].item() == pytest.approx(value.item(), rel=1e-6)
        elif not n.endswith("num_batches_tracked"):
            assert torch.equal(state[n], value), n
    assert family.read(Description(written, {})).model == model


def test_align_base_is_the_published_model():
    """Every tensor of AlignModel with its default configuration, which is align-base's but for the pooling kernel."""
    model = get_preset("align_base")
    with torch.device("meta"):
        module = transformers.AlignModel(transformers.AlignConfig())
    expected = {n: tuple(value.shape) for n, value in module.state_dict().items()}
    image = jnp.zeros((1, 289, 289, 3))
    shapes = jax.eval_shape(
        lambda: DualEncoder(model).init(jax.random.key(0), image=image, text=jnp.zeros((1, 64), jnp.int32))
    )
    assert their_shapes(hf_align.tensors(model), model, flatten(shapes)) == expected
    written = hf_align.write(Meaning(model, PIXEL_PRESETS["align"]))
    read = hf_align.read(Description(written, {}))
    assert read == Meaning(model, PIXEL_PRESETS["align"])
    with pytest.raises(InteropError, match="vision_config.strides"):
        config = written["config.json"]
        other = config | {"vision_config": config["vision_config"] | {"strides": [2, 2, 2, 2, 1, 2, 1]}}
        hf_align.read(Description({"config.json": other}, {}))
    # What transformers' processor does with the written file, on an image that is already of the size.
    processor = transformers.EfficientNetImageProcessor(**written["preprocessor_config.json"])
    pixels = np.random.default_rng(0).integers(0, 256, (346, 346, 3), dtype=np.uint8)
    theirs = processor(pixels, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(theirs, pixels[28:317, 28:317] / 127.5 - 1, atol=1e-6)
