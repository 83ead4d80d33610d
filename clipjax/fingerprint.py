"""What two parties must agree on before weights mean the same thing.

None of these raises a shape error when it is wrong; each costs accuracy in silence (another
vocabulary, another EOS rule, QuickGELU against GELU, another pixel range).
"""

from __future__ import annotations

from typing import Any

from clipjax.config import ExperimentConfig

# Options that change what weights mean and no shape, younger than the first checkpoints: written down only where they
# are not the default, so that a checkpoint without them has the default.
OPTIONS = {
    "image": ("post_norm", "norm_after_pool", "rope", "rope_theta", "rope_grid"),
    "text": ("post_norm", "rope", "rope_theta", "pad_id"),
}


class FingerprintError(ValueError):
    """Weights and the settings they are to be used with disagree."""


def fingerprint(config: ExperimentConfig, tokenizer: Any) -> dict[str, Any]:
    """JSON-able dict of tokenizer, text rules, pixel transform, activations and pooling.

    tokenizer: what clipjax.data.text.make_tokenizer returned for config.tokenizer.
    """
    image, text, pixels = config.model.image, config.model.text, config.data.pixels
    found = {
        "tokenizer.name": config.tokenizer.name,
        "tokenizer.sha256": tokenizer.sha256,
        "tokenizer.vocab_size": tokenizer.vocab_size,
        "tokenizer.lowercase": config.tokenizer.lowercase,
        "tokenizer.canonicalize": config.tokenizer.canonicalize,
        "tokenizer.add_bos": config.tokenizer.add_bos,
        "tokenizer.add_eos": config.tokenizer.add_eos,
        "tokenizer.pad_id": tokenizer.pad_id,
        "tokenizer.eos_id": tokenizer.eos_id,
        "text.context_length": text.context_length,
        "text.causal": text.causal,
        "text.pool": text.pool,
        "text.eos_id": text.eos_id,
        "text.activation": text.activation,
        "text.norm_eps": text.norm_eps,
        "image.image_size": image.image_size,
        "image.patch_size": image.patch_size,
        "image.pool": image.pool,
        "image.activation": image.activation,
        "image.norm_eps": image.norm_eps,
        "pixels.resize": pixels.resize,
        "pixels.interpolation": pixels.interpolation,
        "pixels.mean": list(pixels.mean),
        "pixels.std": list(pixels.std),
    }
    for side, tower in (("image", image), ("text", text)):
        default = type(tower)()
        changed = [name for name in OPTIONS[side] if getattr(tower, name) != getattr(default, name)]
        found |= {f"{side}.{name}": getattr(tower, name) for name in changed}
    return found


def check_fingerprint(found: dict[str, Any], expected: dict[str, Any], *, where: str) -> None:
    """Raises FingerprintError listing every field in which a checkpoint differs from the configuration.

    found: the checkpoint's; expected: the current configuration's; where: the checkpoint, for the message.
    """
    if not any(name.startswith("tokenizer.") for name in found):  # weights that came without one
        expected = {name: value for name, value in expected.items() if not name.startswith("tokenizer.")}
    lines = [
        f"  {name}: checkpoint {found.get(name, 'not recorded')!r}, configuration {expected.get(name, 'not set')!r}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if lines:
        raise FingerprintError(
            f"{where} was trained with settings that change what its weights mean:\n"
            + "\n".join(lines)
            + "\nUse the checkpoint's own settings (leave --config out), or start a new workdir."
        )
