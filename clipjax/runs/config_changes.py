"""Validation of a restart: which changes of the configuration a run may continue with.

Each field declares it where it is defined (clipjax.config.fields); docs/reliability.md has the table.
"""

from __future__ import annotations

from clipjax.config import ConfigError, ExperimentConfig, declared, differences, flat

FROZEN = "what is frozen (0) has no optimizer state, and what is trained needs it"


def check_changes(trained: ExperimentConfig, config: ExperimentConfig, where: str) -> list[str]:
    """A line for every field that changed. Raises ConfigError, with a line for every field that must not change.

    trained: the configuration in the checkpoint `where`; config: today's.
    """
    roles = declared(trained, config)
    changes = differences(flat(trained), flat(config))
    reasons = {name: roles[name].fixed or (FROZEN if _freezes(name, *changes[name]) else "") for name in changes}
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
    return [
        f"  config.{name}: {old!r} -> {new!r}" + (", which changes the curve from here on" if name in felt else "")
        for name, (old, new) in changes.items()
    ]


def _freezes(name: str, old: object, new: object) -> bool:
    """Whether a change freezes a tower or the temperature, or begins to train a frozen one."""
    return name.startswith("optimizer.") and name.endswith("_lr_multiplier") and 0 in (old, new)
