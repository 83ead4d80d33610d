"""An image of any of Pillow's modes -> RGB of 8 bits. The same for files and for images in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from clipjax.data.images.resize import Box
from clipjax.data.records import RecordError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_BLOCK = 1 << 20  # pixels that are converted at a time, so that an image's memory is little more than its own
_SLACK = 0.5  # of 255: how far floating-point numbers may lie outside their range, as a resize leaves them


def to_rgb(image: Image.Image, alpha: str) -> Image.Image:
    """A loaded image as RGB.

    alpha: "white" composes transparent pixels over white, "drop" shows the colour they hide.
    Grey of more than 8 bits is divided by its range and rounded: 0 to 65535 for 16 bits (4095 for a TIFF of 12, 32767
    for a TIFF of signed 16). Integers of 32 bits are a container without a range of their own: it is the smallest of
    255, 65535 and the largest integer (2^31 - 1, unsigned 2^32 - 1) that holds the image. Floating-point numbers are
    0 to 1 or 0 to 255, whichever their largest shows. Grey for which zero is white is inverted. All else, such as
    CMYK, YCbCr, LAB or HSV, is converted by Pillow, without a colour profile.
    Raises RecordError for numbers below zero, and for floating-point numbers of another range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(image, alpha)
    if image.mode == "La":
        image = image.convert("LA")
    if alpha == "white" and image.has_transparency_data:
        return _in_blocks(image, _over_white)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image.convert("RGBA"))


def _grey(image: Image.Image, alpha: str) -> Image.Image:
    bits = _tag(image, _BITS_PER_SAMPLE, 0)
    unsigned = image.mode == "I" and bits == 32 and _tag(image, _SAMPLE_FORMAT, 0) == 1
    inverted = _tag(image, _PHOTOMETRIC, 1) == 0  # WhiteIsZero, which Pillow undoes for 8 bits only
    key = image.info.get("transparency")

    def values_of(block: Image.Image) -> np.ndarray:
        values = np.asarray(block)
        return values.view(np.uint32) if unsigned else values  # Pillow wraps the upper half around to negatives

    if image.mode.startswith("I;16"):
        top = 4095 if bits == 12 else 65535
    else:
        ends = [(values.min(), values.max()) for values in map(values_of, map(image.crop, _boxes(image.size)))]
        low, high = np.min([low for low, _ in ends]), np.max([high for _, high in ends])  # NaN wins
        if image.mode == "F":
            top = _top_of_floats(low, high)
        else:
            top = _top_of_integers(low, high, (32767,) if bits == 16 else (255, 65535, np.iinfo(low.dtype).max))

    def grey(block: Image.Image) -> Image.Image:
        values = values_of(block)
        pixels = np.uint8(np.clip(values / np.float64(top / 255), 0, 255) + 0.5)
        pixels = 255 - pixels if inverted else pixels
        if alpha == "white" and isinstance(key, int):
            pixels[values == key] = 255
        return Image.fromarray(pixels)

    return _in_blocks(image, grey)


def _top_of_integers(low: np.integer, high: np.integer, tops: tuple[int, ...]) -> int:
    if low < 0:
        raise RecordError(
            "pixels of unknown range", f"signed integers from {low} to {high}; an image has none below zero"
        )
    return next(top for top in tops if high <= top)


def _top_of_floats(low: np.floating, high: np.floating) -> int:
    # The largest of an image of 0 to 255 is far above 1, unless all of it is black; NaN fails every comparison.
    for top, least in ((1, 0), (255, 16)):
        if -_SLACK * top / 255 <= low and least <= high <= top + _SLACK * top / 255:
            return top
    raise RecordError(
        "pixels of unknown range",
        f"floating-point numbers from {low:g} to {high:g}; expected 0 to 1, or 0 to 255",
    )


def _in_blocks(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The RGB image of convert's results for the parts of an image."""
    whole = Image.new("RGB", image.size)
    for box in _boxes(image.size):
        whole.paste(convert(image.crop(box)).convert("RGB"), box)
    return whole


def _boxes(size: tuple[int, int]) -> Iterator[Box]:
    """(left, top, right, bottom) of parts of at most _BLOCK pixels."""
    width, height = size
    columns = min(width, _BLOCK)
    rows = _BLOCK // columns
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """The first value of a tag of a TIFF file; the default for images of any other origin."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value
