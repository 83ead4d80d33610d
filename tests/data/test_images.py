"""Any image file people have becomes the right RGB pixels, or an error that says what is wrong."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from clipjax.config import AugmentConfig, PixelConfig
from clipjax.data.images.decode import MAX_PIXELS, open_image
from clipjax.data.images.transforms import crop_box, eval_image, train_image
from clipjax.data.records import RecordError
from tests.data.samples import encoded, picture
from tests.torch_reference import import_torch

CLIP = PixelConfig(resize="center_crop")
SIGLIP = PixelConfig(resize="squash")
CROP = AugmentConfig(scale=(0.3, 1.0), ratio=(0.75, 4 / 3))
SIZES = [(300, 200), (200, 300), (229, 224), (224, 224), (97, 311), (50, 40), (224, 1)]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data)).astype(int)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_lossless_formats_give_their_pixels(format):
    image = picture().quantize(200).convert("RGB") if format == "GIF" else picture()
    options = {"lossless": True} if format == "WEBP" else {}
    assert (pixels(encoded(image, format, **options)) == np.asarray(image)).all()


def test_jpeg_gives_pillows_pixels():
    data = encoded(picture(), "JPEG", quality=90)
    assert (pixels(data) == np.asarray(Image.open(io.BytesIO(data)))).all()


def test_grey_and_black_and_white_become_rgb():
    grey = picture().convert("L")
    assert (pixels(encoded(grey)) == np.asarray(grey)[..., None]).all()
    bits = picture().convert("1")
    assert (pixels(encoded(bits)) == 255 * np.asarray(bits)[..., None].astype(int)).all()


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 60 * 40).astype(np.uint16).reshape(40, 60)
    for format in ("PNG", "TIFF"):
        assert np.abs(pixels(encoded(Image.fromarray(values), format))[..., 0] - values / 257).max() <= 0.5


def test_cmyk_jpeg_becomes_rgb():
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(pixels(data) - np.asarray(picture())).mean() < 4


def test_transparency_lies_over_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0], rgba[0, :, 3], rgba[1, :, 3] = 200, 0, 255
    image = Image.fromarray(rgba)
    assert (pixels(encoded(image))[0] == 255).all()
    assert (pixels(encoded(image))[1] == (200, 0, 0)).all()
    assert (pixels(encoded(image.convert("LA")))[0] == 255).all()
    assert (pixels(encoded(image, "WEBP", lossless=True))[0] == 255).all()
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert pixels(encoded(palette, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels(encoded(keyed, transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(format):
    first, second = (Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 0, 250)))
    data = encoded(first, format, save_all=True, append_images=[second], duration=100)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(pixels(data) - (250, 0, 0)).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(width=64, height=32), "JPEG", exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (pixels(data) == np.asarray(reference)).all()
    # Training crops the upright image: the whole of it here.
    whole = AugmentConfig(scale=(1.0, 1.0), ratio=(reference.width / reference.height,) * 2)
    found = train_image(data, 16, SIGLIP, whole, np.random.default_rng(0)).astype(int)
    assert np.abs(found - np.asarray(reference.resize((16, 16), Image.Resampling.BICUBIC))).mean() < 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image():
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert pixels(data).shape == (40, 60, 3)


def png_with_header_size(width: int, height: int) -> bytes:
    """A sound small PNG whose header says another size, with a correct checksum."""
    data = encoded(picture())
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    ("data", "cause", "message"),
    [
        (b"", "empty image", "zero bytes"),
        (b"<html>404</html>", "not an image", "none of JPEG, PNG"),
        (encoded(picture(), "JPEG")[:-100], "corrupt image", "truncated"),
        (encoded(picture())[:-40], "corrupt image", None),
        (encoded(picture(), "WEBP")[:-40], "corrupt image", None),
        (png_with_header_size(8193, 8192), "image too large", f"8193 x 8192 pixels, the limit is {MAX_PIXELS}"),
        (png_with_header_size(100_000, 100_000), "image too large", "exceeds limit"),
        (encoded(Image.new("F", (4, 4), 300), "TIFF"), "pixels of unknown range", "floating-point"),
    ],
)
def test_an_unusable_image_says_why(data, cause, message):
    with pytest.raises(RecordError, match=message) as caught:
        open_image(data)
    assert caught.value.cause == cause


@settings(max_examples=300)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), st.data())
def test_damaged_bytes_give_pixels_or_a_record_error_and_nothing_else(format, data):
    image = bytearray(encoded(picture(), format))
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert eval_image(bytes(image), 8, CLIP).shape == (8, 8, 3)
    except RecordError as error:
        assert error.cause in ("not an image", "corrupt image", "image too large")


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_center_crop_equals_torchvisions_resize_and_center_crop(width, height, interpolation):
    transforms = import_torch("torchvision.transforms")
    image = picture(1, width, height)
    mode = transforms.InterpolationMode[interpolation.upper()]
    reference = transforms.Compose([transforms.Resize(56, interpolation=mode), transforms.CenterCrop(56)])(image)
    found = eval_image(encoded(image), 56, PixelConfig(resize="center_crop", interpolation=interpolation))
    # One level: the corner of the box is a float32 in Pillow.
    difference = np.abs(found.astype(int) - np.asarray(reference))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_center_crop_of_a_large_jpeg_is_not_approximated():
    data = encoded(picture(2, 1000, 800), "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).resize((70, 56), Image.Resampling.BICUBIC).crop((7, 0, 63, 56))
    assert (eval_image(data, 56, CLIP) == np.asarray(full)).all()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_squash_equals_a_resize_of_both_sides(width, height):
    image = picture(3, width, height)
    assert (eval_image(encoded(image), 32, SIGLIP) == np.asarray(image.resize((32, 32)))).all()


def test_a_crop_equals_torchvisions_resized_crop_inside_its_border():
    transforms = import_torch("torchvision.transforms")
    image = picture(4, 300, 200)
    for seed in range(20):
        found = train_image(encoded(image), 64, SIGLIP, CROP, np.random.default_rng(seed))
        left, top, right, bottom = crop_box(300, 200, CROP, np.random.default_rng(seed))
        window = (top, left, bottom - top, right - left)
        bicubic = transforms.InterpolationMode.BICUBIC
        reference = transforms.functional.resized_crop(image, *window, [64, 64], bicubic)
        difference = np.abs(found.astype(int) - np.asarray(reference))
        assert difference[3:-3, 3:-3].max() <= 1
        # On the border the filter sees the image's own pixels beyond the crop, where torchvision's sees none.
        assert difference.mean() < 0.5


@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (0.75, 4 / 3)), ((0.5, 1.0), (0.5, 2.0))])
def test_crops_have_torchvisions_distribution(scale, ratio):
    torch = import_torch()
    get_params = import_torch("torchvision.transforms").RandomResizedCrop.get_params
    torch.manual_seed(0)
    tensor, rng, n = torch.zeros(3, 200, 300), np.random.default_rng(0), 2000
    theirs = np.array([get_params(tensor, list(scale), list(ratio)) for _ in range(n)])  # top, left, height, width
    boxes = np.array([crop_box(300, 200, AugmentConfig(scale=scale, ratio=ratio), rng) for _ in range(n)])
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], 1)
    for mean, other, spread in zip(ours.mean(0), theirs.mean(0), theirs.std(0), strict=True):
        assert abs(mean - other) < 4 * spread * np.sqrt(2 / n) + 1e-9
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.1)


@settings(max_examples=200)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 1000))
def test_a_crop_lies_inside_the_image(width, height, seed):
    left, top, right, bottom = crop_box(width, height, CROP, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_an_image_too_long_for_any_crop_is_cut_in_its_centre():
    assert crop_box(1000, 10, CROP, np.random.default_rng(0)) == (493, 0, 506, 10)
    assert crop_box(10, 1000, CROP, np.random.default_rng(0)) == (0, 493, 10, 506)


def test_a_large_jpeg_decoded_small_differs_little_from_its_full_decode(monkeypatch):
    data = encoded(picture(5, 1024, 768), "JPEG", quality=90)
    drafted = [train_image(data, 64, SIGLIP, CROP, np.random.default_rng(i)) for i in range(8)]
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *_: None)
    full = [train_image(data, 64, SIGLIP, CROP, np.random.default_rng(i)) for i in range(8)]
    assert np.abs(np.array(drafted, int) - np.array(full, int)).mean() < 1.0


def test_a_crop_is_never_enlarged_because_of_a_small_decode(monkeypatch):
    data = [encoded(picture(5, w, h), "JPEG") for w, h in ((1000, 700), (701, 1300), (260, 259))]
    sizes = []
    resize = Image.Image.resize

    def recorded(self, size, *args, box, **options):
        sizes.append(min(box[2] - box[0], box[3] - box[1]))
        return resize(self, size, *args, box=box, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    for i in range(60):
        train_image(data[i % 3], 64, SIGLIP, AugmentConfig(scale=(0.1, 1.0)), np.random.default_rng(i))
    assert min(sizes) > 63


def test_flip_mirrors_and_its_share_is_the_probability():
    data = encoded(picture())
    plain = eval_image(data, 32, SIGLIP)
    always = train_image(data, 32, SIGLIP, AugmentConfig(name="none", flip=1.0), np.random.default_rng(0))
    assert (always == plain[:, ::-1]).all()
    some = [
        train_image(data, 32, SIGLIP, AugmentConfig(name="none", flip=0.3), np.random.default_rng(i))
        for i in range(400)
    ]
    assert abs(np.mean([not (x == plain).all() for x in some]) - 0.3) < 0.08
