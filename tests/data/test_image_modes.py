"""Every mode, depth and orientation becomes the picture that was meant, whether it comes as a file or from Pillow."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin, features

from clipjax.config import AugmentConfig, DataConfig, PixelConfig
from clipjax.data.images import IMAGE_SUFFIXES, decode, eval_image, modes, open_image, train_image
from clipjax.data.images.formats import FORMATS, OPTIONAL
from clipjax.data.records import RecordError, encode_record
from tests.data.samples import encoded, open_folder, picture, write_folder
from tests.data.test_pipeline import stream

IMAGE = picture(1, 60, 40)
GREY = np.asarray(IMAGE.convert("L"))
RGB_OF_GREY = np.repeat(GREY[..., None], 3, 2)


def pixels(image: bytes | Image.Image, **options) -> np.ndarray:
    return np.asarray(open_image(image, **options))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def tiff(values: np.ndarray, *, bits: int, sample_format: int = 1, photometric: int = 1, order: str = "<") -> bytes:
    """An uncompressed grey TIFF. values: [H, W] of the file's own type, or [H, bytes of a row] where bits is 12."""
    height, rows = values.shape[0], values.tobytes()
    width = values.shape[1] if bits != 12 else values.shape[1] * 2 // 3
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(rows)}
    tags[339] = sample_format
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    first = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return first + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4) + rows


def turned(format: str, orientation: int, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(IMAGE, format, exif=exif, **options)


# orientation

TURNED = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF, LZW": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 90},
}


@pytest.mark.parametrize("kind", TURNED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_once_to_files_and_to_what_pillow_opened(kind, orientation):
    format = kind.split(",")[0]
    if format not in FORMATS:
        pytest.skip(f"this Pillow does not read {format}")
    data = turned(format, orientation, **TURNED[kind])
    reference = ImageOps.exif_transpose(opened(data)).convert("RGB")
    assert reference.size == ((40, 60) if orientation >= 5 else (60, 40))
    loaded = opened(data)
    loaded.load()
    transposed = ImageOps.exif_transpose(opened(data))
    for image in (data, opened(data), loaded, loaded, loaded.copy(), loaded.convert("RGB"), transposed):
        assert (pixels(image) == np.asarray(reference)).all()
    whole = AugmentConfig(scale=(1.0, 1.0), ratio=(reference.width / reference.height,) * 2)
    for augment in (AugmentConfig(name="none"), whole):
        cropped = train_image(data, 16, PixelConfig(resize="squash"), augment, np.random.default_rng(0)).astype(int)
        found = np.asarray(reference.resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(cropped - found).mean() < 4


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_alone_is_applied_once(format):
    xmp = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    options = {"tiffinfo": {700: xmp.encode()}} if format == "TIFF" else {"xmp": xmp.encode()}
    if format == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    data = encoded(IMAGE, format, **options)
    loaded = opened(data)
    loaded.load()
    for image in (data, opened(data), loaded, loaded.copy(), ImageOps.exif_transpose(opened(data))):
        assert open_image(image).size == (40, 60)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "RGB"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_of_any_mode_and_compression_is_turned_once(mode, compression):
    image = IMAGE.convert(mode)
    data = encoded(image, "TIFF", compression=compression, tiffinfo={274: 6})
    expected = pixels(image.transpose(Image.Transpose.ROTATE_270))
    for given in (data, opened(data)):
        assert (pixels(given) == expected).all()


# modes


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_opaque_mode_becomes_the_rgb_that_pillow_makes_of_it(mode):
    image = IMAGE.convert(mode)
    assert (pixels(image) == np.asarray(image.convert("RGB"))).all()
    if mode not in ("RGBX", "HSV", "YCbCr"):  # what Pillow can store
        assert (pixels(encoded(image, "TIFF")) == pixels(image)).all()
    assert np.abs(pixels(image).astype(int) - np.asarray(IMAGE)).mean() < (3 if mode not in ("1", "L") else 256)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa", "P"])
def test_every_transparent_mode_is_composed_over_white_or_dropped(mode):
    rgba = Image.fromarray(np.dstack([np.asarray(IMAGE), np.tile(np.uint8([0, 128, 255]), (40, 20))]))
    if mode == "PA":
        image = Image.merge("PA", [IMAGE.quantize(16), rgba.getchannel("A")])
        image.putpalette(IMAGE.quantize(16).getpalette())
    elif mode == "P":
        image = IMAGE.quantize(16)
        image.info["transparency"] = bytes(range(0, 256, 17))
    else:
        image = rgba.convert(mode) if mode in ("LA", "RGBA", "RGBa") else rgba.convert("LA").convert("La")
    plain = image.convert({"La": "LA"}.get(mode, mode)).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), plain)
    assert (pixels(image) == np.asarray(white)[..., :3]).all()
    assert (pixels(image, alpha="drop") == np.asarray(plain)[..., :3]).all()
    if mode in ("LA", "RGBA", "P"):
        for alpha in ("white", "drop"):
            assert (pixels(encoded(image), alpha=alpha) == pixels(image, alpha=alpha)).all()


def png(bits: int, color: int, row: bytes, width: int, key: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"tRNS", key), chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("bits", "color", "row", "width", "key", "expected"),
    [
        (2, 0, bytes([0b00011011]), 4, struct.pack(">H", 2), [0, 85, 255, 255]),
        (4, 0, bytes([0x3C]), 2, struct.pack(">H", 0xC), [51, 255]),
        (8, 0, bytes([3, 12]), 2, struct.pack(">H", 12), [3, 255]),
        (16, 0, struct.pack(">HH", 2570, 40000), 2, struct.pack(">H", 40000), [10, 255]),
        (16, 2, struct.pack(">6H", *[2570] * 3, *[40000] * 3), 2, struct.pack(">3H", *[40000] * 3), [10, 255]),
    ],
)
def test_the_transparent_colour_of_a_png_is_found_at_any_depth(bits, color, row, width, key, expected):
    data = png(bits, color, row, width, key)
    for image in (data, opened(data)):
        assert pixels(image)[0, :, 0].tolist() == expected
        assert 255 not in pixels(image, alpha="drop")[0, :-1, 0]


# depths


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_are_divided_by_257_and_rounded(mode):
    values = np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)
    image = Image.frombytes(mode, (60, 40), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    files = [tiff(values, bits=16), tiff(values.astype(">u2"), bits=16, order=">"), encoded(Image.fromarray(values))]
    for found in map(pixels, [image, *files]):
        assert (found[..., 0] == np.floor(values / 257 + 0.5)).all()


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (GREY * np.uint16(257), {"bits": 16}),
        (65535 - GREY * np.uint16(257), {"bits": 16, "photometric": 0}),
        (np.rint(GREY * (32767 / 255)).astype(np.int16), {"bits": 16, "sample_format": 2}),
        (np.rint(GREY * (32767 / 255)).astype(">i2"), {"bits": 16, "sample_format": 2, "order": ">"}),
        (GREY * np.uint32(2**32 // 255), {"bits": 32}),
        (GREY * np.uint32(257), {"bits": 32}),
        (GREY.astype(np.uint32), {"bits": 32}),
        (GREY * np.int32(2**31 // 255), {"bits": 32, "sample_format": 2}),
        (GREY.astype(">i4") * 257, {"bits": 32, "sample_format": 2, "order": ">"}),
        (GREY.astype(np.float32), {"bits": 32, "sample_format": 3}),
        (GREY / np.float32(255), {"bits": 32, "sample_format": 3}),
        (1 - GREY / np.float32(255), {"bits": 32, "sample_format": 3, "photometric": 0}),
        ((GREY / np.float32(255)).astype(">f4"), {"bits": 32, "sample_format": 3, "order": ">"}),
    ],
)
def test_a_tiff_of_16_or_32_bits_is_scaled_by_its_range(values, options):
    data = tiff(values.astype(values.dtype.newbyteorder(options.get("order", "<"))), **options)
    loaded = opened(data)
    loaded.load()
    for image in (data, opened(data), loaded):
        assert (pixels(image) == RGB_OF_GREY).all()


def test_a_tiff_of_12_bits_is_scaled_by_4095():
    pairs = np.rint(GREY * (4095 / 255)).astype(int).reshape(40, 30, 2)
    packed = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1)
    data = tiff(np.uint8(packed).reshape(40, 90), bits=12)
    assert (pixels(data) == RGB_OF_GREY).all() and (pixels(opened(data)) == RGB_OF_GREY).all()


@pytest.mark.parametrize("scale", [1, 257, 2**31 // 255])
def test_integers_in_memory_have_the_smallest_range_that_holds_them(scale):
    image = Image.fromarray(GREY.astype(np.int32) * scale)
    assert image.mode == "I"
    assert (pixels(image) == RGB_OF_GREY).all() and (pixels(encoded(image, "TIFF")) == RGB_OF_GREY).all()


@pytest.mark.parametrize("top", [1, 255])
def test_floating_point_numbers_are_0_to_1_or_0_to_255(top):
    values = GREY.astype(np.float32) * (top / 255)
    wide = values + np.float32(0.001 * top) * (np.sign(values - top / 2))  # as bicubic resizing leaves them
    for image in (Image.fromarray(values), Image.fromarray(wide)):
        assert image.mode == "F" and (pixels(image) == RGB_OF_GREY).all()
        assert (pixels(encoded(image, "TIFF")) == RGB_OF_GREY).all()


@pytest.mark.parametrize("values", [[0.0, 3.0], [0.0, 300.0], [-1.0, 1.0], [-9.0, 200.0], [0.0, np.nan], [0.0, np.inf]])
def test_floating_point_numbers_of_another_range_are_refused(values):
    image = Image.fromarray(np.float32([values]))
    for given in (image, encoded(image, "TIFF")):
        with pytest.raises(RecordError, match="expected 0 to 1, or 0 to 255") as caught:
            open_image(given)
        assert caught.value.cause == "pixels of unknown range"


def test_integers_below_zero_are_refused():
    for image in (Image.fromarray(np.int32([[-5, 9]])), tiff(np.array([[-5, 9]], "<i2"), bits=16, sample_format=2)):
        with pytest.raises(RecordError, match="from -5 to 9"):
            open_image(image)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(RecordError, match="0 x 5 pixels"):
        open_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_used(format):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(first, format, save_all=True, append_images=[second], **options)
    assert opened(data).n_frames == 2
    assert (pixels(data) == (250, 0, 0)).all() and (pixels(opened(data)) == (250, 0, 0)).all()


# AVIF and JPEG 2000


def test_suffixes_of_all_formats_are_images():
    assert {".avif", ".jp2", ".j2k"} < set(IMAGE_SUFFIXES)
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES} == {*FORMATS, *OPTIONAL}


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow does not read JPEG 2000")
@pytest.mark.parametrize("options", [{}, {"no_jp2": True}], ids=["jp2", "j2k"])
def test_jpeg_2000_gives_its_pixels(options):
    assert (pixels(encoded(IMAGE, "JPEG2000", **options)) == np.asarray(IMAGE)).all()
    deep = Image.fromarray(GREY * np.uint16(257))
    assert (pixels(encoded(deep, "JPEG2000", **options)) == RGB_OF_GREY).all()
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    assert (pixels(encoded(clear, "JPEG2000", **options)) == 255).all()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_avif_gives_pillows_pixels():
    data = encoded(IMAGE, "AVIF", quality=90)
    assert (pixels(data) == np.asarray(opened(data))).all()
    assert np.abs(pixels(data).astype(int) - np.asarray(IMAGE)).mean() < 3
    assert (pixels(encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "AVIF")) == 255).all()


ISO = b"\0\0\0\x1cftyp%s\0\0\0\0mif1%smiaf" + bytes(40)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ISO % (b"avif", b"avif"), "AVIF, and the installed Pillow .* without its plug-in 'avif'.*pip install"),
        (ISO % (b"mif1", b"avif"), "AVIF, and the installed Pillow"),
        (b"\xff\x4f\xff\x51" + bytes(40), "JPEG2000, and the installed Pillow .* without its plug-in 'jpg_2000'"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG2000, and the installed Pillow"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP, and the installed Pillow"),
        (ISO % (b"heic", b"heic"), "HEIC, which is not read; convert it"),
        (b"\xff\x0a" + bytes(40), "JPEG XL, which is not read; convert it"),
        (
            tiff(GREY.astype("<f8"), bits=64, sample_format=3),
            "begins as TIFF, but its header, or the type of its pixels",
        ),
    ],
)
def test_what_pillow_does_not_read_is_named(data, message, monkeypatch):
    monkeypatch.setattr(decode, "FORMATS", tuple(name for name in FORMATS if name not in OPTIONAL))
    with pytest.raises(RecordError, match=message) as caught:
        open_image(data)
    assert caught.value.cause == "not an image"


# checksums


def flips(data: bytes, count: int) -> list[bytes]:
    rng, results = random.Random(0), []
    for _ in range(count):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        results.append(bytes(damaged))
    return results


def sound_pngs() -> dict[str, bytes]:
    others = [picture(2, 60, 40)]
    return {
        "one chunk of pixels": encoded(IMAGE),
        "palette": encoded(IMAGE.quantize(16), transparency=3),
        "text and orientation": turned("PNG", 6),
        "several frames": encoded(IMAGE, save_all=True, append_images=others),
        "16 bits": encoded(Image.fromarray(GREY * np.uint16(257))),
    }


@pytest.mark.parametrize("name", sound_pngs())
def test_no_flipped_bit_of_a_png_gives_other_pixels(name):
    data = sound_pngs()[name]
    expected, refused = pixels(data), 0
    for damaged in flips(data, 100):
        try:
            assert (pixels(damaged) == expected).all()
        except RecordError as error:
            assert error.cause in ("corrupt image", "not an image")
            refused += 1
    assert refused > 90


def test_a_png_names_the_chunk_that_is_damaged():
    data = encoded(IMAGE)
    at = data.index(b"IDAT")
    damaged = data[: at + 30] + bytes([data[at + 30] ^ 1]) + data[at + 31 :]
    for image in (damaged, opened(damaged)):
        with pytest.raises(RecordError, match=f"PNG chunk b'IDAT' at byte {at - 4} differs from its CRC") as caught:
            open_image(image)
        assert caught.value.cause == "corrupt image"
    header = data[:19] + bytes([data[19] ^ 1]) + data[20:]
    with pytest.raises(RecordError, match="PNG chunk b'IHDR' at byte 8 differs from its CRC") as caught:
        open_image(header)
    assert caught.value.cause == "corrupt image"
    with pytest.raises(RecordError, match="is cut off"):
        open_image(data[:-14])


def test_a_png_without_its_end_or_with_more_behind_it_is_sound():
    data = encoded(IMAGE)
    for sound in (data[:-12], data[:-6], data + b"\0more"):
        assert (pixels(sound) == np.asarray(IMAGE)).all()


def test_training_counts_a_png_with_a_wrong_crc_as_corrupt_and_goes_on(tmp_path):
    sound = [encoded(picture(i)) for i in range(6)]
    at = sound[0].index(b"IDAT") + 40
    damaged = sound[0][:at] + bytes([sound[0][at] ^ 4]) + sound[0][at + 1 :]
    files = [damaged, *sound[1:]]
    records = [encode_record(data, [f"caption 0 of {i}"], key=f"{i}", pair_id=i) for i, data in enumerate(files)]
    source = open_folder(write_folder(tmp_path / "set", records))
    data = DataConfig(augment=AugmentConfig(name="none"), max_bad_share=1.0)
    batch, state = next(stream(source, data=data, batch=6))
    assert state["bad"] == {"corrupt image": 1} and 0 not in batch["pair_id"]
    for image, i in zip(batch["image"], batch["pair_id"], strict=True):
        assert (image == eval_image(sound[i], 16, PixelConfig())).all()


@pytest.mark.parametrize("side", [5, 64])
def test_pictures_converted_in_blocks_are_those_converted_whole(side, monkeypatch):
    rgba = IMAGE.convert("RGBA")
    rgba.putalpha(IMAGE.convert("L"))
    palette = IMAGE.quantize(16)
    palette.info["transparency"] = 3
    images = [
        rgba,
        palette,
        rgba.convert("LA"),
        Image.fromarray(GREY.astype(np.float32) / 255),
        Image.fromarray(GREY.astype(np.int32) * 200),
        Image.fromarray(GREY.astype(np.uint16) * 257),
    ]
    whole = [pixels(image) for image in images]
    monkeypatch.setattr(modes, "_BLOCK", side)  # 5: less than a row
    for image, expected in zip(images, whole, strict=True):
        np.testing.assert_array_equal(pixels(image), expected)


def test_a_number_that_is_none_is_found_in_any_block(monkeypatch):
    values = GREY.astype(np.float32) / 255
    values[-1, -1] = np.nan
    monkeypatch.setattr(modes, "_BLOCK", 64)
    with pytest.raises(RecordError, match="floating-point numbers from nan to nan"):
        open_image(Image.fromarray(values))
