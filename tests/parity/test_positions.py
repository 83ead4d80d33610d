"""Resampled positions equal those of open_clip, big_vision's scipy call, transformers and torch."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError
from clipjax.models.position import resample, resample_positions, stretch
from clipjax.models.presets import get_preset
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.naflex import grid_weights
from tests.torch_reference import import_torch

torch = import_torch()
open_clip = import_torch("open_clip")
RNG = np.random.default_rng(0)
SIZES = [((7, 7), (12, 12)), ((16, 16), (9, 9)), ((14, 14), (14, 14)), ((4, 4), (1, 1))]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bicubic_positions_equal_open_clips(old, new):
    table = RNG.normal(size=(1 + old[0] * old[1], 8)).astype(np.float32)
    state = {"visual.positional_embedding": torch.tensor(table)}
    open_clip.model.resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=new)))
    expected = state["visual.positional_embedding"].numpy()
    np.testing.assert_allclose(resample(table, old, new), expected, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [((7, 5), (12, 9)), ((16, 16), (5, 20))])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_grids_that_are_not_square_equal_torchs_interpolation(old, new, method):
    table = RNG.normal(size=(old[0] * old[1], 8)).astype(np.float32)
    grid = torch.tensor(table).reshape(1, *old, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=new, mode=method, antialias=True, align_corners=False)
    found = resample(table, old, new, method)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).reshape(-1, 8).numpy(), atol=1e-5)


@pytest.mark.parametrize(("old", "new"), SIZES[:2])
def test_corners_equal_big_visions_zoom(old, new):
    ndimage = pytest.importorskip("scipy.ndimage")
    table = RNG.normal(size=(old[0] * old[1], 8)).astype(np.float32)
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected = ndimage.zoom(table.reshape(*old, 8), zoom, order=1).reshape(-1, 8)
    np.testing.assert_allclose(resample(table, old, new, "corners"), expected, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(77, 32), (16, 64), (77, 77), (5, 1)])
def test_stretched_texts_equal_open_clips(old, new):
    table = RNG.normal(size=(old, 8)).astype(np.float32)
    state = {"positional_embedding": torch.tensor(table)}
    model = SimpleNamespace(positional_embedding=np.zeros((new, 8)))
    open_clip.model.resize_text_pos_embed(state, model)
    np.testing.assert_allclose(stretch(table, new), state["positional_embedding"].numpy(), atol=1e-5)


def test_positions_of_an_image_of_its_own_shape_are_those_of_the_resampled_grid():
    """What the device computes per image equals what is computed once for all images of a shape."""
    side, shapes, count = 6, [(6, 6), (3, 9), (1, 20), (8, 2), (1, 1)], 40
    table = RNG.normal(size=(side * side, 8)).astype(np.float32)
    weights = np.asarray(jax.jit(grid_weights, static_argnums=(1, 2))(np.array(shapes, np.int32), count, side))
    found = weights.reshape(len(shapes), count, -1) @ table
    for row, shape in zip(found, shapes, strict=True):
        expected = resample(table, (side, side), shape, "bilinear")
        np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-5)


def test_a_models_parameters_fit_another_resolution_and_context():
    old = get_preset("clip_vit_b32")
    new = replace(old, image=replace(old.image, image_size=96), text=replace(old.text, context_length=9))
    params = {
        "image": {"position_embedding": RNG.normal(size=(50, 4)).astype(np.float32), "cls_token": np.ones(4)},
        "text": {"position_embedding": RNG.normal(size=(77, 4)).astype(np.float32)},
        "logit_scale": np.float32(1),
    }
    found = resample_positions(params, old, new)
    image = params["image"]["position_embedding"]
    np.testing.assert_array_equal(found["image"]["position_embedding"], resample(image, (7, 7), (3, 3)))
    np.testing.assert_array_equal(found["image"]["position_embedding"][0], image[0])
    assert found["text"]["position_embedding"].shape == (9, 4)
    assert found["image"]["cls_token"] is params["image"]["cls_token"]
    assert params["text"]["position_embedding"].shape == (77, 4)
    with pytest.raises(ConfigError, match="50 positions does not fit a grid of 3 x 3"):
        resample_positions(params, new, old)


@pytest.mark.parametrize(("rows", "after"), [(40, False), (9, False), (20, True)])
def test_a_table_with_rows_enough_is_used_as_it_is_for_another_context(rows, after):
    """BERT's: longer than the context, by one row (not CoCa's class token), or with rows for padding (RoBERTa)."""
    bert = BertConfig(context_length=8, num_positions=rows, positions_after_padding=after, pad_id=1 if after else 0)
    old = replace(get_preset("clip_vit_b32"), text=bert)
    new = replace(old, text=replace(bert, context_length=9))
    table = RNG.normal(size=(rows, 4)).astype(np.float32)
    assert resample_positions({"text": {"position_embedding": table}}, old, new)["text"]["position_embedding"] is table
