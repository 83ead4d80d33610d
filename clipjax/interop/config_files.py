"""The JSON files beside weights, brought into the form that families read: objects, with sections that are objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config.errors import shown
from clipjax.interop.names import InteropError

OPEN_CLIP, TRANSFORMERS = "open_clip_config.json", "config.json"
# Files that families read -> their sections, each an object or absent.
SECTIONS: dict[str, tuple[str, ...]] = {
    OPEN_CLIP: ("model_cfg", "preprocess_cfg"),
    TRANSFORMERS: ("text_config", "vision_config", "text_config_dict", "vision_config_dict"),
}
MODEL_SECTIONS = ("vision_cfg", "text_cfg", "multimodal_cfg")  # of model_cfg


def read_sections(files: Mapping[str, Any]) -> dict[str, Any]:
    """name -> content of the JSON files beside weights, for Description.files.

    A file of OpenCLIP's may be its model_cfg alone, as in its own list of models. A section that is null is left out.
    Raises InteropError for a section that is not an object.
    """
    read = dict(files)
    for name, sections in SECTIONS.items():
        if name not in read:
            continue
        content = read[name]
        if name == OPEN_CLIP and "model_cfg" not in content and content.keys() & {"vision_cfg", "text_cfg"}:
            content = {"model_cfg": content}
        content = _with_objects(content, sections, name)
        if name == OPEN_CLIP and "model_cfg" in content:
            model = _with_objects(content["model_cfg"], MODEL_SECTIONS, f"{name}: model_cfg")
            content = {**content, "model_cfg": model}
        read[name] = content
    return read


def timm_name(vision: Mapping[str, Any]) -> str:
    """vision_cfg's timm_model_name without what names weights and not a model: "timm/", "hf-hub:", and a tag.

    "hf-hub:timm/vit_base_patch16_siglip_224.webli" is "vit_base_patch16_siglip_224". "" where there is none. Raises
    InteropError where it is not a string.
    """
    name = vision.get("timm_model_name") or ""
    if not isinstance(name, str):
        raise InteropError(f"{OPEN_CLIP}: vision_cfg.timm_model_name={name!r}; expected the name of a model of timm's.")
    for prefix in ("hf-hub:", "hf_hub:", "timm/"):
        name = name.removeprefix(prefix)
    return name.partition(".")[0]


def _with_objects(content: Mapping[str, Any], sections: tuple[str, ...], where: str) -> dict[str, Any]:
    present = {name: value for name, value in content.items() if not (name in sections and value is None)}
    return {n: _object(value, f"{where}: {n}") if n in sections else value for n, value in present.items()}


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InteropError(f"{where} is {shown(value)}; expected an object of fields and values.")
    return value
