"""Pixels are those of open_clip's transforms and transformers' image processors."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from clipjax.config import PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.data.images.transforms import eval_image
from clipjax.models.pixels import normalize_pixels
from tests.data.samples import encoded, picture
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
transform = import_torch("open_clip.transform")

SIZE = 57  # odd, so that margins are odd for some sizes and even for others
SIZES = [(300, 200), (201, 333), (57, 57), (58, 64), (97, 311), (23, 17), (9, 61), (1500, 1100)]


def noisy(seed, width, height):
    """A picture with noise on it, which every filter treats in its own way."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(picture(seed, width, height), noise, 0.4)


IMAGES = [noisy(seed, *size) for seed, size in enumerate(SIZES)]


def ours(data, pixels, size=SIZE):
    """[size, size, 3] as the tower sees it."""
    return np.asarray(normalize_pixels(eval_image(data, size, pixels)[None], pixels.mean, pixels.std)[0])


def assert_close(found, expected, pixels):
    """Normalisation undone, every pixel is at the same level of 255."""
    assert (np.abs(found - expected) * np.array(pixels.std) * 255).max() < 0.01


def open_clip(image, pixels, mode):
    preprocess = transform.image_transform(
        SIZE,
        False,
        pixels.mean,
        pixels.std,
        resize_mode=mode,
        interpolation=pixels.interpolation,
        fill_color=pixels.fill,
    )
    return preprocess(image).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("preset", "mode"),
    [
        ("openai", "shortest"),
        ("openai_half", "shortest"),
        ("clipa", "squash"),
        ("siglip_hf", "squash"),
        ("open_clip_longest", "longest"),
    ],
)
def test_presets_equal_open_clips_transforms(preset, mode):
    pixels = PIXEL_PRESETS[preset]
    for image in IMAGES:
        assert_close(ours(encoded(image), pixels), open_clip(image, pixels, mode), pixels)


def test_padding_is_filled_as_open_clips():
    pixels = PixelConfig(resize="pad", interpolation="bilinear", fill=77)
    for image in IMAGES:
        assert_close(ours(encoded(image), pixels), open_clip(image, pixels, "longest"), pixels)


def hf(name, **options):
    module, processor = name.rsplit(".", 1)
    return getattr(import_torch(f"transformers.models.{module}"), processor)(**options)


SQUARE = {"height": SIZE, "width": SIZE}
PROCESSORS = {
    "clip_hf": (
        "clip.image_processing_pil_clip.CLIPImageProcessorPil",
        dict(size={"shortest_edge": SIZE}, crop_size=SQUARE),
    ),
    "siglip_hf": ("siglip.image_processing_pil_siglip.SiglipImageProcessorPil", dict(size=SQUARE)),
    "siglip2_hf": (
        "siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
        dict(size=SQUARE, resample=Image.Resampling.BILINEAR),
    ),
}


@pytest.mark.parametrize("preset", ["clip_hf", "siglip_hf", "siglip2_hf"])
def test_presets_equal_transformers_image_processors(preset):
    name, options = PROCESSORS[preset]
    processor, pixels = hf(name, **options), PIXEL_PRESETS[preset]
    for image in IMAGES:
        expected = np.asarray(processor(image, return_tensors="np").pixel_values[0]).transpose(1, 2, 0)
        assert_close(ours(encoded(image), pixels), expected, pixels)


def test_align_equals_transformers_processor_as_published():
    processor = hf(
        "efficientnet.image_processing_pil_efficientnet.EfficientNetImageProcessorPil",
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
        resample=Image.Resampling.BILINEAR,
    )
    pixels = PIXEL_PRESETS["align"]
    for image in IMAGES[:5]:
        expected = np.asarray(processor(image, return_tensors="np").pixel_values[0]).transpose(1, 2, 0)
        assert_close(ours(encoded(image), pixels, 289), expected, pixels)


def test_big_vision_equals_bilinear_sampling_without_antialias():
    """torch's interpolate has the half-pixel centres of tf.image.resize; then the cast to uint8 cuts fractions off."""
    pixels = PIXEL_PRESETS["big_vision"]
    for image in IMAGES:
        tensor = torch.tensor(np.array(image)).permute(2, 0, 1)[None].float()
        sampled = torch.nn.functional.interpolate(tensor, (SIZE, SIZE), mode="bilinear", align_corners=False)
        expected = sampled[0].permute(1, 2, 0).numpy().astype(np.uint8) / 127.5 - 1
        found = ours(encoded(image), pixels)
        # Where the exact value is a whole number, the last bit of a float32 decides which level it is cut to.
        assert (np.abs(found - expected) * 127.5).max() <= 1.01
        assert (np.abs(found - expected) * 127.5 > 0.01).mean() < 0.03
    antialiased = ours(encoded(IMAGES[-1]), PIXEL_PRESETS["siglip2_hf"])
    assert np.abs(ours(encoded(IMAGES[-1]), pixels) - antialiased).mean() > 0.01, "the setting matters"


def odd_images():
    rgba = picture(7, 120, 90).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    palette = picture(8, 120, 90).quantize(64)
    yield "alpha", rgba, encoded(rgba)
    yield "grey and alpha", rgba.convert("LA"), encoded(rgba.convert("LA"))
    yield "palette", palette, encoded(palette)
    yield "grey", picture(9, 120, 90).convert("L"), encoded(picture(9, 120, 90).convert("L"))
    cmyk = encoded(picture(9, 120, 90).convert("CMYK"), "JPEG", quality=95)
    yield "cmyk", Image.open(io.BytesIO(cmyk)), cmyk


@pytest.mark.parametrize("preset", ["clip_hf", "siglip_hf"])
def test_images_of_other_modes_equal_transformers(preset):
    """transformers makes an image RGB before it is resized, as we do; open_clip after, see docs/preprocessing.md."""
    name, options = PROCESSORS[preset]
    processor, pixels = hf(name, **options), PIXEL_PRESETS[preset]
    for mode, image, data in odd_images():
        expected = np.asarray(processor(image, return_tensors="np").pixel_values[0]).transpose(1, 2, 0)
        try:
            assert_close(ours(data, pixels), expected, pixels)
        except AssertionError as error:
            raise AssertionError(mode) from error


def test_images_of_other_modes_equal_open_clip_once_they_are_rgb():
    pixels = PIXEL_PRESETS["openai"]
    for _, image, data in odd_images():
        assert_close(ours(data, pixels), open_clip(image.convert("RGB"), pixels, "shortest"), pixels)
