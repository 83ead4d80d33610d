"""The experiment: everything a run is told, in one tree of frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from clipjax.config.data import DataConfig, SourceConfig, TokenizerConfig
from clipjax.config.fields import ADAPTERS, OBJECTIVE, ORDER, STATE, experiment, part, parts, runtime, section
from clipjax.config.model import Dtype, ModelConfig
from clipjax.config.ranges import (
    BLOCKS_OR_ALL,
    COUNT,
    DEVICES,
    DEVICES_OR_REST,
    EXAMPLES,
    EXAMPLES_OR_ZERO,
    LEARNING_RATE,
    RANK_OR_ZERO,
    RATE,
    SHARE,
    SHARE_ABOVE_ZERO,
    SPREAD,
    STEPS,
    THRESHOLD,
    WEIGHT,
)


@dataclass(frozen=True)
class LossConfig:
    """What all losses share. A loss with options of its own has a subclass in its file."""

    name: str = experiment("softmax", fixed=OBJECTIVE)  # a row of clipjax.losses.LOSSES
    comm: str = runtime("auto")  # how devices exchange embeddings: a row of clipjax.losses.comm.COMMS
    tile: int = runtime(0, within=EXAMPLES_OR_ZERO)  # side of a tile along a device's own rows; 0: chosen by the loss
    dtype: Dtype = experiment("float32")  # embeddings are rounded to it before the exchange; bfloat16 halves the bytes
    # how to treat pairs with an equal pair_id
    repeats: Literal["negatives", "positives", "ignore"] = experiment("negatives", fixed=OBJECTIVE)

    @property
    def teacher(self) -> str:
        """The --workdir of the run that the loss learns from; "" for a loss without a teacher."""
        return ""


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis of the mesh has."""

    data: int = runtime(-1, within=DEVICES_OR_REST)  # -1: the devices that remain after fsdp and tensor
    fsdp: int = runtime(1, within=DEVICES)  # devices that share parameters and optimizer state
    tensor: int = runtime(1, within=DEVICES)  # devices that share each matrix


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps, as a share of its peak."""

    name: str = experiment("cosine")  # a row of clipjax.optim.schedules.SCHEDULES
    warmup_steps: int = experiment(0, within=STEPS)  # the rate rises linearly over these steps
    final_fraction: float = experiment(0.0, within=SHARE)  # cosine and linear end at this fraction of the learning rate
    rsqrt_timescale: int = experiment(10_000, within=COUNT)  # steps
    cooldown_steps: int = experiment(0, within=STEPS)  # rsqrt and constant: linear to zero over the last steps


@dataclass(frozen=True)
class OptimizerConfig:
    """What all optimizers share. An optimizer with options of its own has a subclass in its file."""

    name: str = experiment("adamw", fixed=STATE)  # a row of clipjax.optim.OPTIMIZERS
    learning_rate: float = experiment(5e-4, within=LEARNING_RATE)  # the peak, after warm-up
    # of matrices, not of biases, norms and the temperature
    weight_decay: float = experiment(0.2, within=WEIGHT)
    grad_clip_norm: float = experiment(0.0, within=THRESHOLD)  # global norm; 0: off
    # 0: the tower is frozen (LiT) and has no optimizer state
    image_lr_multiplier: float = experiment(1.0, within=WEIGHT)
    text_lr_multiplier: float = experiment(1.0, within=WEIGHT)
    temperature_lr_multiplier: float = experiment(1.0, within=WEIGHT)  # 0: logit_scale and logit_bias keep their values
    # blocks that train, counted from the last, with all that follows them (norm, pooling head, projection); what comes
    # before is frozen. -1: the whole tower; 0: only what follows the blocks
    image_unlocked_blocks: int = experiment(-1, within=BLOCKS_OR_ALL, fixed=STATE)
    text_unlocked_blocks: int = experiment(-1, within=BLOCKS_OR_ALL, fixed=STATE)
    # each block's updates are this much smaller than the next one's (BEiT); 1: off. clipjax/optim/layers.py
    layer_decay: float = experiment(1.0, within=SHARE_ABOVE_ZERO)
    ema_decay: float = experiment(0.0, within=RATE)  # 0: no EMA parameters
    max_nonfinite_steps: int = runtime(10, within=COUNT)  # consecutive skipped steps before the run stops
    schedule: ScheduleConfig = section(ScheduleConfig)
    # The share of the warm-up that step 0 has is first_warmup_step / warmup_steps.
    first_warmup_step: ClassVar[int] = 1


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA, 2106.09685): matrices W become W + alpha / rank * A B, of which A and B alone train."""

    rank: int = experiment(0, within=RANK_OR_ZERO, fixed=ADAPTERS)  # columns of A and rows of B; 0: no adapters
    alpha: float = experiment(16.0, within=SPREAD, fixed=ADAPTERS)  # alpha / rank scales what the adapters add
    # of each block, among query, key, value and out of its attention, up, down and (SwiGLU) gate of its MLP
    matrices: tuple[str, ...] = experiment(("query", "value"), fixed=ADAPTERS)
    image: bool = experiment(True, fixed=ADAPTERS)  # adapt this tower; else it trains as config.optimizer says
    text: bool = experiment(True, fixed=ADAPTERS)
    # also train, in full, what follows an adapted tower's blocks: norm, pooling head, projection
    heads: bool = experiment(False, fixed=STATE)


@dataclass(frozen=True)
class EvaluatorConfig:
    """What all evaluators share; clipjax/eval/ has each one's own options."""

    name: str = runtime("zero_shot")  # a row of clipjax.eval.EVALUATORS
    source: SourceConfig = part("clipjax.data.sources:SOURCES", "array_record")
    published_as: str = runtime("")  # the set's name in published result files; "": the evaluator's own
    # What CLIP_benchmark calls what this measures; "": it has no such measurement.
    published_task: ClassVar[str] = ""
    published_names: ClassVar[Mapping[str, str]] = {}  # its name of a metric -> ours

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports; () where only an evaluation tells."""
        return ()

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The data that it reads, by the field that names them: "source", which is evaluated, and others."""
        return {"source": self.source}

    @property
    def embeds(self) -> tuple[str, ...]:
        """The towers that it needs."""
        return ("image", "text")

    @property
    def needs_features(self) -> bool:
        """Whether it reads what enters the image tower's projection, which not every tower has."""
        return False

    def names_of_labels(self, class_names: Sequence[str]) -> Sequence[str]:
        """The name of each label; class_names: the source's. Raises ConfigError."""
        return class_names

    def prompts(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Sequence[str]:
        """The prompts of the classes, for evaluators that make prompts; class_names, templates: the source's."""
        return ()

    def published_metrics(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result of this evaluator under CLIP_benchmark's names; None where the result lacks a metric."""
        return {theirs: result.get(ours) for theirs, ours in self.published_names.items()}


@dataclass(frozen=True)
class EvalConfig:
    """When the evaluators run, on how many examples at a time."""

    every_steps: int = runtime(0, within=STEPS)  # 0: only at the end of training
    batch_size: int = runtime(256, within=EXAMPLES)  # examples, over all devices
    # for runs that average their parameters (optimizer.ema_decay): the averages, the parameters of the last step, or
    # both, where the results of the second are called NAME_raw
    weights: Literal["average", "raw", "both"] = runtime("average")
    evaluators: dict[str, EvaluatorConfig] = parts("clipjax.eval:EVALUATORS")


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves, and which checkpoints it keeps."""

    every_steps: int = runtime(1000, within=COUNT)
    keep_last: int = runtime(3, within=COUNT)  # checkpoints
    keep_best: int = runtime(1, within=STEPS)  # how many of the best by best_metric to keep as well
    # "evaluator/metric"; the smallest is the best of ranks, errors and losses; "": no checkpoint is kept as best
    best_metric: str = runtime("")


@dataclass(frozen=True)
class LogConfig:
    """What a run logs, and how often."""

    every_steps: int = runtime(50, within=COUNT)
    tensorboard: bool = runtime(True)  # write TensorBoard events too
    wandb: str = runtime("")  # log to this project of Weights & Biases too, or "entity/project"; "": do not
    mlflow: str = runtime("")  # log to this experiment of MLflow too, at MLFLOW_TRACKING_URI; "": do not
    figures: bool = runtime(True)  # snapshots of held-out pairs; at the end, report.html and summary.png
    # the first and the last step to trace with JAX's profiler, such as "100:105", to workdir/profile; "": none
    profile: str = runtime("")
    profile_hosts: Literal["first", "all"] = runtime("first")  # which processes write a trace of these steps
    profile_python: bool = runtime(False)  # also trace calls of Python functions: larger traces, slower steps
    # tell when a step takes this many times the median step, with the stacks of all threads in stalls/; 0: never
    watchdog: float = runtime(20.0, within=WEIGHT)
    # but not before it has taken this long (seconds); 60 times as long for what is no step, such as an evaluation
    watchdog_seconds: float = runtime(120.0, within=SPREAD)
    watchdog_action: Literal["tell", "exit"] = runtime(
        "tell"
    )  # exit: end the run with 1, for a scheduler to restart it


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that a run is told."""

    seed: int = experiment(0, within=STEPS, fixed=ORDER)  # of the weights, the data's order, augmentation and dropout
    total_steps: int = experiment(10_000, within=COUNT)  # updates of the weights
    # images of a step, over all devices and micro-batches, each with data.captions_per_image texts
    global_batch_size: int = experiment(1024, within=EXAMPLES, fixed=ORDER)
    # weights to start from: the --workdir of a run, or a directory that clipjax import wrote
    init_from: str = experiment("", at_start=True)
    # the same for one tower alone, instead of what init_from gives it
    init_image_from: str = experiment("", at_start=True)
    init_text_from: str = experiment("", at_start=True)
    # logit_scale and logit_bias of init_from: kept, or restarted at config.model's initial values
    init_temperature: Literal["kept", "restarted"] = experiment("kept", at_start=True)
    # micro-batches in which a step runs the towers; loss and gradient are still those of the whole batch
    accumulation_steps: int = runtime(1, within=EXAMPLES)
    model: ModelConfig = section(ModelConfig)
    loss: LossConfig = part("clipjax.losses:LOSSES", "softmax")
    mesh: MeshConfig = section(MeshConfig)
    optimizer: OptimizerConfig = part("clipjax.optim:OPTIMIZERS", "adamw")
    lora: LoraConfig = section(LoraConfig)
    tokenizer: TokenizerConfig = part("clipjax.data.tokenizers:TOKENIZERS", "sentencepiece")
    data: DataConfig = section(DataConfig)
    eval: EvalConfig = section(EvalConfig, role="runtime")
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    log: LogConfig = section(LogConfig)
