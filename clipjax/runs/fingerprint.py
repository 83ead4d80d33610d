"""What two parties must agree on before weights mean the same thing.

None of these raises a shape error when it is wrong; each costs accuracy in silence (another vocabulary, another EOS
rule, QuickGELU instead of GELU, another pixel range).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config import ExperimentConfig, declared, differences, flat

# Sections whose fields of role "weights" or "meaning" are recorded, and what their names begin with here.
SECTIONS = {"model.image.": "image.", "model.text.": "text.", "data.pixels.": "pixels."}


class FingerprintError(ValueError):
    """Weights and the settings they are to be used with disagree."""


def fingerprint(config: ExperimentConfig, tokenizer: Any) -> dict[str, Any]:
    """JSON-able dict of everything that decides what weights mean: tokenizer, towers, pixel transform.

    tokenizer: what clipjax.data.tokenizers.make_tokenizer returned for config.tokenizer.
    """
    facts = {name: getattr(tokenizer, name) for name in ("sha256", "vocab_size", "pad_id", "eos_id")}
    rules = {name: value for name, value in flat(tokenizer.config).items() if name != "path"}
    found = {f"tokenizer.{name}": value for name, value in (rules | facts).items()}
    roles, values = declared(config), flat(config)
    for section, prefix in SECTIONS.items():
        found |= {
            prefix + name.removeprefix(section): value
            for name, value in values.items()
            if name.startswith(section) and roles[name].role in ("weights", "meaning")
        }
    return found


def check_fingerprint(found: Mapping[str, Any], expected: Mapping[str, Any], *, where: str) -> None:
    """Raises FingerprintError listing every field in which a checkpoint differs from the configuration.

    found: the checkpoint's; expected: the current configuration's; where: the checkpoint, for the message.
    """
    if not any(name.startswith("tokenizer.") for name in found):  # weights that came without one
        expected = {name: value for name, value in expected.items() if not name.startswith("tokenizer.")}
    lines = [
        f"  {name}: checkpoint {found.get(name, 'not recorded')!r}, configuration {expected.get(name, 'not set')!r}"
        for name in differences(found, expected)
    ]
    if lines:
        raise FingerprintError(
            f"{where} was trained with settings that change what its weights mean:\n"
            + "\n".join(lines)
            + "\nUse the checkpoint's own settings (leave --config out), or start a new workdir."
        )


def to_train_on(found: Mapping[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """The entries of a fingerprint that must agree where training starts from other weights (config.init_from).

    Left out is what decides shapes, which are compared by themselves, and what init_from converts or trains to the new
    setting (fields declared `converted`).
    """
    roles = declared(config)
    names = {prefix: section for section, prefix in SECTIONS.items()}

    def counts(name: str) -> bool:
        prefix = name.partition(".")[0] + "."
        declaration = roles.get(names.get(prefix, prefix) + name.removeprefix(prefix))
        return declaration is None or (declaration.role == "meaning" and not declaration.converted)

    return {name: value for name, value in found.items() if counts(name)}
