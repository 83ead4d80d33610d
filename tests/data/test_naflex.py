"""Batches of patches: the image's own aspect ratio within the budget, whatever threads and processes there are."""

import numpy as np
import pytest
from PIL import Image

from clipjax.config import AugmentConfig, DataConfig, PatchBudget, PixelConfig
from clipjax.data.images.naflex import eval_patches, from_patches, patch_grid, to_patches, train_patches
from clipjax.data.pipeline import eval_batches, make_train_iterator
from tests.data.samples import LengthTokenizer, encoded, example, open_folder, picture, write_folder

BUDGET, PIXELS = PatchBudget(4, 24), PixelConfig()
CROPS = AugmentConfig(scale=(0.3, 1.0), flip=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_folder(write_folder(tmp_path_factory.mktemp("data") / "set", 11))


def train(source, process=(0, 1), threads=2, budget=BUDGET, count=3, start=0):
    data = DataConfig(augment=CROPS, num_threads=threads)
    iterator = make_train_iterator(
        data,
        source=source,
        tokenizer=LengthTokenizer(),
        image_size=16,
        budget=budget,
        global_batch_size=8,
        seed=0,
        process_index=process[0],
        process_count=process[1],
    )
    iterator.set_state({**iterator.get_state(), "step": start})
    return [next(iterator)[0] for _ in range(count)]


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (300, 10), (10, 300), (1, 1), (5, 5), (3000, 1)])
def test_a_grid_uses_the_budget_and_keeps_the_aspect_ratio(size):
    rows, columns = patch_grid(*size, BUDGET)
    assert 1 <= rows * columns <= 24
    if min(rows, columns) > 1:  # one more row or column at this ratio would be too many
        assert (rows + 1) * (columns + 1) > 24
        assert abs(rows / columns - size[0] / size[1]) < 0.5 * size[0] / size[1]


def test_patches_are_the_resized_image_cut_row_by_row_and_zeros_behind():
    image = picture(width=60, height=40)
    found = eval_patches(encoded(image), BUDGET, PIXELS)
    assert found["image"].shape == (24, 48) and found["image"].dtype == np.uint8
    assert found["spatial_shape"].tolist() == [4, 6]
    expected = np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(from_patches(found, 4), expected)
    np.testing.assert_array_equal(found["image"][7].reshape(4, 4, 3), expected[4:8, 4:8])
    tall = eval_patches(encoded(picture(width=9, height=40)), BUDGET, PIXELS)
    count = tall["spatial_shape"].prod()
    assert count < 24 and not tall["image"][count:].any()


def test_a_flip_mirrors_the_picture_and_not_the_order_of_patches():
    rng = np.random.default_rng(0)
    augment = AugmentConfig(name="none", flip=1.0)
    data = encoded(picture(width=50, height=40))
    plain, flipped = eval_patches(data, BUDGET, PIXELS), train_patches(data, BUDGET, PIXELS, augment, rng)
    np.testing.assert_array_equal(from_patches(flipped, 4), from_patches(plain, 4)[:, ::-1])
    np.testing.assert_array_equal(to_patches(from_patches(plain, 4), BUDGET), plain["image"])


def test_training_batches_have_static_shapes_and_do_not_depend_on_threads_or_processes(source):
    whole = train(source)
    for batch in whole:
        assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
            "image": ((8, 24, 48), np.uint8),
            "spatial_shape": ((8, 2), np.int32),
            "text": (batch["text"].shape, np.int32),
            "pair_id": ((8,), np.int32),
        }
    assert len({tuple(shape) for batch in whole for shape in batch["spatial_shape"]}) > 3  # crops differ in shape
    halves = [train(source, (p, 2), threads=1) for p in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in parts]))


def test_each_batch_draws_a_budget_that_all_its_images_processes_and_restarts_share(source):
    budget = BUDGET._replace(training=(8, 16, 24))
    whole = train(source, budget=budget, count=8)
    drawn = [batch["image"].shape[1] for batch in whole]
    assert len(set(drawn)) > 1 and set(drawn) <= {8, 16, 24}
    for batch, most in zip(whole, drawn, strict=True):
        counts = batch["spatial_shape"].prod(axis=1)
        assert (counts <= most).all() and counts.max() > most - 8
    halves = [train(source, (p, 2), threads=1, budget=budget, count=8) for p in range(2)]
    resumed = train(source, budget=budget, count=3, start=5)
    for batch, *parts in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(batch["image"], np.concatenate([part["image"] for part in parts]))
    for batch, again in zip(whole[5:], resumed, strict=True):
        np.testing.assert_array_equal(batch["image"], again["image"])


def test_a_large_jpeg_decoded_small_is_close_to_one_decoded_whole():
    image = picture(width=1600, height=800)
    augment = AugmentConfig(scale=(1.0, 1.0), ratio=(2.0, 2.0))
    rng = np.random.default_rng(0)
    found = train_patches(encoded(image, "JPEG", quality=95), BUDGET, PIXELS, augment, rng)
    expected = eval_patches(encoded(image), BUDGET, PIXELS)
    np.testing.assert_array_equal(found["spatial_shape"], expected["spatial_shape"])
    assert np.abs(found["image"].astype(int) - expected["image"]).max() < 12


def test_evaluation_rows_are_the_records_and_empty_rows_have_one_patch(source):
    (batch,) = eval_batches(
        source, tokenizer=LengthTokenizer(), pixels=PIXELS, image_size=16, budget=BUDGET, batch_size=16
    )
    assert batch["valid"].tolist() == [True] * 11 + [False] * 5
    for i in range(11):
        expected = eval_patches(example(i)["image"], BUDGET, PIXELS)
        for name, value in expected.items():
            np.testing.assert_array_equal(batch[name][i], value)
    assert (batch["spatial_shape"][11:] == 1).all() and not batch["image"][11:].any()
