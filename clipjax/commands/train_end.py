"""What clipjax train does after its last step."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from clipjax import signals
from clipjax.commands.train_lines import describe_end
from clipjax.config import ExperimentConfig
from clipjax.processes import announce, gather_json
from clipjax.report.goodput import describe_goodput
from clipjax.report.summary import REPORT, SUMMARY, Recorder
from clipjax.runs.bad_records_log import add_causes, describe_bad_records
from clipjax.runs.goodput import GoodputLog, read_goodput
from clipjax.runs.sinks import Sinks
from clipjax.runs.spool import Spool
from clipjax.training.loop import Finished
from clipjax.training.state import reported_variables


def conclude(
    config: ExperimentConfig,
    workdir: Path,
    done: Finished,
    noted: signals.Noted,
    sinks: Sinks,
    recorder: Recorder,
    goodput: GoodputLog,
    spool: Spool,
    check_held: Callable[[], None],
) -> dict[str, float]:
    """What follows the last saved step: a line about it or, where it is the run's last, its report and accounts."""
    goodput.accounts.enter("other")
    step = int(done.state.step)
    if step < config.total_steps:
        sinks.status = "killed"
        name = signals.name_of(noted.number or signal.SIGTERM)  # which another process may have received
        announce(f"{name}: saved step {step} in {workdir}; the same command continues from there.")
        return {}
    goodput.finished = True
    spool.upload()
    with signals.saying(describe_end(config, workdir), saved=True):
        if number := max(gather_json(noted.number)):
            announce(f"{signals.name_of(number)}: {describe_end(config, workdir)}")
            return done.results
        if done.data_state:
            announce(describe_bad_records(workdir, all_causes(done.data_state)))
        goodput.write()
        spool.upload()
        if config.log.figures:
            check_held()
            recorder.finish(reported_variables(done.state, config.eval.weights), step)
            for name in (SUMMARY, REPORT):
                sinks.file(workdir / name)
        goodput.close()
        announce(describe_goodput(read_goodput(spool.folder)) if jax.process_index() == 0 else "")
    return done.results


def all_causes(data_state: dict[str, Any]) -> dict[str, int]:
    """{cause: records replaced} over all processes; they call it together."""
    return add_causes(gather_json(data_state["bad"]))
