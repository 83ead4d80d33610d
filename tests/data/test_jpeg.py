"""Training's JPEG decoder gives Pillow's crop of Pillow's picture, and its verdict on what is unusual or damaged."""

import dataclasses
import importlib.util
import io

import numpy as np
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipjax.config import AugmentConfig, ConfigError, DataConfig, PatchBudget, PixelConfig
from clipjax.data.images import decode, jpeg
from clipjax.data.images.naflex import train_patches
from clipjax.data.images.transforms import eval_image, train_image
from clipjax.data.records import RecordError
from tests.data.photos import photo, photo_jpeg
from tests.data.samples import encoded, picture

PIXELS = PixelConfig()
CROP = AugmentConfig(scale=(0.3, 1.0))
installed = pytest.mark.skipif(importlib.util.find_spec("simplejpeg") is None, reason="simplejpeg is not installed")


def both(data: bytes, size: int, seed: int, augment: AugmentConfig = CROP) -> tuple[np.ndarray, np.ndarray]:
    by_pillow, found = (
        train_image(data, size, PIXELS, augment, np.random.default_rng(seed), decoder).astype(int)
        for decoder in ("pillow", "simplejpeg")
    )
    return by_pillow, found


@installed
@pytest.mark.parametrize(("width", "height"), [(256, 256), (500, 375), (1024, 768), (333, 517)])
def test_both_decoders_give_the_same_picture_to_less_than_a_level(width, height, monkeypatch):
    data = [photo_jpeg(seed, width, height) for seed in range(4)]
    pairs = [both(data[i % 4], 112, i) for i in range(16)]
    assert np.mean([np.abs(a - b).mean() for a, b in pairs]) < 0.8
    assert max(np.abs(a - b).mean() for a, b in pairs) < 1.5
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *_: None)
    pairs = [both(data[i % 4], 112, i) for i in range(16)]
    assert np.mean([np.abs(whole - b).mean() for whole, b in pairs]) < 1.0


@installed
def test_a_whole_decode_is_pillows_to_the_bit():
    for seed in range(8):
        by_pillow, found = both(photo_jpeg(seed, 200, 160), 160, seed)
        assert (by_pillow == found).all()


@installed
@pytest.mark.parametrize("eighths", jpeg.EIGHTHS)
def test_the_smallest_version_that_keeps_the_crop_is_decoded(eighths):
    data = photo_jpeg(0, 501, 375)
    pixels, shrink = jpeg.decode_small(data, (501, 375), 8 / eighths)
    assert shrink == 8 / eighths
    assert pixels.shape == (-(-375 * eighths // 8), -(-501 * eighths // 8), 3)
    assert jpeg.decode_small(data, (501, 375), 7.99 / eighths)[1] < shrink or eighths == 8


@installed
def test_crops_are_the_same_and_never_enlarged_because_of_a_small_decode(monkeypatch):
    data = [photo_jpeg(5, w, h) for w, h in ((1000, 700), (701, 1300), (260, 259))]
    boxes, sides = [], []
    resize = Image.Image.resize

    def recorded(self, size, *args, box, **options):
        boxes.append(np.array(box) / (self.size * 2))
        sides.append(min(box[2] - box[0], box[3] - box[1]))
        return resize(self, size, *args, box=box, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    for i in range(60):
        both(data[i % 3], 64, i, AugmentConfig(scale=(0.1, 1.0)))
    assert min(sides[1::2]) >= 64  # of simplejpeg's
    # As shares of the picture, whose own size is rounded up to a pixel in each version.
    np.testing.assert_allclose(boxes[::2], boxes[1::2], atol=0.01)


def unusual() -> dict[str, bytes]:
    image = photo(1, 200, 150)
    buffer = io.BytesIO()
    image.save(buffer, "MPO", save_all=True, append_images=[image.rotate(90)])
    return {
        "grey": encoded(image.convert("L"), "JPEG"),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "several pictures": buffer.getvalue(),
        "png": encoded(image),
        "webp": encoded(image, "WEBP"),
    }


@installed
@pytest.mark.parametrize("name", unusual())
def test_what_is_not_a_plain_jpeg_is_left_to_pillow(name):
    by_pillow, found = both(unusual()[name], 48, 3)
    assert (by_pillow == found).all()


@installed
@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}, {"subsampling": "4:4:4"}])
def test_other_kinds_of_jpeg_are_decoded_as_pillow_does(options):
    by_pillow, found = both(encoded(photo(1, 100, 80), "JPEG", **options), 64, 0)
    assert (by_pillow == found).all()


@installed
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(2, 300, 200), "JPEG", quality=90, exif=exif)
    for seed in range(4):
        by_pillow, found = both(data, 48, seed)
        assert np.abs(by_pillow - found).mean() < 2.0
        assert np.corrcoef(by_pillow.ravel(), found.ravel())[0, 1] > 0.995


@installed
def test_naflex_reads_the_same_patches():
    data, budget = photo_jpeg(3, 600, 400), PatchBudget(16, 49)
    found = [
        train_patches(data, budget, PIXELS, CROP, np.random.default_rng(0), name) for name in ("pillow", "simplejpeg")
    ]
    assert (found[0]["spatial_shape"] == found[1]["spatial_shape"]).all()
    assert np.abs(found[0]["image"].astype(int) - found[1]["image"]).mean() < 1.0


def verdict(data: bytes, decoder: str) -> str:
    try:
        train_image(data, 16, PIXELS, CROP, np.random.default_rng(0), decoder)
        return "used"
    except RecordError as error:
        return error.cause


@installed
@pytest.mark.parametrize("keep", [0, 1, 20, 300, 0.3, 0.6, 0.9, -100, -3, -2, -1])
def test_a_truncated_jpeg_is_found_by_both(keep):
    data = photo_jpeg(0, 200, 150)
    cut = data[: int(keep * len(data)) if isinstance(keep, float) else keep]
    assert verdict(cut, "simplejpeg") == verdict(cut, "pillow")
    assert verdict(cut, "simplejpeg") != "used" or keep in (-1, -2)  # the end marker alone is missing


@installed
@settings(max_examples=150)
@given(st.data())
def test_damage_costs_an_image_exactly_where_pillow_gives_it_up(data):
    image = bytearray(encoded(picture(), "JPEG"))
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    assert verdict(bytes(image), "simplejpeg") == verdict(bytes(image), "pillow")


def test_evaluation_and_training_without_augmentation_are_always_pillows(monkeypatch):
    monkeypatch.setattr(decode, "decode_small", lambda *_: pytest.fail("decoded by another decoder"))
    data = photo_jpeg(0, 500, 375)
    plain = AugmentConfig(name="none")
    expected = np.asarray(Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BICUBIC))
    assert (eval_image(data, 64, PIXELS) == expected).all()
    assert (train_image(data, 64, PIXELS, plain, np.random.default_rng(0), "simplejpeg") == expected).all()


@installed
def test_auto_takes_simplejpeg_and_the_config_says_so():
    assert jpeg.choose_decoder(DataConfig()).decoder == "simplejpeg"
    assert jpeg.choose_decoder(DataConfig(decoder="pillow")).decoder == "pillow"


def test_without_simplejpeg_auto_is_pillow_with_one_warning_and_asking_for_it_is_an_error(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    jpeg._log_once.cache_clear()
    for _ in range(2):
        assert jpeg.choose_decoder(DataConfig()).decoder == "pillow"
    assert len(lines) == 1 and "pip install simplejpeg" in lines[0]
    with pytest.raises(ConfigError, match="config.data.decoder='simplejpeg', but simplejpeg is not installed"):
        jpeg.choose_decoder(dataclasses.replace(DataConfig(), decoder="simplejpeg"))
