"""What is said about files that no family reads: what was found in them, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.interop.config_files import OPEN_CLIP, TRANSFORMERS, timm_name
from clipjax.interop.names import Description, beginnings

# How the names of a tower begin, in any of the formats.
IMAGE = ("visual.", "vision_model.", "vision_encoder.", "image_encoder.", "img/", "params/img/")
TEXT = ("text_model.", "text_encoder.", "text.", "transformer.", "token_embedding.", "bert.", "txt/", "params/txt/")
SEEN = "docs/interop.md lists what clipjax reads."


def unrecognised(description: Description) -> str:
    """One line about files that no family reads."""
    model = description.files.get(OPEN_CLIP, {}).get("model_cfg", {})
    if model:
        return f"The weights look like none of the families: {_open_clip(model, description)}. {SEEN}"
    config = description.files.get(TRANSFORMERS, {})
    one = _one_tower(description.shapes)
    if kind := config.get("model_type"):
        of = f", of which these weights are {one}" if one else ""
        return f"The weights look like none of the families: {TRANSFORMERS} says model_type={kind!r}{of}. {SEEN}"
    if one:
        return f"The weights are {one}: their names begin with {beginnings(description.shapes)}. {SEEN}"
    if any(name in description.shapes for name in ("visual.proj", "visual.class_embedding", "visual.conv1.weight")):
        return (
            f"The weights have the names of OpenAI's and OpenCLIP's models, and there is no {OPEN_CLIP} beside them, "
            "which says what they compute. If they are OpenAI's, or were trained with QuickGELU, read them with "
            "--family=openai; if they are OpenCLIP's, with --family=open_clip --preset=NAME, or add its file."
        )
    if any(name.startswith(("vision_model.", "text_model.")) for name in description.shapes):
        return (
            f"The weights have the names of transformers' models, and there is no {TRANSFORMERS} with a model_type "
            "beside them. Add it, or name the family and the model, such as --family=hf_clip --preset=clip_vit_b32."
        )
    some = ", ".join(list(description.shapes)[:5])
    return (
        "The weights look like none of the families: their tensors' names begin with "
        f"{beginnings(description.shapes)}, such as {some}. {SEEN} If they are one of these, name it with --family."
    )


def _open_clip(model: Mapping[str, Any], description: Description) -> str:
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    if not any(name.startswith(IMAGE) for name in description.shapes):
        return f"{OPEN_CLIP} describes two towers, and the weights have no image tower (visual.*)"
    if timm_name(vision):
        found = f"{OPEN_CLIP} says vision_cfg.timm_model_name={vision['timm_model_name']!r}"
        return f"{found}, an image tower that clipjax does not have"
    if "hf_model_name" in text:
        return f"{OPEN_CLIP} says text_cfg.hf_model_name={text['hf_model_name']!r}"
    return f"{OPEN_CLIP} describes OpenCLIP's own towers, and the tensors begin with {beginnings(description.shapes)}"


def _one_tower(shapes: Mapping[str, Any]) -> str:
    """'one tower only, of texts', or '' where both towers, or neither, have tensors."""
    starts = {"images": IMAGE, "texts": TEXT}
    towers = [kind for kind, own in starts.items() if any(name.startswith(own) for name in shapes)]
    return f"one tower only, of {towers[0]}" if len(towers) == 1 else ""
