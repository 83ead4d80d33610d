"""TensorBoard events in WORKDIR/tensorboard; config.log.tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.files import naming
from clipjax.runs.sinks.sink import About, GivesUp, Row

FLUSH_SECONDS = 10  # after which an event is in its file; what was written later is lost to kill -9


class TensorBoard:
    """Events from the step after resume_step on; a reader drops those that a killed run had written beyond it."""

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX import SummaryWriter

        self.errors: list[OSError] = []
        with naming(folder):
            self.events = SummaryWriter(str(folder), purge_step=resume_step + 1, flush_secs=FLUSH_SECONDS)
        _keep_errors(self.events, folder, self.errors)

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        self._raise_errors()
        for name, value in values.items():
            self.events.add_scalar(name, value, step, time)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        self._raise_errors()
        self.events.add_image(name, pixels, step, dataformats="HWC")

    def file(self, name: str, data: bytes) -> None:
        """Events have no files."""

    def close(self, status: str) -> None:
        self.events.close()
        self._raise_errors()

    def _raise_errors(self) -> None:
        """An event that was cut off ends what readers see of the file, so that nothing is written after an error."""
        for error in self.errors[:1]:
            raise GivesUp(str(error)) from error


def _keep_errors(events: Any, folder: Path, errors: list[OSError]) -> None:
    """Makes the thread that writes events add its errors, such as a full disk, to a list; it would die of them, and
    then block the run. tensorboardX has no public way to hear of them."""
    writer = events.file_writer.event_writer._ev_writer

    def keeping(method: Any) -> Any:
        def call(*args: Any) -> Any:
            try:
                with naming(folder):
                    return method(*args)
            except OSError as error:
                errors.append(error)

        return call

    for name in ("write_event", "flush", "close"):
        setattr(writer, name, keeping(getattr(writer, name)))


def open_tensorboard(on: bool, about: About) -> TensorBoard:
    del on
    return TensorBoard(about.workdir / "tensorboard", about.resume_step)


ROW = Row("TensorBoard", "", open_tensorboard)
