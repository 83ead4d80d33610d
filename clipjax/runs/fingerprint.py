"""The fingerprint: the settings that must agree between those who made weights and those who use them.

A wrong setting raises no shape error but silently costs accuracy: another vocabulary, another EOS rule, QuickGELU
instead of GELU, another range of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config import ExperimentConfig, declared, differences, flat
from clipjax.config.errors import shown
from clipjax.training.recorded import without_later_defaults

# Sections whose fields of role "weights" or "meaning" are recorded, and the prefix of their names in the fingerprint.
SECTIONS = {"model.image.": "image.", "model.text.": "text.", "data.pixels.": "pixels."}


class FingerprintError(ValueError):
    """Weights and the settings to use them with disagree."""


def fingerprint(config: ExperimentConfig, tokenizer: Any) -> dict[str, Any]:
    """Everything that decides what weights mean (tokenizer, towers, pixel transform), as a JSON-able dict.

    tokenizer: what clipjax.data.tokenizers.make_tokenizer returns for config.tokenizer.
    """
    facts = {name: getattr(tokenizer, name) for name in ("sha256", "vocab_size", "pad_id", "eos_id")}
    rules = {name: value for name, value in flat(tokenizer.config).items() if name != "path"}
    return {f"tokenizer.{name}": value for name, value in (rules | facts).items()} | _of_model(config)


def completed(stored: Mapping[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """A checkpoint's fingerprint with the fields that clipjax did not have yet when it was written.

    config: the checkpoint's, in which such fields have their defaults: what was computed before there was a choice.
    """
    later = _of_model(config)
    if any(name.startswith("tokenizer.") for name in stored):
        later |= {f"tokenizer.{name}": value for name, value in flat(config.tokenizer).items() if name != "path"}
    return later | dict(stored)


def _of_model(config: ExperimentConfig) -> dict[str, Any]:
    """The entries of SECTIONS."""
    entries: dict[str, Any] = {}
    roles, values = declared(config), flat(config)
    for section, prefix in SECTIONS.items():
        entries |= {
            prefix + name.removeprefix(section): value
            for name, value in values.items()
            if name.startswith(section) and roles[name].role in ("weights", "meaning")
        }
    return entries


def check_fingerprint(stored: Mapping[str, Any], expected: Mapping[str, Any], *, where: str) -> None:
    """Raises FingerprintError listing every entry in which a checkpoint differs from the configuration.

    An option that was added after the checkpoint was written makes no difference at its default. stored: the
    checkpoint's fingerprint; expected: the configuration's; where: names the checkpoint in the message.
    """
    expected = without_later_defaults(expected, stored)
    if not any(name.startswith("tokenizer.") for name in stored):  # weights that came without a tokenizer
        expected = {name: value for name, value in expected.items() if not name.startswith("tokenizer.")}
    lines = [
        f"  {_field(name)}: checkpoint {shown(stored.get(name, 'not recorded'))}, "
        f"configuration {shown(expected.get(name, 'not set'))}"
        for name in differences(stored, expected)
    ]
    if lines:
        raise FingerprintError(
            f"{where} was trained with settings that change what its weights mean:\n"
            + "\n".join(lines)
            + "\nUse the checkpoint's own settings (clipjax eval has them without --config), or a new --workdir."
        )


def _field(name: str) -> str:
    """The field of the configuration that an entry records; facts of the tokenizer's file have none."""
    prefix = name.partition(".")[0] + "."
    section = next((section for section, own in SECTIONS.items() if own == prefix), None)
    return name if section is None else f"config.{section}{name.removeprefix(prefix)}"


def to_train_on(entries: Mapping[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """The entries of a fingerprint that must agree when training starts from other weights (config.init_from).

    Shapes are left out, because they are compared separately, and so are fields declared `converted`: init_from
    converts the weights to the new setting, or training adapts to it.
    """
    roles = declared(config)
    names = {prefix: section for section, prefix in SECTIONS.items()}

    def counts(name: str) -> bool:
        prefix = name.partition(".")[0] + "."
        declaration = roles.get(names.get(prefix, prefix) + name.removeprefix(prefix))
        return declaration is None or (declaration.role == "meaning" and not declaration.converted)

    return {name: value for name, value in entries.items() if counts(name)}
