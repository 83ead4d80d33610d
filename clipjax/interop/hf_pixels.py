"""transformers' image processors <-> config.data.pixels.

transformers 5 writes processor_config.json, with the image processor under "image_processor"; older versions write
preprocessor_config.json. Where both are there, it reads the former, and so does this module. A field that is missing
or null has the default of its class. From transformers image_processing_backends.py and
models/{clip,siglip,siglip2,vit,efficientnet}/image_processing_*.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging

from clipjax.config import ModelConfig, PixelConfig
from clipjax.config.errors import shown
from clipjax.data.images.presets import CLIP_STATISTICS
from clipjax.interop.json_fields import refuse_unknown, square, three_numbers, whole_number
from clipjax.interop.names import Description, InteropError

NESTED, LEGACY = "processor_config.json", "preprocessor_config.json"
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers for a resize filter, as processors store them

BASE = dict(
    do_resize=True, do_center_crop=False, do_rescale=True, do_normalize=True, do_convert_rgb=True, do_pad=False,
    size=None, crop_size=None, default_to_square=False, resample=3, rescale_factor=1 / 255,
    image_mean=[0.5] * 3, image_std=[0.5] * 3,
)  # fmt: skip
CLIP = {"image_mean": list(CLIP_STATISTICS["mean"]), "image_std": list(CLIP_STATISTICS["std"])}
# Class of an image processor -> its fields that decide pixels, at transformers' defaults.
CLASSES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": BASE
    | CLIP
    | dict(size={"shortest_edge": 224}, crop_size=224, do_center_crop=True, use_square_size=False),
    "ChineseCLIPImageProcessor": BASE | CLIP | dict(size={"shortest_edge": 224}, crop_size=224, do_center_crop=True),
    "SiglipImageProcessor": BASE | dict(size={"height": 224, "width": 224}),
    "Siglip2ImageProcessor": BASE | dict(resample=2, patch_size=16, max_num_patches=256),
    "ViTImageProcessor": BASE | dict(size={"height": 224, "width": 224}, resample=2, default_to_square=True),
    "EfficientNetImageProcessor": BASE
    | dict(size=346, crop_size=289, default_to_square=True, rescale_offset=False, include_top=True),
}
PATCHES = "Siglip2ImageProcessor"  # cuts an image of any shape into patches; the others make squares
# Fields without an effect on pixels: who wrote the file, and how a call returns its result.
HARMLESS = {
    "_auto_class", "_name_or_path", "_processor_class", "_valid_kwargs_names", "_valid_processor_keys", "auto_map",
    "data_format", "device", "disable_grouping", "feature_extractor_type", "image_processor_type", "image_seq_length",
    "input_data_format", "model_input_names", "pad_size", "processor_class", "return_tensors", "tokenizer_class",
    "transformers_version", "use_fast",
}  # fmt: skip


class Processor(NamedTuple):
    """An image processor as its file describes it."""

    kind: str  # a row of CLASSES
    fields: dict[str, Any]  # all fields of its class
    where: str  # for messages: the file, and a prefix of its fields


def read_processor(description: Description, kind: str) -> Processor | None:
    """The image processor of a directory, None where it has none; kind: its class where the file does not name it.

    Raises InteropError for another class, an unknown field, and a step that is left out or added.
    """
    found = _described(description)
    if found is None:
        logging.warning(
            "There is neither %s nor %s beside the weights: images are prepared as %s does by default.",
            NESTED, LEGACY, kind,
        )  # fmt: skip
        return None
    config, where = found
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type") or kind)
    kind = named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in CLASSES:
        raise InteropError(f"{where}image_processor_type='{named}' is not supported. Known: {', '.join(CLASSES)}.")
    refuse_unknown(config, CLASSES[kind].keys() | HARMLESS, where.rstrip(" .:"))
    given = {name: value for name, value in config.items() if name in CLASSES[kind] and value is not None}
    fields = CLASSES[kind] | given
    for name, value in fields.items():
        if (name.startswith("do_") or isinstance(CLASSES[kind][name], bool)) and not isinstance(value, bool):
            raise InteropError(f"{where}{name}={shown(value)} is not supported; expected true or false.")
    for name, value in dict(do_resize=True, do_pad=False, use_square_size=False).items():
        if fields.get(name, value) != value:
            raise InteropError(f"{where}{name}={shown(fields[name])} is not supported; expected {shown(value)}.")
    return Processor(kind, fields, where)


def read_square(processor: Processor, image_size: int) -> PixelConfig:
    """How a processor that makes squares prepares images for a tower of image_size.

    Raises InteropError where its result is not a square of that size, or is filled up with black.
    """
    fields, where = processor.fields, processor.where
    if processor.kind == PATCHES:
        raise InteropError(f"{where}image_processor_type='{PATCHES}' makes patches; this model reads squares.")
    shortest, side = _scaled(fields, where)
    size = f"{where}size={shown(fields['size'])}"
    pixels = PixelConfig(**_interpolation(processor), **statistics(processor))
    if not fields["do_center_crop"]:
        if shortest:
            raise InteropError(
                f"{where}do_center_crop=False with size={shown(fields['size'])} leaves images of different shapes, "
                "which is not supported; expected do_center_crop=True, or a size of height and width."
            )
        if side != image_size:
            raise InteropError(f"{size} is not supported; the model's image_size is {image_size}, and nothing is cut.")
        return pixels
    crop = crop_side(processor)
    if crop != image_size:
        raise InteropError(
            f"{where}crop_size={shown(fields['crop_size'])} is not supported; the model's image_size is {image_size}."
        )
    if side < crop:
        raise InteropError(
            f"{size} is smaller than crop_size={shown(fields['crop_size'])}, so transformers adds a black border, "
            "which is not supported; expected at least crop_size."
        )
    scale_to = 0 if side == crop else side
    if shortest:
        return _changed(pixels, resize="center_crop", center="floor", scale_to=scale_to)
    return _changed(pixels, center="floor", scale_to=scale_to) if scale_to else pixels


def read_patches(processor: Processor, patch_size: int) -> tuple[PixelConfig, int]:
    """(pixels, largest number of patches) of a processor that makes patches. Raises InteropError for another one."""
    fields, where = processor.fields, processor.where
    if processor.kind != PATCHES:
        raise InteropError(
            f"{where}image_processor_type='{processor.kind}' makes squares; this model reads patches. "
            f"Expected '{PATCHES}'."
        )
    if square(fields["patch_size"], f"{where}patch_size") != patch_size:
        raise InteropError(
            f"{where}patch_size={shown(fields['patch_size'])} is not supported; the model's patch_size is {patch_size}."
        )
    budget = whole_number(fields["max_num_patches"], f"{where}max_num_patches")
    return PixelConfig(**_interpolation(processor), **statistics(processor)), budget


def output_side(processor: Processor) -> int:
    """The size of the squares that a processor makes, for towers whose own configuration does not decide it."""
    return crop_side(processor) if processor.fields["do_center_crop"] else _scaled(processor.fields, processor.where)[1]


def crop_side(processor: Processor) -> int:
    """crop_size as one number. Raises InteropError unless it is a square."""
    return _square_of(processor.fields["crop_size"], f"{processor.where}crop_size")


def statistics(processor: Processor) -> dict[str, tuple[float, ...]]:
    """mean and std of config.data.pixels, which normalise levels divided by 255.

    A processor multiplies a level by rescale_factor, may subtract 1 (rescale_offset), normalises by image_mean and
    image_std, and may divide by image_std (include_top). Raises InteropError for values that are not numbers.
    """
    fields, where = processor.fields, processor.where
    mean, std = (three_numbers(fields[name], f"{where}{name}") for name in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise InteropError(
            f"{where}image_std={shown(fields['image_std'])} is not supported; expected positive numbers."
        )
    last = std if fields.get("include_top") else (1.0,) * 3
    if not fields["do_normalize"]:
        mean, std = (0.0,) * 3, (1.0,) * 3
    factor = three_numbers(fields["rescale_factor"], f"{where}rescale_factor")[0]
    if not (factor > 0 and math.isfinite(255 * factor)):
        raise InteropError(f"{where}rescale_factor={shown(factor)} is not supported; expected a positive number.")
    scale, offset = 255.0, 0.0
    if fields["do_rescale"]:
        scale, offset = 255 * factor, float(fields.get("rescale_offset", False))
    if math.isclose(scale, round(scale), rel_tol=1e-6):  # 1/255 and 1/127.5 as they are written in decimals
        scale = float(round(scale))
    return dict(
        mean=tuple((m + offset) / scale for m in mean),
        std=tuple(s * t / scale for s, t in zip(std, last, strict=True)),
    )


def write_square(kind: str, pixels: PixelConfig, image_size: int) -> dict[str, Any]:
    """The content of preprocessor_config.json; kind: the processor's class, a row of CLASSES.

    What it cannot express is noticed when it is read back (clipjax.interop.export).
    """
    side = {"height": image_size, "width": image_size}
    scale_to = pixels.scale_to or image_size
    shortest = pixels.resize == "center_crop"
    crops = shortest or scale_to != image_size
    return {
        **_written(kind, pixels),
        "size": {"shortest_edge": scale_to} if shortest else {"height": scale_to, "width": scale_to},
        "do_center_crop": crops,
        **({"crop_size": side} if crops else {}),
    }


def write_patches(pixels: PixelConfig, patch_size: int, max_patches: int) -> dict[str, Any]:
    """The content of preprocessor_config.json for images of any shape."""
    return {**_written(PATCHES, pixels), "patch_size": patch_size, "max_num_patches": max_patches}


def pixels_of(description: Description, model: ModelConfig, kind: str, default: PixelConfig) -> PixelConfig:
    """What the directory's processor makes for a tower of squares; default: for a directory without a processor."""
    processor = read_processor(description, kind)
    return read_square(processor, model.image.image_size) if processor else default


def _described(description: Description) -> tuple[Mapping[str, Any], str] | None:
    """(fields, prefix of their names in messages) of the image processor; None where no file has one."""
    nested = description.files.get(NESTED, {})
    refuse_unknown(nested, {"image_processor", *HARMLESS}, NESTED)
    if nested.get("image_processor") is not None:
        config, where = nested["image_processor"], f"{NESTED}: image_processor"
        refuse_unknown(config, config, where)  # which refuses what is not an object
        return config, f"{where}."
    if LEGACY not in description.files:
        return None
    refuse_unknown(description.files[LEGACY], description.files[LEGACY], LEGACY)
    return description.files[LEGACY], f"{LEGACY}: "


def _scaled(fields: Mapping[str, Any], where: str) -> tuple[bool, int]:
    """size -> (whether only the shorter side is given, its length). Raises InteropError for other kinds of size."""
    size, where = fields["size"], f"{where}size"
    if isinstance(size, (int, float)) and not isinstance(size, bool) and not fields["default_to_square"]:
        return True, whole_number(size, where)
    if isinstance(size, Mapping) and _given(size).keys() == {"shortest_edge"}:
        return True, whole_number(size["shortest_edge"], f"{where}.shortest_edge")
    return False, _square_of(size, where)


def _square_of(size: Any, where: str) -> int:
    if isinstance(size, Mapping):
        if _given(size).keys() != {"height", "width"}:
            raise InteropError(f"{where}={shown(size)} is not supported; expected height and width that are equal.")
        if size["height"] != size["width"]:
            raise InteropError(f"{where}={shown(size)} is not supported; expected a square.")
        return whole_number(size["height"], f"{where}.height")
    return square(size, where)


def _given(size: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in size.items() if value is not None}


def _interpolation(processor: Processor) -> dict[str, str]:
    resample = processor.fields["resample"]
    if type(resample) is not int or resample not in RESAMPLE:
        known = ", ".join(f"{number} ({name})" for number, name in RESAMPLE.items())
        raise InteropError(f"{processor.where}resample={shown(resample)} is not supported. Known: {known}.")
    return {"interpolation": RESAMPLE[resample]}


def _changed(pixels: PixelConfig, **changes: Any) -> PixelConfig:
    return PixelConfig(**vars(pixels) | changes)


def _written(kind: str, pixels: PixelConfig) -> dict[str, Any]:
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": {name: number for number, name in RESAMPLE.items()}[pixels.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }
