"""transformers' models of one tower, made of the families of both: CLIPVisionModel, SiglipTextModel and their like.

Their config.json is a section of the whole model's, and their tensors are those of the whole model, with or without the
name of the tower in front. The other tower of our model is absent (clipjax.models.towers.absent), and with it the
temperature.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clipjax.config import DecoderConfig, ImageTowerConfig, ModelConfig, PixelConfig, TextTowerConfig, TokenizerConfig
from clipjax.interop import hf_pixels
from clipjax.interop.names import Description, Family, Meaning, Tensor, config_of
from clipjax.models.towers.absent import NoImageConfig, NoTextConfig

SECTION = {"image": "vision_config", "text": "text_config"}
KIND = {"image": "vision", "text": "text"}
PROJECTION = {"image": "visual_projection", "text": "text_projection"}
OTHER = {"image": "text", "text": "image"}
ONE = tuple(OTHER)
ABSENT = {"image": NoImageConfig, "text": NoTextConfig}


def one_tower(family: Family, side: str, *kinds: str, projects: bool) -> Family:
    """The family of a directory that has one tower of `family`'s models: `side` is "image" or "text".

    Files of the whole model are read too, where the user names the family.

    kinds: model_type of the whole models. projects: whether transformers has the tower with and without a projection,
    as two models (CLIP). Without, the embedding is the pooled state, transformers' pooler_output.
    """
    other, top, ends = OTHER[side], f"{KIND[side]}_model.", f"_{KIND[side]}_model"

    def tensors(model: ModelConfig) -> list[Tensor]:
        own = [row for row in family.tensors(whole(model, family)) if row.ours.startswith(f"{side}/")]
        left_out = () if has_projection(getattr(model, side)) else (f"{side}/projection/",)
        return [row for row in own if not row.ours.startswith(left_out)]

    def matches(description: Description) -> bool:
        kind = description.files.get("config.json", {}).get("model_type", "")
        return str(kind).removesuffix(ends) in kinds and str(kind).endswith(ends)

    def read(description: Description) -> Meaning:
        config = config_of(description, "config.json")
        config = {name: value for name, value in config.items() if not name.startswith(SECTION[other])}
        section = config.get(SECTION[side], {})
        if config.get("model_type") not in kinds:  # the section alone, and not a whole model to take one tower of
            kind, section = str(config.get("model_type")).removesuffix(ends), config
            config = {"model_type": kind, SECTION[side]: section, "projection_dim": section.get("projection_dim", 512)}
        files = {**description.files, "config.json": config}
        if side == "text":  # nothing is said of pixels, and nothing is to be warned of
            files = {name: files[name] for name in files if name != hf_pixels.NESTED} | {hf_pixels.LEGACY: {}}
        meaning = family.read(description._replace(files=files))
        tower, embed_dim = getattr(meaning.model, side), meaning.model.embed_dim
        if not projects:
            embed_dim = section.get("projection_size") or tower.width
        elif not any(name.endswith(f"{PROJECTION[side]}.weight") for name in description.shapes):
            tower, embed_dim = without_projection(tower), tower.width
        model = replace(meaning.model, embed_dim=embed_dim, **{side: tower, other: ABSENT[other]()})
        if side == "image":
            return Meaning(model, meaning.pixels)
        return Meaning(model, PixelConfig(), meaning.tokenizer)

    def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
        return family.read_pixels(description, model) if side == "image" else PixelConfig()

    def write(meaning: Meaning) -> dict[str, Any]:
        tower = getattr(meaning.model, side)
        files = family.write(meaning._replace(model=whole(meaning.model, family)))
        config = files["config.json"]
        name = config["architectures"][0].removesuffix("Model") + f"{KIND[side].capitalize()}Model"
        projected = "WithProjection" * (projects and has_projection(tower))
        section = {"architectures": [name + projected], "dtype": config["dtype"]}
        files = files | {"config.json": section | config[SECTION[side]]}
        return files if side == "image" else {"config.json": files["config.json"]}

    def renamed(name: str) -> str:
        tops = (*(f"{each}_model." for each in KIND.values()), *PROJECTION.values(), "logit_")
        return name if name.startswith(tops) else top + name

    return Family(
        tensors,
        matches,
        read,
        format=family.format,
        write=write,
        image=family.image if side == "image" else NoImageConfig,
        text=family.text if side == "text" else NoTextConfig,
        # transformers, too, leaves out what a file has beside the tower
        ignored=rf"{family.ignored}|{KIND[other]}_model\..*|{PROJECTION[other]}\..*|logit_.*",
        renamed=renamed,
        pixels=family.pixels if side == "image" else PixelConfig(),
        read_pixels=read_pixels,
    )


def whole(model: ModelConfig, family: Family) -> ModelConfig:
    """A model of one tower with any tower of the family in place of the other, whose name and tensors do not matter."""
    absent = {side: row for side, row in ABSENT.items() if isinstance(getattr(model, side), row)}
    return replace(model, **{side: getattr(family, side)() for side in absent})


def alone(meaning: Meaning, side: str) -> Meaning:
    """A model's one tower, as a model without the other and without a captioner, which reads both."""
    other = OTHER[side]
    model = replace(meaning.model, decoder=DecoderConfig(), **{other: ABSENT[other]()})
    if side == "image":
        return Meaning(model, meaning.pixels, TokenizerConfig())
    return Meaning(model, PixelConfig(), meaning.tokenizer)


def of_both_towers(family: str) -> str:
    """The name of the family whose tower a family of one tower has: "hf_clip" of "hf_clip_text"."""
    name, _, side = family.rpartition("_")
    return name if family.startswith("hf_") and side in ONE else family


def has_projection(tower: ImageTowerConfig | TextTowerConfig) -> bool:
    """Whether the tower's last step is a map to the embedding."""
    return tower.projection not in (False, "none")


def without_projection(tower: ImageTowerConfig | TextTowerConfig) -> Any:
    """The tower with its pooled state as the embedding."""
    return replace(tower, projection=False if isinstance(tower, ImageTowerConfig) else "none")
