"""A run that goes on with another configuration than it began with: what may change, and what would spoil it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config import ConfigError, ExperimentConfig, to_json_dict

ORDER = "the checkpoint's place in the data would be another one"
MODEL = "the weights would be used as another model's"
STATE = "the optimizer's state in the checkpoint means something else there"
OBJECTIVE = "one curve would show two experiments"

# Field, or what it starts with -> why it may not change; "" where it may. The longest name that fits counts, and what
# no name fits may change. docs/reliability.md has the table in words.
RULES = {
    "seed": ORDER,
    "global_batch_size": ORDER,
    "data.train": ORDER,
    "data.mixture": ORDER,
    "data.pixels": MODEL,
    "tokenizer": MODEL,
    "tokenizer.path": "",  # the fingerprint has what is in the file
    "model": MODEL,
    "model.logit_scale_init": "",
    "model.logit_bias_init": MODEL,
    "model.dtype": "",
    **{
        f"model.{tower}.{name}": ""
        for tower in ("image", "text", "decoder")
        for name in ("remat", "attention", "attention_chunk", "init", "dropout", "drop_path", "patch_dropout")
    },
    "loss": OBJECTIVE,
    "loss.comm": "",
    "loss.tile": "",
    "loss.dtype": "",
    "optimizer.name": STATE,
    "optimizer.moment_dtype": STATE,
}

# Of the fields that may change, those that change the curve; the others change how it is computed or shown.
CURVE = (
    "total_steps",
    "optimizer",
    "data.augment",
    "data.decoder",
    "data.image_embeddings",
    "data.teacher_embeddings",
    "model",
    "loss.dtype",
)


def check_changes(trained: ExperimentConfig, config: ExperimentConfig, where: str) -> list[str]:
    """A line for every field that differs and may. Raises ConfigError, with a line for every field that may not.

    trained: the configuration in the checkpoint `where`; config: today's.
    """
    changes = differences(_flat(to_json_dict(trained)), _flat(to_json_dict(config)))
    refused = [
        f"  {name}={old!r}, config.{name} is now {new!r}: {why}"
        for name, (old, new) in changes.items()
        if (why := _rule(name))
    ]
    if refused:
        raise ConfigError(
            f"{where} was trained with another configuration:\n" + "\n".join(refused) + "\nUse the old values; or, to "
            "train on from these weights as a new experiment, a new --workdir with --config.init_from set to this one."
        )
    return [
        f"  config.{name}: {old!r} -> {new!r}" + (", which changes the curve from here on" if _curve(name) else "")
        for name, (old, new) in changes.items()
    ]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (old value, new value)} where they differ; None stands for what one of them lacks."""
    names = sorted(old.keys() | new.keys())
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _rule(name: str) -> str:
    # Data may move to another disk or machine; that there are as many records is checked by the data's iterator.
    if name.startswith(("data.train.", "data.mixture.")) and name.endswith((".path", ".data_dir")):
        return ""
    fitting = [prefix for prefix in RULES if name == prefix or name.startswith(prefix + ".")]
    return RULES[max(fitting, key=len)] if fitting else ""


def _curve(name: str) -> bool:
    numbers_stay = ("remat", "attention", "attention_chunk", "init", "logit_scale_init", "max_nonfinite_steps")
    return any(name == p or name.startswith(p + ".") for p in CURVE) and name.rpartition(".")[2] not in numbers_stay


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer": {"name": "lion"}} -> {"optimizer.name": "lion"}; tuples as the lists that JSON makes of them."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
