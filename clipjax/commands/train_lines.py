"""What `clipjax train` says about a run that has ended, or is stopped."""

from __future__ import annotations

from pathlib import Path

from clipjax.config import ExperimentConfig
from clipjax.report.summary import REPORT, SUMMARY
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.sweep import saved_step
from clipjax.training.state import result_names


def describe_stop(workdir: str | Path, when: str) -> str:
    """What the line says about a run that a signal ends without saving."""
    try:
        step = saved_step(workdir)
    except OSError:  # the bucket does not answer
        return f"stopped {when}; the same command continues from the last checkpoint in {workdir}."
    return f"stopped {when}; {workdir} " + (
        f"has step {step}, and the same command continues from there."
        if step
        else "has no checkpoint, and the same command starts again."
    )


def describe_end(config: ExperimentConfig, workdir: Path) -> str:
    """What a signal's line says after the last step."""
    return f"all {config.total_steps} steps are saved in {workdir}" + (
        "; clipjax report makes the report that is missing." if config.log.figures else "."
    )


def describe_finished(config: ExperimentConfig, workdir: Path, step: int) -> str:
    """The line that a restart of a finished run prints."""
    shown = [str(path) for path in (workdir / SUMMARY, workdir / REPORT, workdir / "metrics.jsonl") if path.exists()]
    return (
        f"{workdir} is finished at step {step} (config.total_steps={config.total_steps}); nothing to train: raise "
        f"config.total_steps to go on{', or see ' + ' and '.join(shown) if shown else ''}. "
        f"clipjax eval --checkpoint={workdir} evaluates it."
    )


def last_results(config: ExperimentConfig, workdir: Path, step: int) -> dict[str, float]:
    """The evaluation of a step in metrics.jsonl; {} where there is none."""
    evaluators = result_names(config.eval.evaluators)
    return {
        name: value
        for line in read_metrics(workdir)
        if line["step"] == step
        for name, value in line.items()
        if name.partition("/")[0] in evaluators
    }
