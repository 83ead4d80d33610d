"""The evaluation of any checkpoint: data and evaluators. Model, tokenizer and pixels are the checkpoint's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from clipjax.config.experiment import CheckpointConfig, EvalConfig, ExperimentConfig, MeshConfig
from clipjax.config.fields import runtime, section
from clipjax.config.ranges import GIBIBYTES, WORKERS


@dataclass(frozen=True)
class LoaderConfig:
    """How an evaluation reads its data."""

    num_threads: int = runtime(2, within=WORKERS)  # threads that read and decode
    prefetch: int = runtime(2, within=WORKERS)  # global batches kept ready on the devices
    cache_dir: str = runtime("")  # local folder that keeps data read from buckets; "": ~/.cache/clipjax/data
    cache_gib: float = runtime(64.0, within=GIBIBYTES)  # GiB that it may take; 0: no data are kept


@dataclass(frozen=True)
class EvaluationConfig:
    """What `clipjax eval` is told by a file that names no model; see eval_config."""

    eval: EvalConfig = section(EvalConfig, role="runtime")
    mesh: MeshConfig = section(MeshConfig)
    data: LoaderConfig = section(LoaderConfig)
    # an evaluator whose data are not there: an error, or told and left out
    absent: Literal["refuse", "skip"] = runtime("refuse")
    # an evaluator that fails: an error at once, or told while the others go on (exit code 1 at the end)
    broken: Literal["refuse", "skip"] = runtime("refuse")
    suite: str = runtime("")  # a row of clipjax.report.suites.SUITES, whose files and averages are written; "": none


def evaluated(
    trained: ExperimentConfig, config: ExperimentConfig | EvaluationConfig | None, devices: int
) -> ExperimentConfig:
    """The configuration with which weights trained with `trained` are evaluated on `devices` devices.

    config: an experiment, taken as it is; an evaluation, whose eval, mesh and data sections are taken; None: the
    trained one's own evaluators and, if it fits the devices, its mesh; else all of them share the batch. The batch is
    rounded up to fill the devices, except in an experiment's configuration: results do not depend on its size.
    """
    if isinstance(config, ExperimentConfig):
        return config
    if config is None:
        mesh = dataclasses.replace(trained.mesh, data=-1)
        config = dataclasses.replace(trained, mesh=MeshConfig() if devices % (mesh.fsdp * mesh.tensor) else mesh)
    else:
        data = dataclasses.replace(trained.data, **vars(config.data))
        own = dict(eval=config.eval, mesh=config.mesh, data=data)
        config = dataclasses.replace(trained, **own, checkpoint=CheckpointConfig(best_metric=""))
    mesh, size = config.mesh, config.eval.batch_size
    shards = max(devices // max(mesh.tensor, 1) if mesh.data == -1 else mesh.data * mesh.fsdp, 1)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=-(-size // shards) * shards))
