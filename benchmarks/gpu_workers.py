"""The processes that benchmarks.gpu_step measures in: each compiles one contender, waits, and measures it in turn."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_clipjax import ClipJax
from benchmarks.gpu_contender import Contender
from benchmarks.gpu_models import MODELS, VARIANTS, Cell
from benchmarks.gpu_torch import OpenClip, Transformers

CONTENDERS: dict[str, type[Contender]] = {"clipjax": ClipJax, "transformers": Transformers, "open_clip": OpenClip}
MARK = "RESULT "  # begins a worker's line of JSON
LANES = {"jax": 2, "torch": 4}  # how many compile side by side: XLA times its choices on the card, and few disturb it


def work(cell: Cell) -> int:
    """A worker's side: compiles, says so, waits for a line of input, measures, and prints the result."""
    contender = CONTENDERS[cell.contender](cell)
    prepared = contender.prepare()
    print(MARK + json.dumps(prepared), flush=True)
    if sys.stdin.readline().strip() == "measure":
        print(MARK + json.dumps(contender.measure()), flush=True)
    return 0


class Worker:
    """A process for one cell. It appends its output to a file, which nothing else moves or keeps open."""

    def __init__(self, cell: Cell):
        self.cell, self.process, self.stopped = cell, None, False
        self.folder = tempfile.TemporaryDirectory(prefix="gpu_step_worker_")
        self.output = Path(self.folder.name) / "output"

    def prepare(self, environment: dict[str, str], seconds: float) -> dict[str, Any]:
        """Starts the process and waits until it has compiled: its result, or {"error": why there is none}."""
        if seconds <= 0 or self.stopped:
            return {"error": "not begun: the time was up"}
        arguments = [sys.executable, "-m", "benchmarks.gpu_step", f"--worker={json.dumps(vars(self.cell))}"]
        own = VARIANTS[self.cell.variant].environ
        environment = environment | own | ({"JAX_PLATFORMS": "cpu"} if self.cell.toy else {})
        if "XLA_FLAGS" in own:
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own['XLA_FLAGS']}".strip()
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                text=True,
                start_new_session=True,  # so that stop() ends what a compiler leaves behind
            )
        return self._result(1, seconds)

    def measure(self, seconds: float) -> dict[str, Any]:
        """Lets the process measure: its result, or {"error": why there is none}. The process ends."""
        try:
            self.process.stdin.write("measure\n")
            self.process.stdin.flush()
            return self._result(2, seconds)
        except OSError as error:
            return {"error": f"the process is gone: {error}"}
        finally:
            self.stop()

    def stop(self) -> None:
        self.stopped = True
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.folder.cleanup()

    def _result(self, number: int, seconds: float) -> dict[str, Any]:
        """The process's `number`-th result, once its line is whole."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll()
            text = self.output.read_text(encoding="utf-8", errors="replace")
            whole = text[: text.rfind("\n") + 1].splitlines()
            results = [line for line in whole if line.startswith(MARK)]
            if len(results) >= number:
                return json.loads(results[number - 1][len(MARK) :])
            if ended is not None:
                last = next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
                return {"error": f"exit {ended}: {last.strip()[:300]}", "output": text[-3000:]}
            if time.monotonic() > deadline:
                return {"error": f"stopped after {seconds:.0f} s", "output": text[-3000:]}
            time.sleep(0.1)


def prepare_all(workers: Sequence[Worker], environment: dict[str, str], seconds: float) -> list[dict[str, Any]]:
    """Compiles all, several at a time: each one's result, or {"error": why there is none}.

    Of the first loss, the models that take longest start first; a model's other loss comes later and needs fewer new
    kernels.
    """
    lanes = {
        library: concurrent.futures.ThreadPoolExecutor(max(1, min(most, (os.cpu_count() or 1) // 4)))
        for library, most in LANES.items()
    }
    deadline = time.monotonic() + seconds
    losses = list(dict.fromkeys(worker.cell.loss for worker in workers))

    def prepare(worker: Worker) -> dict[str, Any]:
        return worker.prepare(environment, deadline - time.monotonic())

    def turn(worker: Worker) -> tuple:
        _, _, width, depth = MODELS[worker.cell.model].image
        return losses.index(worker.cell.loss), bool(worker.cell.variant), -width * depth

    order = sorted(workers, key=turn)
    try:
        futures = {worker: lanes[CONTENDERS[worker.cell.contender].library].submit(prepare, worker) for worker in order}
        for worker, future in futures.items():
            if "error" in future.result():
                worker.stop()
        return [futures[worker].result() for worker in workers]
    finally:
        for lane in lanes.values():
            lane.shutdown(wait=False, cancel_futures=True)


def worker_environment(caches: Path) -> dict[str, str]:
    """The environment of all workers: caches that they share, and JAX's memory taken as it is needed."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GPU_STEP_LOCK": str(caches / "lock"),
    }
