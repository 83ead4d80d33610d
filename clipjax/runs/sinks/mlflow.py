"""MLflow; config.log.mlflow is the experiment, MLFLOW_TRACKING_URI the server or store.

Without that variable, runs go where MLflow puts them by default, or with mlflow-skinny, which has no database, to files
in ./mlruns.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.runs.sinks.sink import About, Row

NAME = "mlflow"
AT_ONCE = 100  # parameters in a request
LONGEST = 500  # characters of a parameter, which older servers take
STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class MLflow:
    """A run of MLflow. Steps that the store has, from before a restart, are not written again."""

    def __init__(self, client: Any, run_id: str):
        self.client, self.run_id = client, run_id
        self.last: dict[str, int] = {}  # metric -> the last step that the store has

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        from mlflow.entities import Metric

        named = {metric_name(name): float(value) for name, value in values.items()}
        fresh = {name: value for name, value in named.items() if step > self._last_of(name)}
        metrics = [Metric(name, value, int(1000 * time), step) for name, value in fresh.items()]
        try:
            if metrics:
                self.client.log_batch(self.run_id, metrics=metrics)
        except Exception:
            self.last.clear()  # part of it may have arrived
            raise
        self.last |= dict.fromkeys(fresh, step)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        from PIL import Image

        self._artifact(f"{name}/{step}.png", png(Image.fromarray(pixels)))

    def file(self, name: str, data: bytes) -> None:
        self._artifact(name, data)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run_id, STATUS[status])

    def _last_of(self, name: str) -> int:
        if name not in self.last:
            history = self.client.get_metric_history(self.run_id, name)
            self.last[name] = max((metric.step for metric in history), default=-1)
        return self.last[name]

    def _artifact(self, name: str, data: bytes) -> None:
        import tempfile

        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / file
            path.write_bytes(data)
            self.client.log_artifact(self.run_id, str(path), folder or None)


def metric_name(name: str) -> str:
    """A name of metrics.jsonl as MLflow takes it: letters, digits, and _-. :/ alone."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def png(picture: Any) -> bytes:
    """A PIL image as the bytes of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def open_mlflow(experiment: str, about: About) -> MLflow:
    # This thread tries again by itself, and says what failed.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri and importlib.util.find_spec("sqlalchemy") is None:
        uri = (Path.cwd() / "mlruns").as_uri()
    if uri.startswith("file:") or uri.startswith("/"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it is asked for
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri or None)
    known = about.known(NAME)
    run_id = known.get("id", "")
    if run_id and lives(client, run_id):
        client.update_run(run_id, status="RUNNING")
    else:
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
        run = client.create_run(experiment_id, run_name=os.environ.get("MLFLOW_RUN_NAME") or about.name)
        run_id, known = run.info.run_id, {}
        about.keep(NAME, id=run_id, configured=False)
    if not known.get("configured"):
        log_config(client, run_id, about.config)
        about.keep(NAME, id=run_id, configured=True)
    return MLflow(client, run_id)


def lives(client: Any, run_id: str) -> bool:
    """Whether the store still has a run that an earlier start began."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def log_config(client: Any, run_id: str, config: Mapping[str, Any]) -> None:
    """The configuration as parameters, by their dotted names."""
    from mlflow.entities import Param

    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in config.items()}
    params = [Param(metric_name(name), text[:LONGEST]) for name, text in texts.items() if text]
    for start in range(0, len(params), AT_ONCE):
        client.log_batch(run_id, params=params[start : start + AT_ONCE])


ROW = Row("MLflow", "mlflow", open_mlflow)
