"""The files that real collections hold, through records and the training stream: Pillow's picture, or a counted cause.

What each kind of file becomes on its own is in test_images.py and test_jpeg.py.
"""

import functools
import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipjax.config import AugmentConfig, DataConfig, PixelConfig
from clipjax.data.images.decode import MAX_PIXELS, open_image
from clipjax.data.images.transforms import eval_image
from clipjax.data.records import RecordError, encode_record
from tests.data.samples import encoded, open_folder, picture, write_folder
from tests.data.test_pipeline import stream

SIZE = 16
IMAGE = picture(1, 60, 40)


def rotated(format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(IMAGE, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    )


def sixteen_bit_rgb() -> bytes:
    wide = np.asarray(IMAGE).astype(">u2") * 257
    return png(60, 40, 16, 2, b"".join(b"\0" + row.tobytes() for row in wide))


def animated(format: str, frames: int = 3) -> bytes:
    others = [picture(10 + i, 60, 40) for i in range(frames - 1)]
    options = {"lossless": True} if format == "WEBP" else {}
    return encoded(IMAGE, format, save_all=True, append_images=others, duration=50, **options)


def jpeg_with_header_size(width: int, height: int) -> bytes:
    data = encoded(IMAGE, "JPEG")
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


@functools.cache
def bomb_in_text() -> bytes:
    """A sound small PNG with a compressed comment of 64 MiB."""
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20), 1))
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(IMAGE))
    return png(60, 40, 8, 2, rows, comment)


@functools.cache
def bomb_in_pixels() -> bytes:
    """A PNG whose header fits and whose data goes on for 64 MiB more."""
    return png(60, 40, 8, 2, b"".join(b"\0" + row.tobytes() for row in np.asarray(IMAGE)) + bytes(64 << 20))


USABLE = {
    "CMYK JPEG": lambda: encoded(IMAGE.convert("CMYK"), "JPEG", quality=95),
    "CMYK TIFF": lambda: encoded(IMAGE.convert("CMYK"), "TIFF"),
    "16-bit RGB": sixteen_bit_rgb,
    "animated GIF": lambda: animated("GIF"),
    "animated WebP": lambda: animated("WEBP"),
    "animated PNG": lambda: animated("PNG"),
    "rotated JPEG": lambda: rotated("JPEG"),
    "rotated PNG": lambda: rotated("PNG"),
    "rotated WebP": lambda: rotated("WEBP"),
    "more pixels than announced": bomb_in_pixels,
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1), (9, 99, 200))),
    "very long": lambda: encoded(picture(2, 5000, 2), "PNG"),
}
UNUSABLE = {
    "zero bytes": (lambda: b"", "empty image"),
    "a web page": (lambda: b"<!DOCTYPE html><title>Not found</title>", "not an image"),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "PDF": (lambda: b"%PDF-1.7\n", "not an image"),
    "huge PNG": (lambda: png(8193, 8192, 8, 2, b"\0"), "image too large"),
    "huge JPEG": (lambda: jpeg_with_header_size(60_000, 60_000), "image too large"),
    "bomb in a comment": (bomb_in_text, "corrupt image"),
    "truncated JPEG": (lambda: encoded(IMAGE, "JPEG")[:-100], "corrupt image"),
    "header alone": (lambda: encoded(IMAGE)[:33], "not an image"),
}


def by_pillow(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


@pytest.mark.parametrize("name", USABLE)
def test_a_usable_file_gives_the_picture_that_pillow_gives(name):
    data = USABLE[name]()
    assert (np.asarray(open_image(data)) == np.asarray(by_pillow(data))).all()
    expected = np.asarray(by_pillow(data).resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(eval_image(data, SIZE, PixelConfig()) - expected)
    assert difference.max() <= (1 if name == "very long" else 0)


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_file_names_its_cause_before_anything_large_is_decoded(name):
    make, cause = UNUSABLE[name]
    data, started = make(), time.process_time()
    with pytest.raises(RecordError) as caught:
        open_image(data)
    assert caught.value.cause == cause
    assert time.process_time() - started < 0.5
    if name == "bomb in a comment":
        assert "too large" in str(caught.value)


def test_the_largest_picture_allowed_is_what_the_docs_say():
    assert MAX_PIXELS == 64 << 20
    with pytest.raises(RecordError, match="8192 x 8193 pixels, the limit is"):
        open_image(png(8192, 8193, 8, 0, b"\0"))
    with pytest.raises(RecordError) as caught:  # at the limit the data is looked at, and there is none
        open_image(png(8192, 8192, 8, 0, b"\0"))
    assert caught.value.cause == "corrupt image"


@pytest.mark.parametrize("decoder", ["pillow", "auto"])
def test_training_uses_what_is_usable_and_counts_the_rest_by_cause(tmp_path, decoder):
    files = [make() for make in USABLE.values()] + [make() for make, _ in UNUSABLE.values()]
    # The extension that a file came with, here part of its key, has no say in what it is.
    records = [encode_record(data, [f"caption 0 of {i}"], key=f"{i}.jpg", pair_id=i) for i, data in enumerate(files)]
    source = open_folder(write_folder(tmp_path / "set", records))
    data = DataConfig(augment=AugmentConfig(name="none"), max_bad_share=1.0, decoder=decoder)
    batch, state = next(stream(source, data=data, batch=len(files)))  # one epoch
    causes = [cause for _, cause in UNUSABLE.values()]
    assert all(state["bad"][cause] >= causes.count(cause) for cause in set(causes))
    assert set(state["bad"]) == set(causes)
    assert set(batch["pair_id"]) == set(range(len(USABLE)))
    for image, i in zip(batch["image"], batch["pair_id"], strict=True):
        assert (image == eval_image(files[i], SIZE, PixelConfig())).all()
