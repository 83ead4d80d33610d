"""The evaluation of checkpoints: data opened once, functions compiled once, each result told when it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from clipjax.config import (
    ConfigError,
    EvaluationConfig,
    EvaluatorConfig,
    ExperimentConfig,
    SourceConfig,
    declared,
    require,
)
from clipjax.data.records import ManifestError
from clipjax.data.sources import Source
from clipjax.inference import provenance
from clipjax.inference.evaluate import Results, make_evaluate_one, open_evaluator
from clipjax.inference.prepare import prepare_model
from clipjax.processes import gather_json
from clipjax.runs import Run
from clipjax.storage.data_cache import use_cache
from clipjax.training.state import weights_to_evaluate


class Record(NamedTuple):
    """One evaluator's result, with everything that is needed to trust it."""

    result: dict[str, Any]
    provenance: dict[str, Any]  # see clipjax/inference/provenance.py
    identity: str  # of the settings and files that gave it
    seconds: float


class Evaluation(NamedTuple):
    """The results of one checkpoint's evaluation, and the configuration that was used."""

    config: ExperimentConfig  # what was evaluated, and how
    mesh: Mesh
    results: Results
    seconds: float
    provenance: dict[str, dict[str, Any]] = {}  # evaluator -> where its result comes from
    absent: dict[str, str] = {}  # evaluator -> the path where its data is not
    broken: dict[str, str] = {}  # evaluator -> why it has no result


def evaluate_run(run: Run, config: ExperimentConfig | EvaluationConfig | None = None) -> Evaluation:
    """Runs the evaluators on an open run's weights, on the mesh of this machine.

    config: an experiment whose mesh, eval and data sections to use; its model and tokenizer must be the run's
    (FingerprintError lists what differs). An evaluation has only evaluators and takes the rest from the run. None: the
    run's own, on all devices.
    """
    return EvalSession(run, config).evaluate(run)


class EvalSession:
    """What evaluating the checkpoints of one run needs. All processes make and call it together.

    Raises, before anything is compiled, ConfigError for evaluators and data that do not fit each other or the machine,
    ManifestError for data that are missing or damaged (unless the evaluation's `absent` and `broken` say to go on), and
    FingerprintError as evaluate_run.
    """

    def __init__(self, run: Run, config: ExperimentConfig | EvaluationConfig | None = None):
        self.given = config
        self.policy = config if isinstance(config, EvaluationConfig) else EvaluationConfig()
        self.config, self.mesh, self.tokenizer = prepare_model(run, config)
        self.trained = run.config.model, run.fingerprint
        self.absent: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self.sources = self._open()
        self.files: dict[str, list[Any]] = {}  # see _files
        require(
            bool(self.sources or self.broken),
            "There is nothing to evaluate: none of the data is there. Expected, for example, "
            f"{next(iter(self.absent.values()), '')}.",
        )
        self._evaluate_one = None

    def fits(self, run: Run) -> bool:
        """Whether the session can evaluate another checkpoint: of the same model, with the same evaluators."""
        same_eval = self.given is not None or run.config.eval == self.config.eval
        return same_eval and self.trained == (run.config.model, run.fingerprint)

    def evaluate(
        self,
        run: Run,
        *,
        stored: Mapping[str, Record] | None = None,
        done: Callable[[str, EvaluatorConfig, Record, bool], None] = lambda *_: None,
    ) -> Evaluation:
        """Evaluates one checkpoint.

        stored: records of earlier evaluations; those with the same identity are taken instead of being made again.
        done: called on every process as done(name, the evaluator's options, its record, whether it was stored).
        """
        stored = {} if stored is None else stored
        started, records, broken = time.perf_counter(), {}, dict(self.broken)
        averaged = run.config.optimizer.ema_decay > 0
        for suffix, average in weights_to_evaluate(averaged, self.config.eval.weights).items():
            variables = None
            for name, sources in self.sources.items():
                key, evaluator = name + suffix, self.config.eval.evaluators[name]
                settings = provenance.settings_of(name, self.config, run, self.mesh, sources, average=average)
                identity = provenance.identity(settings, evaluator, self._files(name))
                # Of files of its own, each process may see other times of change.
                if all(gather_json(key in stored and stored[key].identity == identity)):
                    records[key] = stored[key]
                    done(key, evaluator, records[key], True)
                    continue
                if variables is None:
                    variables = run.variables(self.mesh, average=average)
                try:
                    records[key] = self._record(name, settings, identity, sources, variables)
                except Exception as error:
                    self._tolerate(key, error, broken)
                    continue
                done(key, evaluator, records[key], False)
        return Evaluation(
            self.config,
            self.mesh,
            {key: record.result for key, record in records.items()},
            time.perf_counter() - started,
            {key: record.provenance for key, record in records.items()},
            self.absent,
            broken,
        )

    def _files(self, name: str) -> list[Any]:
        """The files of an evaluator's sources, looked up once: they were opened once, too."""
        if name not in self.files:
            pairs = zip(self.config.eval.evaluators[name].sources.values(), self.sources[name].values(), strict=True)
            self.files[name] = [provenance.files_of(config, source) for config, source in pairs]
        return self.files[name]

    def _record(
        self, name: str, settings: dict[str, Any], identity: str, sources: dict[str, Source], variables: Any
    ) -> Record:
        if self._evaluate_one is None:
            self._evaluate_one = make_evaluate_one(self.config, self.mesh, self.tokenizer)
        started = time.perf_counter()
        read = {key: provenance.ReadRecords(source) for key, source in sources.items()}
        result = self._evaluate_one(name, read, variables)
        by_field = dict(zip(self.config.eval.evaluators[name].sources, read.values(), strict=True))
        record = Record(result, provenance.finished(settings, by_field), identity, time.perf_counter() - started)
        logging.info("Evaluated %s in %.1f s", name, record.seconds)
        return record

    def _open(self) -> dict[str, dict[str, Source]]:
        """{evaluator: its sources} of those whose data can be opened; the others go to absent and broken."""
        if self.given is None:
            _refuse_missing(self.config)
        use_cache(self.config.data.cache_dir, self.config.data.cache_gib)
        opened: dict[SourceConfig, Source] = {}
        sources = {}
        for name, evaluator in self.config.eval.evaluators.items():
            missing = next((s.path for s in evaluator.sources.values() if _is_missing(s.path)), None)
            if self.policy.absent == "skip" and any(gather_json(missing is not None)):
                self.absent[name] = missing or "a path that another process does not see"
                continue
            found, failure = {}, None
            try:
                found = open_evaluator(name, evaluator, opened)
            except Exception as error:
                failure = error
                if jax.process_count() == 1:
                    self._tolerate(name, error, self.broken)
            if jax.process_count() > 1:
                self._agree(name, failure)
            if name not in self.broken:
                sources[name] = found
        return sources

    def _agree(self, name: str, failure: Exception | None) -> None:
        """Makes an evaluator broken on every process if it is on one."""
        messages = [message for message in gather_json(failure and str(failure)) if message is not None]
        if messages:
            self._tolerate(name, failure or ConfigError(messages[0]), self.broken, agreed=True)

    def _tolerate(self, name: str, error: Exception, broken: dict[str, str], agreed: bool = False) -> None:
        """Notes an evaluator's failure where the others are to go on; else raises it.

        Where several processes evaluate, one that failed cannot rejoin the others in the middle of a computation.
        """
        if self.policy.broken == "refuse" or (jax.process_count() > 1 and not agreed):
            raise error
        message = str(error) or type(error).__name__
        if not (type(error).__module__.startswith("clipjax.") or isinstance(error, OSError)):
            logging.exception("%s failed", name)
            message = f"{type(error).__name__}: {message}"
        broken[name] = message.removeprefix(f"config.eval.evaluators.{name}: ")


def _refuse_missing(config: ExperimentConfig) -> None:
    """Raises ManifestError where data of a run's own evaluators are not here, as after the run was moved."""
    missing: dict[str, list[str]] = {}
    for name, evaluator in config.eval.evaluators.items():
        for source in evaluator.sources.values():
            if declared(source)["path"].path == "data" and _is_missing(source.path):
                missing.setdefault(source.path, []).append(name)
    if missing:
        data = "; ".join(f"{path} (for {', '.join(names)})" for path, names in missing.items())
        raise ManifestError(
            f"The data of the run's evaluators are not here: {data}. Relative paths start at the folder in which the "
            f"run was started, or at the current folder, {Path.cwd()}. Copy the data there, or evaluate on other data: "
            "--data=FOLDER, or --config=FILE with evaluators."
        )


def _is_missing(path: str) -> bool:
    """Whether a path, which is no pattern or name of a data set elsewhere, does not exist."""
    return bool(path) and not any(mark in path for mark in "*?[{:") and not Path(path).exists()
