"""Follows a run from another process: `clipjax eval --checkpoint=RUN --watch`.

Each new checkpoint is evaluated once, in order, to RUN/eval/STEP (with --data, to a folder in it), and adds a line to
RUN/eval/metrics.jsonl and TensorBoard events to RUN/eval/tensorboard. Nothing is written to what the training process
writes. A checkpoint that config.checkpoint.keep_last removes meanwhile is passed over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from clipjax import signals
from clipjax.commands.evaluation import EvaluationError, check_suite, evaluate_into, refuse_other_data, results_folder
from clipjax.config import ConfigError, EvaluationConfig, ExperimentConfig, evaluated, to_json_dict
from clipjax.data.records import ManifestError
from clipjax.files import write_text
from clipjax.inference.evaluate import numbers_of
from clipjax.inference.prepare import with_runtime_options
from clipjax.inference.provenance import transform
from clipjax.inference.session import EvalSession
from clipjax.json_files import read_json_object
from clipjax.processes import announce, gather_json
from clipjax.runs import CheckpointError, FingerprintError, open_run, read_metrics
from clipjax.runs.checkpoint import open_read_only, read_meta
from clipjax.runs.metrics_log import FILE, to_line
from clipjax.runs.run import checksum_of_weights, hint
from clipjax.runs.spool import local_folder
from clipjax.runs.steps import checkpoints_of, is_whole, whole_steps
from clipjax.storage import as_path

INTERRUPTED = 130  # the exit code after Ctrl-C
TRIES = 3  # of a checkpoint that cannot be read, which may be about to vanish


class Seen(NamedTuple):
    """A checkpoint as its JSON says it."""

    config: ExperimentConfig
    trains: bool  # False: weights alone, to which no checkpoint will follow


def watch(
    workdir: str | Path,
    *,
    config: ExperimentConfig | EvaluationConfig | None = None,
    poll_seconds: float = 10.0,
    part: str = "",
    model: str = "",
    pretrained: str = "",
    redo: bool = False,
) -> list[int]:
    """Evaluates each checkpoint of a run, until the one of config.total_steps; returns the steps evaluated here.

    part: see clipjax.commands.eval.run. A workdir without checkpoints is waited for. Checkpoints that the same
    evaluators have evaluated are not evaluated again, unless redo. Raises EvaluationError at the end for checkpoints
    that could not be evaluated, and at once what evaluate_run raises for the evaluators and their data. Ctrl-C exits
    with 130.
    """
    check_suite(config)
    watcher = Watcher(as_path(workdir), config, part, {"model": model, "pretrained": pretrained, "redo": redo})
    with _one_line_on_interrupt(watcher):
        watcher.wait_for_first(poll_seconds)
        while not watcher.look():
            time.sleep(poll_seconds)
    announce(f"{workdir} is finished at step {max(watcher.settled, default=0)}.")
    if watcher.failed:
        lines = "".join(f"  step {step}: {message}\n" for step, message in watcher.failed.items())
        raise EvaluationError(f"{len(watcher.failed)} checkpoints of {workdir} have no result:\n{lines}".rstrip())
    return watcher.done


class Watcher:
    """What is known of the run that is followed. All processes make and call it together."""

    def __init__(
        self, workdir: Path, config: ExperimentConfig | EvaluationConfig | None, part: str, options: dict[str, Any]
    ) -> None:
        self.workdir, self.config, self.part, self.options = workdir, config, part, options
        self.session: EvalSession | None = None
        self.settled: set[int] = set()  # steps that need no further look
        self.done: list[int] = []  # steps evaluated here
        self.failed: dict[int, str] = {}
        self.tries: dict[int, int] = {}

    def wait_for_first(self, poll_seconds: float) -> None:
        """Returns when the run has its first checkpoint. Raises CheckpointError for a folder that is no run's."""
        told = False
        while not self.steps():
            wrong = hint(self.workdir) if self.workdir.exists() else ""
            if wrong:
                raise CheckpointError(f"{self.workdir} holds no checkpoints.{wrong}")
            if not told:
                announce(f"Waiting for the first checkpoint in {checkpoints_of(self.workdir)}")
                told = True
            time.sleep(poll_seconds)

    def look(self) -> bool:
        """Evaluates the checkpoints that are new; returns whether the run will write no more."""
        for step in self.steps():
            if step not in self.settled and step not in self.failed:
                self.evaluate(step)
        return self.finished()

    def steps(self) -> list[int]:
        """The steps of the checkpoints that there are now, the same on all processes."""
        return gather_json(whole_steps(checkpoints_of(self.workdir)))[0]

    def finished(self) -> bool:
        """Whether the newest checkpoint is the run's last, and is settled."""
        steps = self.steps()
        if not steps or not (self.settled | self.failed.keys()).issuperset(steps):
            return False
        seen = gather_json(self._is_last(steps[-1]))[0]
        return bool(seen)

    def _is_last(self, step: int) -> bool:
        seen = self.read(step)
        return seen is not None and (not seen.trains or step >= seen.config.total_steps)

    def read(self, step: int) -> Seen | None:
        """What a checkpoint's JSON says; None where it has vanished or cannot be read."""
        try:
            with open_read_only(checkpoints_of(self.workdir)) as manager:
                meta = read_meta(manager, step)
            return Seen(meta.config, bool(meta.data_states))
        except Exception:  # half removed, Orbax raises whatever it met first
            return None

    def evaluate(self, step: int) -> None:
        """Evaluates one checkpoint, unless its results are there; settles it, or leaves it for the next look."""
        if not self.options["redo"] and gather_json(self._has_results(step))[0]:
            self.settled.add(step)
            return
        try:
            with open_run(self.workdir, str(step)) as run:
                if self.session is None or not self.session.fits(run):
                    self.session = EvalSession(run, self.config)
                announce(f"Step {step}:")
                folder = results_folder(self.workdir, step, self.part)
                if self.part:
                    refuse_other_data(folder, self.session, self.part)
                document = evaluate_into(folder, run, self.session, **self.options)
        except (ConfigError, FingerprintError, ManifestError):
            raise
        except Exception as error:
            # While a checkpoint is being removed, Orbax raises whatever it meets first.
            self._not_read(step, error)
            return
        self.log(step, document)
        self.settled.add(step)
        self.done.append(step)
        if document.get("broken"):
            self.failed[step] = f"without {', '.join(document['broken'])}"

    def _not_read(self, step: int, error: Exception) -> None:
        """Passes over a checkpoint that has vanished; after some tries, notes one that is there and cannot be read."""
        if not is_whole(checkpoints_of(self.workdir) / str(step)):
            announce(f"Step {step} has been removed before it was evaluated.")
            self.settled.add(step)
            return
        self.tries[step] = self.tries.get(step, 0) + 1
        if self.tries[step] >= TRIES:
            if not type(error).__module__.startswith("clipjax."):
                logging.error("Step %d", step, exc_info=error)
            announce(f"Step {step} cannot be evaluated: {error}")
            self.failed[step] = (str(error).splitlines() or [type(error).__name__])[0]

    def _has_results(self, step: int) -> bool:
        """Whether a step has the results of all evaluators, with today's options, and of the weights that are there."""
        document = read_json_object(results_folder(self.workdir, step, self.part) / "results.json")
        seen = self.read(step) if document else None
        if seen is None:
            return False
        config = evaluated(seen.config, self.config, jax.device_count())
        wanted = json.loads(json.dumps(to_json_dict(config)["eval"]))
        whole = document.get("eval") == wanted and not document.get("broken")
        whole = whole and self._are_of(step, document, seen.config, config)
        logged = {name for line in read_metrics(self.workdir / "eval") if line["step"] == step for name in line}
        if whole and not numbers_of(document["results"]).keys() <= logged:
            self.log(step, document)
        return whole

    def _are_of(self, step: int, document: dict[str, Any], trained: ExperimentConfig, config: ExperimentConfig) -> bool:
        """Whether results were made with a step's weights, and with the pixels that they would be made with now.

        No weights are read. What cannot be told counts as no: evaluating says what is wrong.
        """
        provenance = document.get("provenance", {})
        if any(getattr(trained.model, side).name != getattr(config.model, side).name for side in ("image", "text")):
            return False
        model = with_runtime_options(trained.model, config.model)
        pixels = json.loads(json.dumps(transform(dataclasses.replace(config, model=model))))
        folder = checkpoints_of(self.workdir) / str(step)
        try:
            weights = {
                kind: checksum_of_weights(folder, trained, average=kind == "average") for kind in ("average", "raw")
            }
            found = {name: (one["checkpoint"]["weights_sha256"], one["transform"]) for name, one in provenance.items()}
            expected = {name: (weights[one["weights"]], pixels) for name, one in provenance.items()}
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return found == expected and found.keys() == document["results"].keys()

    def log(self, step: int, document: dict[str, Any]) -> None:
        """Writes a step's numbers to RUN/eval/metrics.jsonl, in the order of the steps, and to TensorBoard."""
        if jax.process_index() != 0:
            return
        folder = self.workdir / "eval"
        numbers = numbers_of(document["results"])
        lines = {line["step"]: line for line in read_metrics(folder)}
        lines[step] = lines.get(step, {}) | {"step": step, **numbers}  # those on other data stay
        write_text(folder / FILE, "".join(to_line(lines[key]) for key in sorted(lines)))
        from tensorboardX import SummaryWriter

        with local_folder(folder / "tensorboard") as local, contextlib.closing(SummaryWriter(str(local))) as events:
            for name, value in numbers.items():
                events.add_scalar(name, value, step)


@contextlib.contextmanager
def _one_line_on_interrupt(watcher: Watcher) -> Iterator[None]:
    def line() -> str:
        done, where = len(watcher.done), watcher.workdir
        return f"stopped; {done} checkpoints of {where} were evaluated. The same command goes on."

    try:
        with signals.saying(line):
            yield
    except KeyboardInterrupt:  # outside the command line, where signals are Python's own
        announce("S" + line()[1:])
        sys.exit(INTERRUPTED)
