"""Prompt templates for zero-shot classification; "{}" or "{c}" stands for the class name.

    from clipjax.eval.prompts import TEMPLATES, read_templates
    ZeroShotConfig(source=..., templates=TEMPLATES["clip_imagenet_7"])
    ZeroShotConfig(source=..., templates=read_templates("zeroshot_classification_templates.txt"))

A configuration holds the templates themselves, so that results keep saying which prompts were used when this table or a
file changes. clipjax.eval.prompt_files says which files are read.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipjax.config import ConfigError, require
from clipjax.data.templates import TemplateError, pieces_of
from clipjax.eval.prompt_files import (
    prompts_of_classes,
    read_class_names,
    read_class_prompts,
    read_templates,
    read_translated_classes,
)

__all__ = [
    "TEMPLATES",
    "fill",
    "prompts_of_classes",
    "read_class_names",
    "read_class_prompts",
    "read_templates",
    "read_translated_classes",
]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    # Radford et al. (2103.00020), section 3.1.4.
    "photo": ("a photo of a {}.",),
    # Seven templates that together do as well as the eighty of OpenAI's Prompt_Engineering_for_ImageNet notebook
    # (github.com/openai/CLIP, MIT), according to that notebook.
    "clip_imagenet_7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    # clipjax's own: one prompt for each common way of depicting something.
    "media": ("{}", "a photo of {}.", "a drawing of {}.", "an icon of {}.", "a close-up of {}."),
    # clipjax's own, in the spirit of OpenAI's eighty, none of which is among them: how a picture was taken, what it is
    # made of, how much of the thing it shows, where the thing is.
    "clipjax_80": (
        "a photograph of a {}.", "a snapshot of a {}.", "a photo showing a {}.", "a picture of one {}.",
        "a picture of two {}.", "a picture of a group of {}.", "an ordinary {}.", "a typical {}.",
        "a photo taken with a phone of a {}.", "a professional photo of a {}.", "an amateur photo of a {}.",
        "a stock photo of a {}.", "a product photo of a {}.", "a web page's picture of a {}.",
        "a photo of a {} for a catalogue.", "a photo of a {} from an encyclopedia.",
        "a sharp photo of a {}.", "an out-of-focus photo of a {}.", "a noisy photo of a {}.", "a faded photo of a {}.",
        "an overexposed photo of a {}.", "an underexposed photo of a {}.", "a tilted photo of a {}.",
        "a compressed picture of a {}.", "a thumbnail of a {}.", "a screenshot of a {}.",
        "a photo of a {} from above.", "a photo of a {} from below.", "a photo of a {} from the side.",
        "a photo of a {} from behind.", "a photo of a {} from the front.", "a photo of a {} far away.",
        "a photo of a {} near the camera.", "a photo of part of a {}.", "a photo of a whole {}.",
        "a photo of a {} at the edge of the picture.", "a photo of a {} in the middle of the picture.",
        "a photo of a {} partly hidden.", "a photo of a {} behind a fence.", "a photo of a {} in the foreground.",
        "a photo of a {} in the background.", "a photo of a {} in a crowd.", "a photo of a {} beside a person.",
        "a photo of a {} indoors.", "a photo of a {} outdoors.", "a photo of a {} in a room.",
        "a photo of a {} on a table.", "a photo of a {} on the street.", "a photo of a {} in a field.",
        "a photo of a {} near water.", "a photo of a {} in the snow.", "a photo of a {} in the rain.",
        "a photo of a {} at night.", "a photo of a {} in sunshine.", "a photo of a {} on a white background.",
        "a photo of a {} on a dark background.", "an old {}.", "a new {}.", "a huge {}.", "a tiny {}.",
        "a colourful {}.", "a grey {}.", "a photo of a real {}.", "a photo of a broken or odd {}.",
        "a pencil drawing of a {}.", "a watercolour of a {}.", "an oil painting of a {}.", "an ink drawing of a {}.",
        "a child's drawing of a {}.", "a comic picture of a {}.", "an icon of a {}.", "a logo with a {}.",
        "a poster with a {}.", "a stamp with a {}.", "a statue of a {}.", "a carving of a {}.", "a model of a {}.",
        "a paper {}.", "a knitted {}.", "a computer picture of a {}.",
    ),
}  # fmt: skip


def fill(templates: Sequence[str], names: Sequence[str]) -> list[str]:
    """Every name in every template: all templates with the first name, then with the second, ...

    The place for the name is "{}", other braces being kept, or CLIP_benchmark's "{c}", "{{" and "}}" then being single
    braces as in Python's format. Raises ConfigError for no templates, one without a place, and one with both.
    """
    require(len(templates) > 0, "An evaluator's templates are empty; use ('{}',) for the bare class name.")
    try:
        pieces = [pieces_of(template) for template in templates]
    except TemplateError as error:
        raise ConfigError(str(error)) from error
    return [name.join(texts) for name in names for texts in pieces]
