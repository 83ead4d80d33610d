"""Weights & Biases; config.log.wandb is the project, or "entity/project".

W&B's own variables count: WANDB_API_KEY, WANDB_MODE=offline, WANDB_BASE_URL, WANDB_NAME, WANDB_RUN_GROUP, WANDB_TAGS
and others. Its local files are in WORKDIR/wandb; without a network or a login they are all there is, and `wandb sync`
sends them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipjax.runs.sinks.delivery import warn
from clipjax.runs.sinks.sink import About, Row

NAME = "wandb"
INIT_SECONDS = 60.0
EXIT_CODES = {"finished": 0, "failed": 1, "killed": 143}


class Wandb:
    """A run of W&B whose steps are training's.

    W&B takes no step twice. After a restart it is given only those that it does not have: the others were made again,
    and are the same.
    """

    def __init__(self, run: Any, logged: Mapping[str, int]):
        self.run, self.step = run, 0
        # The server knows which steps it has; local files are not read back, and metrics.jsonl tells.
        self.first, self.logged = (0, logged) if run.offline else (run.step if run.resumed else 0, {})

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        if step >= self.first:
            self._log({name: value for name, value in values.items() if step > self.logged.get(name, -1)}, step)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        import wandb

        self._log({name: wandb.Image(pixels, caption=f"step {step}")}, max(step, self.first))

    def file(self, name: str, data: bytes) -> None:
        import wandb
        from PIL import Image

        stem, _, suffix = name.rpartition(".")
        made = wandb.Html(data.decode()) if suffix == "html" else wandb.Image(Image.open(io.BytesIO(data)))
        self._log({stem: made}, self.step)

    def close(self, status: str) -> None:
        if status == "killed":
            self.run.mark_preempting()
        self.run.finish(exit_code=EXIT_CODES[status])

    def _log(self, values: dict[str, Any], step: int) -> None:
        self.step = max(step, self.step)
        if values:
            self.run.log(values, step=self.step)


def open_wandb(project: str, about: About) -> Wandb:
    os.environ.setdefault("WANDB_SILENT", "true")  # its lines would be between those of progress; it asks nothing
    import wandb

    known = about.known(NAME)
    run_id = known.get("id") or os.urandom(4).hex()
    about.keep(NAME, id=run_id, begun=bool(known.get("begun")))
    entity, _, project = project.rpartition("/")

    def begin(**options: Any) -> Any:
        return wandb.init(
            project=project,
            entity=entity or None,
            id=run_id,
            name=os.environ.get("WANDB_NAME") or about.name,
            dir=os.environ.get("WANDB_DIR") or str(about.workdir),
            config=None if known.get("begun") else about.config,
            settings=wandb.Settings(console="off", init_timeout=INIT_SECONDS, git_root=os.getcwd()),
            **options,
        )

    offline = os.environ.get("WANDB_MODE", "").startswith("offline")
    try:
        run = begin() if offline else begin(resume="allow")
    except wandb.errors.Error as error:
        reason = str(error).split("\n")[0].rstrip(".")
        warn(f"W&B: {reason}; training goes on, and its numbers go to {about.workdir}/wandb for wandb sync.")
        run = begin(mode="offline")
    about.keep(NAME, id=run.id, begun=True, url=run.url if not run.offline else None)
    return Wandb(run, about.logged)


ROW = Row("W&B", "wandb", open_wandb)
