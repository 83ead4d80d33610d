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
    "image": ("name", "post_norm", "norm_after_pool", "rope", "rope_theta", "rope_grid"),
    "text": ("post_norm", "rope", "rope_theta"),
}

# What a checkpoint has that was written before the entry existed.
BEFORE = {
    "tokenizer.clean": False,
    "tokenizer.drop_underscore": False,
    "tokenizer.eos_to_pad": False,
    "text.name": "transformer",
    "text.pad_id": 0,
    "image.depthwise_padding": [],
    "text.positions_after_padding": False,
    "pixels.scale_to": 0,
    "pixels.center": "round",
    "pixels.fill": 0,
    "pixels.antialias": True,
    "pixels.alpha": "white",
}


class FingerprintError(ValueError):
    """Weights and the settings they are to be used with disagree."""


def fingerprint(config: ExperimentConfig, tokenizer: Any) -> dict[str, Any]:
    """JSON-able dict of tokenizer, text rules, pixel transform, activations and pooling.

    tokenizer: what clipjax.data.tokenizers.make_tokenizer returned for config.tokenizer.
    """
    image, text, pixels, rules = config.model.image, config.model.text, config.data.pixels, tokenizer.config
    found = {
        "tokenizer.name": rules.name,
        "tokenizer.sha256": tokenizer.sha256,
        "tokenizer.vocab_size": tokenizer.vocab_size,
        "tokenizer.clean": rules.clean,
        "tokenizer.lowercase": rules.lowercase,
        "tokenizer.canonicalize": rules.canonicalize,
        "tokenizer.drop_underscore": rules.drop_underscore,
        "tokenizer.add_bos": rules.add_bos,
        "tokenizer.add_eos": rules.add_eos,
        "tokenizer.eos_to_pad": rules.eos_to_pad,
        "tokenizer.pad_id": tokenizer.pad_id,
        "tokenizer.eos_id": tokenizer.eos_id,
        "text.name": text.name,
        "text.context_length": text.context_length,
        "text.causal": text.causal,
        "text.pool": text.pool,
        "text.eos_id": text.eos_id,
        "text.pad_id": text.pad_id,
        "text.positions_after_padding": text.positions_after_padding,
        "text.activation": text.activation,
        "text.norm_eps": text.norm_eps,
        "image.image_size": image.image_size,
        "image.patch_size": image.patch_size,
        "image.pool": image.pool,
        "image.activation": image.activation,
        "image.norm_eps": image.norm_eps,
        "image.depthwise_padding": list(image.depthwise_padding),
        "pixels.resize": pixels.resize,
        "pixels.scale_to": pixels.scale_to,
        "pixels.center": pixels.center,
        "pixels.fill": pixels.fill,
        "pixels.interpolation": pixels.interpolation,
        "pixels.antialias": pixels.antialias,
        "pixels.alpha": pixels.alpha,
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
    found = {name: value for name, value in BEFORE.items() if name in expected} | found
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
