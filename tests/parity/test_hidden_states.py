"""Hidden states of chosen layers equal transformers' output_hidden_states, scanned and unrolled."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax.config import ConfigError
from clipjax.models import DualEncoder
from clipjax.models.presets import get_preset
from clipjax.models.transformer import stack_layers
from tests.parity.test_interop import hf_model, randomised
from tests.parity.test_towers import DEPTH, arrays, pair, to_clipjax, torch  # noqa: F401 (pair is a fixture)

LAYERS = (-2, 0, -1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_states_of_layers_equal_transformers(pair, scan_layers):  # noqa: F811
    kind, hf, model, image, text = pair
    params = jax.tree.map(jnp.asarray, to_clipjax(kind, arrays(hf)))
    if scan_layers:
        towers = {side: replace(getattr(model, side), scan_layers=True) for side in ("image", "text")}
        model = replace(model, **towers)
        params = {**params, "image": stack_layers(params["image"]), "text": stack_layers(params["text"])}
    out = DualEncoder(model).apply({"params": params}, image=image, text=text, hidden_layers=LAYERS)
    with torch.no_grad():
        vision = hf.vision_model(torch.tensor(image.transpose(0, 3, 1, 2)), output_hidden_states=True)
        words = hf.text_model(torch.tensor(text).long(), output_hidden_states=True)
        norms = hf.vision_model.post_layernorm, hf.text_model.final_layer_norm
        for found, theirs, norm in zip((out.image_hidden, out.text_hidden), (vision, words), norms, strict=True):
            assert len(theirs.hidden_states) == DEPTH + 1
            for hidden, layer in zip(found, LAYERS, strict=True):
                expected = theirs.hidden_states[layer]
                np.testing.assert_allclose(hidden.state, expected.numpy(), atol=1e-5)
                np.testing.assert_allclose(hidden.normed, norm(expected).numpy(), atol=1e-5)
    # What a text model calls its last state has the norm; SigLIP's image tower is read so by PaliGemma.
    np.testing.assert_allclose(out.text_hidden[2].normed, words.last_hidden_state.numpy(), atol=1e-5)
    if kind == "siglip":
        np.testing.assert_allclose(out.image_hidden[2].normed, vision.last_hidden_state.numpy(), atol=1e-5)
    plain = DualEncoder(model).apply({"params": params}, image=image, text=text)
    np.testing.assert_allclose(plain.image_embedding, out.image_embedding, atol=5e-7)  # the last block: one row, or all
    assert plain.image_hidden == plain.text_hidden == ()


def test_layers_that_are_not_there_are_refused(pair):  # noqa: F811
    kind, hf, model, _, text = pair
    with pytest.raises(ConfigError, match="hidden_layers has 3, but the tower has 2 blocks: use -3 to 2"):
        DualEncoder(model).apply({"params": to_clipjax(kind, arrays(hf))}, text=text, hidden_layers=(3,))
    resnet = get_preset("clip_rn50")
    with pytest.raises(ConfigError, match="tower 'resnet' has no states of layers"):
        image = jnp.zeros((1, 32, 32, 3))
        jax.eval_shape(lambda: DualEncoder(resnet).init(jax.random.key(0), image=image, hidden_layers=(-2,)))


def test_states_that_nobody_asks_for_are_not_computed(pair):  # noqa: F811
    """The program without hidden_layers has no more operations than depth blocks need; with one, one select a layer."""
    kind, hf, model, image, _ = pair
    params = {**to_clipjax(kind, arrays(hf))}
    params = {**params, "image": stack_layers(params["image"])}
    model = replace(model, image=replace(model.image, scan_layers=True))

    def carried(hidden_layers):
        apply = lambda image: DualEncoder(model).apply({"params": params}, image=image, hidden_layers=hidden_layers)  # noqa: E731
        (scan,) = [e for e in jax.make_jaxpr(apply)(image).eqns if e.primitive.name == "scan"]
        return scan.params["num_carry"], len(scan.outvars)

    assert carried(()) == (1, 1)
    assert carried((-2,)) == (2, 2)


@pytest.mark.parametrize("kind", ["hf_clip", "hf_siglip"])
def test_loaded_weights_give_what_downstream_models_take_from_transformers(kind, tmp_path):
    """Stable Diffusion's text states, LLaVA's and PaliGemma's patch tokens, and the pooled outputs beside them."""
    hf = randomised(hf_model(kind))
    hf.save_pretrained(tmp_path / "hf")
    model = clipjax.load(tmp_path / "hf", batch_size=8)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)  # more than a block of eight
    ids = rng.integers(3, 99, (11, 8), dtype=np.int32)
    pixels = (images / 255.0 - model.config.data.pixels.mean) / model.config.data.pixels.std
    with torch.no_grad():
        vision = hf.vision_model(torch.tensor(pixels.transpose(0, 3, 1, 2)).float(), output_hidden_states=True)
        words = hf.text_model(torch.tensor(ids).long(), output_hidden_states=True)
        penultimate = words.hidden_states[-2]
        expected = {
            "Stable Diffusion 1": words.last_hidden_state,
            "Stable Diffusion 2": hf.text_model.final_layer_norm(penultimate),
            "Stable Diffusion XL": penultimate,
            "its pooled text": hf.text_projection(words.pooler_output) if kind == "hf_clip" else words.pooler_output,
            "LLaVA": vision.hidden_states[-2],
            "PaliGemma": hf.vision_model.post_layernorm(vision.hidden_states[-1]),
            "pooled image": hf.visual_projection(vision.pooler_output) if kind == "hf_clip" else vision.pooler_output,
        }
    text = model.encode_texts(ids, hidden_layers=(-2, -1))
    image = model.encode_images(images, hidden_layers=(-2, -1))
    found = {
        "Stable Diffusion 1": text.hidden[1].normed,
        "Stable Diffusion 2": text.hidden[0].normed,
        "Stable Diffusion XL": text.hidden[0].state,
        "its pooled text": text.pooled,
        "LLaVA": image.hidden[0].state,
        "PaliGemma": image.hidden[1].normed,
        "pooled image": image.pooled,
    }
    for name, wanted in expected.items():
        assert isinstance(found[name], np.ndarray) and found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], wanted.numpy(), atol=1e-5, err_msg=name)
    unit = text.pooled / np.linalg.norm(text.pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed_texts(ids), unit, atol=1e-6)
    assert model.encode_texts(ids).hidden == ()
    with pytest.raises(ConfigError, match="hidden_layers has 5, but the tower has 2 blocks"):
        model.encode_images(images, hidden_layers=(5,))
