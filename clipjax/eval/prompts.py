"""Prompt templates for zero-shot classification; "{}" stands for the class name.

    from clipjax.eval.prompts import TEMPLATES
    ZeroShotConfig(source=..., templates=TEMPLATES["clip_imagenet_7"])

A configuration holds the templates themselves, so that results keep saying which prompts were used when this table
changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipjax.config import require

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
}


def fill(templates: Sequence[str], names: Sequence[str]) -> list[str]:
    """Every name in every template: all templates with the first name, then with the second, ...

    Braces other than "{}" are kept. Raises ConfigError for no templates, or one without "{}".
    """
    require(len(templates) > 0, "An evaluator's templates are empty; use ('{}',) for the bare class name.")
    for template in templates:
        require(
            "{}" in template,
            f"Template '{template}' has no {{}} for the class name; every class would get the same prompt.",
        )
    return [template.replace("{}", name) for name in names for template in templates]
