"""Their tensors become our tree and come back bit for bit, scanned or not, one parameter at a time."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ModelConfig
from clipjax.interop.convert import read_variables, their_arrays
from clipjax.interop.families import FAMILIES
from clipjax.interop.names import InteropError, check_tensors, flatten, stored, their_shapes
from clipjax.models import DualEncoder, image_tower
from clipjax.models.pixels import image_of, normalize_pixels
from clipjax.models.presets import get_preset

PRESETS = {
    "hf_clip": "clip_vit_b32",
    "hf_siglip": "siglip_b16",
    "hf_siglip2": "siglip2_naflex_b16",
    "open_clip": "clip_vit_b32",
    "open_clip_siglip": "siglip_b16",
    "big_vision": "siglip_b16",
    "big_vision_stacked": "siglip_b16",
}


def tiny(preset: str, scan_layers: bool = False) -> ModelConfig:
    model = get_preset(preset)
    shared = dict(width=16, depth=2, num_heads=2, mlp_dim=24, scan_layers=scan_layers)
    image = replace(model.image, image_size=16, patch_size=8, **shared)
    text = replace(model.text, vocab_size=40, context_length=6, **shared)
    return replace(model, image=image, text=text, embed_dim=16)


def shapes_of(model: ModelConfig) -> dict:
    """{"params": tree of jax.ShapeDtypeStruct}, as a model makes it."""
    read = image_tower(model.image).columns(model.image, 1)
    columns = {name: jnp.ones(shape, dtype) for name, (shape, dtype) in read.items()}
    image, text = normalize_pixels(image_of(columns), 3 * [0.5], 3 * [0.5]), model.text
    return jax.eval_shape(
        lambda: DualEncoder(model).init(
            jax.random.key(0), image=image, text=jnp.zeros((1, text.context_length), jnp.int32)
        )
    )


def random_file(family: str, model: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = their_shapes(FAMILIES[family].tensors(model), model, flatten(shapes_of(model)))
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("family", PRESETS)
def test_a_file_read_and_written_again_is_equal(family, scan_layers):
    model = tiny(PRESETS[family], scan_layers)
    tensors, target = FAMILIES[family].tensors(model), shapes_of(model)
    theirs = random_file(family, model)
    variables = read_variables(tensors, model, stored(theirs), target)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, target)
    again = dict(their_arrays(tensors, model, variables))
    assert list(again) == list(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize("family", PRESETS)
def test_scanned_and_unrolled_trees_hold_the_same_numbers(family):
    theirs = stored(random_file(family, tiny(PRESETS[family])))
    trees = {}
    for scan in (False, True):
        model = tiny(PRESETS[family], scan)
        trees[scan] = flatten(read_variables(FAMILIES[family].tensors(model), model, theirs, shapes_of(model)))
    for name, stacked in trees[True].items():
        if "/blocks/" not in name:
            np.testing.assert_array_equal(stacked, trees[False][name], err_msg=name)
            continue
        for i in range(2):
            np.testing.assert_array_equal(stacked[i], trees[False][name.replace("blocks", f"block_{i}")], err_msg=name)


def test_what_is_missing_unexpected_or_misshapen_is_named():
    model = tiny("clip_vit_b32")
    theirs = random_file("hf_clip", model)
    expected = {name: array.shape for name, array in theirs.items()}
    theirs["surprise"] = np.zeros(3)
    del theirs["logit_scale"]
    theirs["visual_projection.weight"] = np.zeros((2, 2))
    with pytest.raises(InteropError) as error:
        check_tensors(stored(theirs), expected, where="model.safetensors", family="hf_clip")
    for line in ("missing: logit_scale", "unexpected: surprise [3]", "visual_projection.weight: the file has [2, 2]"):
        assert line in str(error.value)
