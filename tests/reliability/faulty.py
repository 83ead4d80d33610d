"""An experiment with several processes, which suffer the fault in folder/fault.json.

The file: {"process": whose, "batch": the one it comes before, "what": "DataError", "SIGKILL" or "SIGTERM", "seconds":
what every batch takes}; {}: no fault.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from clipjax.data.bad_records import DataError
from clipjax.data.pipeline import TrainIterator
from tests.runs import run_config


def faulty_config(folder: Path) -> ConfigDict:
    """run_config without evaluation, and with the fault in this process's reading."""
    make_batch = TrainIterator.__next__

    def suffer_or_make_batch(iterator: TrainIterator):
        fault = json.loads((folder / "fault.json").read_text())
        time.sleep(fault.get("seconds", 0))
        if fault.get("process") == jax.process_index() and fault["batch"] == iterator.step:
            if fault["what"] == "DataError":
                raise DataError("half of the records are bad")
            os.kill(os.getpid(), getattr(signal, fault["what"]))
        return make_batch(iterator)

    TrainIterator.__next__ = suffer_or_make_batch
    config = run_config(folder)
    config.eval.evaluators = {}
    return config


def write_faulty_experiment(folder: Path) -> Path:
    path = folder / "faulty_experiment.py"
    path.write_text(
        "from pathlib import Path\nfrom tests.reliability.faulty import faulty_config\n\n\n"
        f"def get_config():\n    return faulty_config(Path({str(folder)!r}))\n"
    )
    return path
