"""What OpenCLIP's configurations share that name a trunk of timm's: the name gives all but the dropouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from clipjax.interop.config_files import OPEN_CLIP, timm_name
from clipjax.interop.json_fields import square
from clipjax.interop.names import Description, InteropError

T = TypeVar("T")
WHERE = f"{OPEN_CLIP}: vision_cfg"


def named(description: Description) -> str:
    """timm's name of the image tower; "" without one, and beside a text tower from the hub (open_clip_bert.py)."""
    model = description.files.get(OPEN_CLIP, {}).get("model_cfg", {})
    return "" if model.get("text_cfg", {}).get("hf_model_name") else timm_name(model.get("vision_cfg", {}))


def known(vision: Mapping[str, Any], trunks: Mapping[str, T]) -> T:
    """The trunk that vision_cfg names. Raises InteropError for a name that trunks lack, KeyError without a name."""
    name = timm_name(vision) or vision["timm_model_name"]
    if name not in trunks:
        raise InteropError(f"{WHERE}.timm_model_name='{name}' is unknown. Known: {', '.join(trunks)}.")
    return trunks[name]


def with_dropouts(image: T, vision: Mapping[str, Any]) -> T:
    """The tower of the trunk that vision_cfg names, with its dropouts. Raises InteropError for another image size."""
    check_image_size(vision, image.image_size)
    return replace(image, patch_dropout=vision.get("patch_dropout", 0.0), drop_path=drop_path(vision))


def check_image_size(vision: Mapping[str, Any], expected: int) -> None:
    """Raises InteropError where vision_cfg has another image size, in pixels, than the trunk that it names."""
    size = vision.get("image_size", 224)
    if square(size, f"{WHERE}.image_size") != expected:
        raise InteropError(f"{WHERE}.image_size={size!r}; {timm_name(vision)} takes images of {expected}.")


def drop_path(vision: Mapping[str, Any]) -> float:
    """The rate of vision_cfg's timm_drop_path."""
    return float(vision.get("timm_drop_path") or 0.0)


def write(name: str, image: Any, **head: Any) -> dict[str, Any]:
    """vision_cfg of a tower; name: timm's; head: timm_pool and timm_proj. Dropouts are left out where they are 0."""
    dropouts = dict(timm_drop_path=image.drop_path, patch_dropout=getattr(image, "patch_dropout", 0.0))
    vision = dict(image_size=image.image_size, timm_model_name=name, timm_model_pretrained=False)
    return vision | head | {field: rate for field, rate in dropouts.items() if rate}
