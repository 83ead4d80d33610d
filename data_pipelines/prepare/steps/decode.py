"""Decodes every image as training does, and stores large ones smaller."""

from __future__ import annotations

import dataclasses
import io

from PIL import Image

from clipjax.data.images.decode import EXIF_ORIENTATION, FORMATS, open_image
from clipjax.data.records import RecordError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.steps.hashes import colours, image_hash, pixels_sha
from data_pipelines.prepare.types import Example, Note

_KEPT = ("JPEG", "PNG", "WEBP")  # formats of records; images of other formats are encoded again


def decode(example: Example, options: Options, note: Note) -> Example:
    """The example with an image that training can read, and its hashes. Keeps the file's bytes where it can.

    Encoded again, upright, without animation and over white: images above shorter_side or longest_side (which are
    shrunk, never enlarged), GIF, BMP, TIFF, AVIF and JPEG 2000, images with an orientation or several frames, CMYK and
    16 bits. The result is PNG where the file may be lossless, else JPEG. Raises RecordError for images that cannot be
    decoded, exceed MAX_PIXELS by their header, have a side below min_side, or are longer than max_aspect allows.
    """
    image = open_image(example.image)
    with Image.open(io.BytesIO(example.image), formats=FORMATS) as header:
        # "MPO" is what Pillow calls a JPEG of several pictures, as phones make them.
        kind = header.format
        lossless = kind not in ("JPEG", "MPO", "AVIF") and not _lossy_webp(header, example.image)
        sound = header.mode in ("RGB", "L", "RGBA", "P", "LA", "1") and getattr(header, "n_frames", 1) == 1
        sound = sound and header.size == image.size and header.getexif().get(EXIF_ORIENTATION, 1) == 1
    short, long = min(image.size), max(image.size)
    if short < options.min_side:
        raise RecordError("side too short", f"{image.width} x {image.height} pixels, --min_side={options.min_side}")
    if 0 < options.max_aspect < long / short:
        raise RecordError("too elongated", f"{image.width} x {image.height} pixels, --max_aspect={options.max_aspect}")
    bounds = [(options.shorter_side, short), (options.longest_side, long)]
    scale = min([1.0, *(bound / side for bound, side in bounds if bound)])
    if scale < 1.0:
        note("stored smaller", example.key, f"{image.width} x {image.height}")
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(size, Image.Resampling.LANCZOS)
    seen = {"pixels_sha": pixels_sha(image), "image_hash": image_hash(image), "colours": colours(image)}
    example = dataclasses.replace(example, **seen)
    if scale == 1.0 and sound and kind in _KEPT:
        return example
    if scale == 1.0:
        note("stored anew", example.key, kind)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if lossless else "JPEG", **({} if lossless else {"quality": options.quality}))
    return dataclasses.replace(example, image=buffer.getvalue())


def _lossy_webp(header: Image.Image, data: bytes) -> bool:
    # RIFF....WEBP, then the first chunk: "VP8 " is lossy, "VP8L" lossless; "VP8X" may hold either.
    return header.format == "WEBP" and data[12:16] != b"VP8L"
