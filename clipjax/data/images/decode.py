"""Encoded image -> upright RGB, or a smaller version of it in which the part to be used still has enough pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image

from clipjax.data.images.formats import FORMATS, IMAGE_SUFFIXES, PNG, why_unreadable
from clipjax.data.images.jpeg import check_scans, decode_small
from clipjax.data.images.modes import to_rgb
from clipjax.data.images.png import check_chunks, check_unread
from clipjax.data.images.resize import Box
from clipjax.data.records import RecordError

__all__ = ["EXIF_ORIENTATION", "FORMATS", "IMAGE_SUFFIXES", "MAX_PIXELS", "Picture", "open_image", "read_box"]

Picture = bytes | Image.Image  # an encoded file, or what Pillow opened or made

MAX_PIXELS = 64 * 1024 * 1024  # decoded RGB of 192 MiB; larger files are refused by their header
# EXIF orientation -> the operation that turns the stored image upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_ORIENTATION = 0x0112
# EXIF orientation -> for (columns, rows) of the upright image: 1 if they run opposite to the stored ones.
FROM_THE_END = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


def open_image(picture: Picture, at_least: int | None = None, alpha: str = "white") -> Image.Image:
    """A decoded RGB image: upright by its EXIF orientation; of an animation the first frame.

    picture: an encoded file, or an image of any mode. One that Pillow opened gives the pixels of its file, at its
    current frame; one that still carries an orientation in its EXIF data is turned, as its file would be.
    at_least: a JPEG file is decoded at a half, a quarter or an eighth of its size while both sides stay that long.
    alpha, and how each mode becomes RGB: see modes.to_rgb.
    Raises RecordError for a file that is empty, truncated, damaged where its format has a checksum, of an unknown
    format, or larger than MAX_PIXELS.
    """
    return read_box(picture, lambda width, height: (0, 0, width, height), at_least, alpha)[0]


def read_box(
    picture: Picture, choose_box: Callable[[int, int], Box], size: int | None, alpha: str, decoder: str = "pillow"
) -> tuple[Image.Image, Box]:
    """(decoded upright RGB image, box in its coordinates). choose_box(width, height) chooses in the full image.

    With a size, the image may be a smaller version of the file, in which the box still has `size` pixels a side if it
    has them in the file. decoder "simplejpeg" makes such versions of plain JPEGs; Pillow decodes everything else.
    Raises RecordError as open_image does.
    """
    image = _opened(picture)
    # "MPO" is a JPEG of several pictures. All other formats are read whole, and TIFF is then upright already.
    shrinks = size and isinstance(picture, bytes) and image.format in ("JPEG", "MPO")
    if not shrinks:
        closed = getattr(image, "tile", None) and getattr(image, "fp", None) is None
        with _damage_as_record_error("; its file was closed before its pixels were read" if closed else ""):
            check_unread(image)
            image.load()
    stored, orientation = image.size, _orientation(image)
    # The last four orientations swap the sides.
    full = stored[::-1] if orientation >= 5 else stored
    box = choose_box(*full)
    shrink, small = 1.0, None
    with _damage_as_record_error():
        if shrinks:
            by = min(box[2] - box[0], box[3] - box[1]) / size
            # Mode RGB and format JPEG: not grey, not CMYK, not several pictures in one file.
            if decoder == "simplejpeg" and image.format == "JPEG" and image.mode == "RGB":
                small = decode_small(picture, stored, by)
            if small:
                image, shrink = Image.fromarray(small[0]), small[1]
            # draft divides by the largest of 1, 2, 4 and 8 that leaves the size asked for.
            elif drafted := image.draft(None, tuple(max(1, int(side / by)) for side in stored)):
                shrink = stored[0] / drafted[1][2]
            image.load()
        image = to_rgb(image, alpha)
        upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        # Sides of the smaller version are rounded up. Mirrored, the part beyond the file's last pixel comes first.
        ends = FROM_THE_END.get(orientation, (0, 0))
        beyond = [end * (side - whole / shrink) for end, side, whole in zip(ends, upright.size, full, strict=True)]
        box = tuple(edge / shrink + extra for edge, extra in zip(box, beyond * 2, strict=True))
        return upright, box


def _opened(picture: Picture) -> Image.Image:
    """The image, not yet decoded if it is a file, whose size is within the limits."""
    image = picture
    if not isinstance(picture, Image.Image):
        if not picture:
            raise RecordError("empty image", "the image has zero bytes")
        try:
            with _damage_as_record_error():
                image = Image.open(io.BytesIO(picture), formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            if picture.startswith(PNG):
                check_chunks(picture)
            raise RecordError("not an image", why_unreadable(picture, FORMATS)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise RecordError("image too large", f"{width} x {height} pixels, the limit is {MAX_PIXELS} in all")
    if isinstance(picture, bytes) and image.format in ("JPEG", "MPO"):
        check_scans(picture, width * height)
    if not width * height:
        raise RecordError("empty image", f"{width} x {height} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = int(image.getexif().get(EXIF_ORIENTATION, 1))
        return orientation if orientation in TURNS else 1
    except Exception:  # damaged EXIF data beside sound pixels: leave the image as it is
        return 1


@contextmanager
def _damage_as_record_error(note: str = "") -> Iterator[None]:
    try:
        yield
    except (RecordError, Image.UnidentifiedImageError):
        raise
    except Image.DecompressionBombError as error:
        raise RecordError("image too large", str(error)) from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged input; a reader needs only one
        raise RecordError("corrupt image", f"{type(error).__name__}: {error}{note}") from error
