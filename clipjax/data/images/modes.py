"""An image of any of Pillow's modes -> RGB of 8 bits. The same for files and for images in memory."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipjax.data.records import RecordError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
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
        return _grey(image, alpha).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if alpha == "white" and image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, alpha: str) -> Image.Image:
    values, bits = np.asarray(image), _tag(image, _BITS_PER_SAMPLE, 0)
    if image.mode == "F":
        top = _top_of_floats(values)
    elif image.mode.startswith("I;16"):
        top = 4095 if bits == 12 else 65535
    else:
        unsigned = bits == 32 and _tag(image, _SAMPLE_FORMAT, 0) == 1
        values = values.view(np.uint32) if unsigned else values  # Pillow wraps the upper half around to negatives
        top = _top_of_integers(values, (32767,) if bits == 16 else (255, 65535, np.iinfo(values.dtype).max))
    grey = np.uint8(np.clip(values / np.float64(top / 255), 0, 255) + 0.5)
    if _tag(image, _PHOTOMETRIC, 1) == 0:  # WhiteIsZero, which Pillow undoes for 8 bits only
        grey = 255 - grey
    key = image.info.get("transparency")
    if alpha == "white" and isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey)


def _top_of_integers(values: np.ndarray, tops: tuple[int, ...]) -> int:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise RecordError(
            "pixels of unknown range", f"signed integers from {low} to {high}; an image has none below zero"
        )
    return next(top for top in tops if high <= top)


def _top_of_floats(values: np.ndarray) -> int:
    low, high = float(values.min()), float(values.max())
    # The largest of an image of 0 to 255 is far above 1, unless all of it is black; NaN fails every comparison.
    for top, least in ((1, 0), (255, 16)):
        if -_SLACK * top / 255 <= low and least <= high <= top + _SLACK * top / 255:
            return top
    raise RecordError(
        "pixels of unknown range",
        f"floating-point numbers from {low:g} to {high:g}; expected 0 to 1, or 0 to 255",
    )


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """The first value of a tag of a TIFF file; the default for images of any other origin."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value
