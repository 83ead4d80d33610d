"""Encoded images -> the pixels, or the patches, that a tower sees.

formats.py      which files are images: IMAGE_SUFFIXES, FORMATS
decode.py       a file, or Pillow's image -> upright RGB, with limits that untrusted files cannot pass
modes.py        an image of any of Pillow's modes -> RGB
png.py          the checksums of a PNG
jpeg.py         training's fast path for JPEGs
resize.py       RGB -> a square, by each family's rules
transforms.py   bytes -> a square, for training and evaluation
naflex.py       bytes -> patches at the image's own aspect ratio
presets.py      PIXEL_PRESETS: the rules of each family
"""

from clipjax.data.images.decode import MAX_PIXELS, Picture, open_image
from clipjax.data.images.formats import FORMATS, IMAGE_SUFFIXES
from clipjax.data.images.jpeg import choose_decoder
from clipjax.data.images.naflex import eval_patches, from_patches, train_patches
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.data.images.resize import to_square
from clipjax.data.images.transforms import check_augment, check_pixels, eval_image, train_image

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "PIXEL_PRESETS",
    "check_augment",
    "Picture",
    "check_pixels",
    "choose_decoder",
    "eval_image",
    "eval_patches",
    "from_patches",
    "open_image",
    "to_square",
    "train_image",
    "train_patches",
]
