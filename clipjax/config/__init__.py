"""The experiment's configuration: a ConfigDict, read once into frozen dataclasses.

    config_dict = experiments.quickstart.get_config()      # ml_collections.ConfigDict
    config = from_config_dict(config_dict)                 # ExperimentConfig, names and types checked
    check(config, num_devices=8, process_count=1)          # clipjax.training.check: the parts fit together

`default_config()` gives every field at its default as a ConfigDict, so that `--config.optimizer.learning_rate=1e-3`
works for any of them. Nothing else in clipjax reads a ConfigDict.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from clipjax.config.compare import declared, differences, flat
from clipjax.config.data import (
    AugmentConfig,
    DataConfig,
    MixturePart,
    PixelConfig,
    SourceConfig,
    TokenizerConfig,
)
from clipjax.config.errors import ConfigError, nearest, require
from clipjax.config.evaluation import EvaluationConfig, LoaderConfig, evaluated
from clipjax.config.experiment import (
    CheckpointConfig,
    EvalConfig,
    EvaluatorConfig,
    ExperimentConfig,
    LogConfig,
    LoraConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from clipjax.config.fields import Part
from clipjax.config.metrics import smaller_is_better
from clipjax.config.model import (
    Activation,
    BlockConfig,
    DecoderConfig,
    Dtype,
    ImageTowerConfig,
    Init,
    ModelConfig,
    PatchBudget,
    Remat,
    TextTowerConfig,
)
from clipjax.config.paths import map_paths
from clipjax.config.reading import build, check_values, require_field, to_config_dict, to_json_dict

__all__ = [
    "Activation",
    "AugmentConfig",
    "BlockConfig",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "DecoderConfig",
    "Dtype",
    "EvalConfig",
    "EvaluationConfig",
    "EvaluatorConfig",
    "ExperimentConfig",
    "ImageTowerConfig",
    "Init",
    "LoaderConfig",
    "LogConfig",
    "LoraConfig",
    "LossConfig",
    "MeshConfig",
    "MixturePart",
    "ModelConfig",
    "OptimizerConfig",
    "Part",
    "PatchBudget",
    "PixelConfig",
    "Remat",
    "ScheduleConfig",
    "SourceConfig",
    "TextTowerConfig",
    "TokenizerConfig",
    "build",
    "check_values",
    "declared",
    "default_config",
    "differences",
    "eval_config",
    "evaluated",
    "flat",
    "from_config_dict",
    "from_eval_config",
    "from_json_dict",
    "map_paths",
    "nearest",
    "require",
    "require_field",
    "smaller_is_better",
    "to_config_dict",
    "to_json_dict",
]


def default_config() -> ConfigDict:
    """A ConfigDict with every field of ExperimentConfig at its default; experiments start from it."""
    return to_config_dict(ExperimentConfig())


def eval_config() -> ConfigDict:
    """A ConfigDict with every field of EvaluationConfig at its default, for files that `clipjax eval` reads.

    Its evaluators are run on any checkpoint, whose model, tokenizer and pixels are used.
    """
    return to_config_dict(EvaluationConfig())


def from_eval_config(config: ConfigDict) -> ExperimentConfig | EvaluationConfig:
    """A ConfigDict for `clipjax eval`: of an experiment, or of eval_config(), which has no model."""
    return check_values(build(ExperimentConfig if "model" in config else EvaluationConfig, config))


def from_config_dict(config: ConfigDict) -> ExperimentConfig:
    """ConfigDict -> frozen ExperimentConfig.

    Raises ConfigError for an unknown field (naming the nearest known one, or the part that has it), a wrong type, or a
    value that is not among a field's choices or outside its range.
    """
    return check_values(build(ExperimentConfig, config))


def from_json_dict(tree: dict[str, Any]) -> ExperimentConfig:
    """The ExperimentConfig from which to_json_dict made `tree`, also after a round trip through JSON."""
    return check_values(build(ExperimentConfig, tree))
