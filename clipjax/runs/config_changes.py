"""Validation of a restart: which changes of the configuration a run may continue with.

Each field declares it where it is defined (clipjax.config.fields); docs/reliability.md has the table.
"""

from __future__ import annotations

from clipjax.config import ConfigError, ExperimentConfig, declared, differences, flat
from clipjax.models import random_fields

AVERAGES = "averages are kept from the first step on: turned off they are lost, and they cannot be started later"
FROZEN = "what is frozen (0) has no optimizer state, and what is trained needs it"


def check_changes(trained: ExperimentConfig, config: ExperimentConfig, where: str) -> list[str]:
    """A line for every field that changed. Raises ConfigError, with a line for every field that must not change.

    trained: the configuration in the checkpoint `where`; config: today's.
    """
    roles = declared(trained, config)
    changes = differences(flat(trained), flat(config))
    reasons = {name: roles[name].fixed or _reason(name, *changes[name]) for name in changes}
    refused = [
        f"  {name}={old!r}, config.{name} is now {new!r}: {reasons[name]}"
        for name, (old, new) in changes.items()
        if reasons[name]
    ]
    if refused:
        raise ConfigError(
            f"{where} was trained with another configuration:\n" + "\n".join(refused) + "\nUse the old values; or, to "
            "start a new experiment from these weights, use a new --workdir and set --config.init_from to this one."
        )
    felt = {name for name in changes if roles[name].role != "runtime" and not roles[name].at_start}
    if random_fields(config.model):
        # Each micro-batch draws for itself, and which rows it has depends on the parts of the batch on the devices.
        drawn_by = ("accumulation_steps", *(("mesh.data", "mesh.fsdp") if config.accumulation_steps > 1 else ()))
        felt |= changes.keys() & drawn_by
    return [
        f"  config.{name}: {old!r} -> {new!r}" + (", which changes the curve from here on" if name in felt else "")
        for name, (old, new) in changes.items()
    ]


def _reason(name: str, old: object, new: object) -> str:
    """Why a change from or to 0 is refused, of a field that may change otherwise; "": it is not."""
    if 0 not in (old, new) or not name.startswith("optimizer."):
        return ""
    return FROZEN if name.endswith("_lr_multiplier") else AVERAGES if name == "optimizer.ema_decay" else ""
