"""Traces of some steps by JAX's profiler, for XProf and TensorBoard: config.log.profile, or a signal.

    WORKDIR/profile/plugins/profile/2026_11_27_08_15_52/HOST.xplane.pb

A trace that cannot be made is a warning; the run goes on.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging

from clipjax import signals
from clipjax.config import ExperimentConfig, require
from clipjax.files import replacing
from clipjax.processes import announce, gather_json

FOLDER = "profile"
ON_REQUEST = 5  # steps that a signal asks for
_WINDOW = re.compile(r"(\d{1,12}):(\d{1,12})")


def profile_window(config: ExperimentConfig) -> tuple[int, int] | None:
    """The first and the last step of config.log.profile; None for "". Raises ConfigError."""
    text = config.log.profile
    if not text:
        return None
    where, found = f"config.log.profile={text!r}", _WINDOW.fullmatch(text)
    require(
        found is not None,
        f"{where} does not name steps; expected the first and the last one to trace, such as '100:105'.",
    )
    first, last = int(found[1]), int(found[2])
    require(first >= 1, f"{where} begins at step 0, but the first step is 1; use '1:{max(last, 1)}'.")
    require(first <= last, f"{where} ends before it begins; the first step comes first: '{last}:{first}'.")
    require(
        first <= config.total_steps,
        f"{where} begins after the last step, config.total_steps={config.total_steps}, so that nothing would be "
        "traced. Name steps that the run makes.",
    )
    return first, min(last, config.total_steps)


class Profiler:
    """Traces the steps of config.log.profile, and the next ON_REQUEST ones when signals.REQUEST arrives.

    with profiler: before each step `before`, the step in `with profiler.step(n)`, and `after` behind it. With
    config.log.profile_hosts="all" every process writes a trace of the window; a request is the receiving process's own.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        workdir: str | Path,
        resume_step: int = 0,
        pausing: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        """pausing: surrounds what is not part of the steps, such as writing the trace."""
        self.pausing = pausing
        self.folder, self.window = Path(workdir) / FOLDER, profile_window(config)
        self.total, self.everywhere = config.total_steps, config.log.profile_hosts == "all"
        self.options = jax.profiler.ProfileOptions()
        self.options.python_tracer_level = int(config.log.profile_python)
        self.until = 0  # the last step of the trace that is being made; 0: none
        self.begun, self.name, self.local = 0, "", ""
        if self.window and resume_step >= self.window[0]:
            announce(self._describe_missed(resume_step))

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.until:  # the run has failed, or is interrupted, inside the window
            with contextlib.suppress(Exception):
                jax.profiler.stop_trace()
            shutil.rmtree(self.local, ignore_errors=True)
            self.until = 0

    def before(self, step: int, state: Any) -> float:
        """Begins a trace at this step, if one is wanted; returns the seconds that this took."""
        began = time.perf_counter()
        first, last = self.window or (0, 0)
        if self.until:
            return 0.0
        if first <= step <= last:
            self._begin(step, last, state, shared=self.everywhere)
        elif signals.take_request():
            self._begin(step, min(step + ON_REQUEST - 1, self.total), state, shared=False, requested=True)
        else:
            return 0.0
        return time.perf_counter() - began

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """Names the step in the trace."""
        if not self.until:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, step: int, state: Any, *, ends: bool = False) -> bool:
        """Ends the trace behind its last step, or where the run ends; returns whether it did."""
        if not self.until or not (step >= self.until or ends):
            return False
        self.until = 0
        try:
            jax.block_until_ready(state)
            with self.pausing():
                self._end(step)
        except Exception as error:
            logging.warning("The profile of steps %d to %d could not be written: %s", self.begun, step, error)
        finally:
            shutil.rmtree(self.local, ignore_errors=True)
        return True

    def _begin(self, step: int, last: int, state: Any, *, shared: bool, requested: bool = False) -> None:
        self.begun, self.until, self.local = step, last, ""
        now = time.strftime("%Y_%m_%d_%H_%M_%S", time.gmtime())
        self.name = gather_json(now)[0] if shared else now  # one folder for all hosts is one run for XProf
        jax.block_until_ready(state)  # earlier steps are not in the trace
        if not (shared or requested or jax.process_index() == 0):
            return
        folder = tempfile.mkdtemp(prefix="clipjax-profile-")
        try:
            with self.pausing():
                jax.profiler.start_trace(folder, profiler_options=self.options)
            self.local = folder
        except Exception as error:  # such as another profiler that is at work
            logging.warning("Steps %d to %d cannot be profiled: %s", step, last, error)
            shutil.rmtree(folder, ignore_errors=True)
            return
        announce(f"{f'{signals.name_of(signals.REQUEST)}: ' if requested else ''}profiling steps {step} to {last}")

    def _end(self, step: int) -> None:
        if self.local:
            jax.profiler.stop_trace()
            announce(f"profiled steps {self.begun} to {step}: {self._keep()} (docs/long_runs.md)")

    def _keep(self) -> Path:
        """Moves the trace to the workdir, named after this process; returns the folder."""
        target = self.folder / "plugins" / "profile" / self.name
        several = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        for file in sorted(Path(self.local).glob("plugins/profile/*/*")):
            ending = next((end for end in (".xplane.pb", ".trace.json.gz") if file.name.endswith(end)), file.suffix)
            with replacing(target / f"{socket.gethostname()}{several}{ending}") as temporary:
                shutil.copyfile(file, temporary)
        return target

    def _describe_missed(self, resume_step: int) -> str:
        first, last = self.window
        made = f"config.log.profile={first}:{last}: the run goes on after step {resume_step}, so that "
        if resume_step >= last:
            return made + "these steps are not made again, and nothing is traced."
        return made + f"steps {resume_step + 1} to {last} are traced."
