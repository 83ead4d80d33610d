"""Every n-th record of any other source held out, for data that come without a split of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipjax.config import SourceConfig, require
from clipjax.config.fields import ORDER, experiment, part
from clipjax.config.ranges import COUNT
from clipjax.data.order import Shuffled, Windowed
from clipjax.data.records import ManifestError

TRAIN, HELD_OUT = "train", "validation"
OPTIONAL = ("files", "read_files", "bucket", "templates", "task", "has_false_captions", "damaged_files", "sha256")


@dataclass(frozen=True)
class HeldOutConfig(SourceConfig):
    """path: as `source` takes it. split: "train", or "validation" for the records that are held out."""

    name: str = "held_out"
    every: int = experiment(10, within=COUNT, fixed=ORDER)  # the 10th, 20th, ... record are held out; at least 2
    # how the path is read; its own path may be left empty
    source: SourceConfig = part("clipjax.data.sources:SOURCES", "folder")


class HeldOutSource:
    """The records of one side of the split, in the order of the source that is split.

    Records are told apart by their numbers alone, so equal images in different records may be on both sides. Raises
    ConfigError for another split, ManifestError for a source of fewer than `every` records; and as that source does.
    """

    def __init__(self, config: HeldOutConfig, open_source: Callable[[SourceConfig], Any]):
        require(config.every > 1, f"Source '{config.name}' has every={config.every}, which leaves nothing to train on.")
        require(
            config.split in (TRAIN, HELD_OUT),
            f"Source '{config.name}' has split='{config.split}'; its splits are '{TRAIN}' and '{HELD_OUT}'.",
        )
        own = config.source if config.source.path else dataclasses.replace(config.source, path=config.path)
        self.source, self.every, self.trains = open_source(own), config.every, config.split == TRAIN
        if len(self.source) < config.every:
            raise ManifestError(
                f"{own.path} has {len(self.source)} records, fewer than every={config.every}: none can be held out."
            )
        self.class_names = self.source.class_names
        if hasattr(self.source, "captions"):
            self.captions = self._captions
        if hasattr(self.source, "fetch_ahead"):
            self.fetch_ahead = self._fetch_ahead

    def __len__(self) -> int:
        held_out = len(self.source) // self.every
        return len(self.source) - held_out if self.trains else held_out

    def index(self, index: int) -> int:
        """The number, in the source that is split, of a record of this side. Raises IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index + index // (self.every - 1) if self.trains else (index + 1) * self.every - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.index(index)]

    def where(self, index: int) -> tuple[str, int]:
        return self.source.where(self.index(index))

    def _fetch_ahead(self, indices: Sequence[int]) -> None:
        self.source.fetch_ahead([self.index(index) for index in indices])

    def _captions(self, index: int) -> list[str]:
        return self.source.captions(self.index(index))

    def order(self, seed: int) -> Shuffled:
        """Blocks of the source stay blocks here, each without the records of the other side."""
        order = self.source.order(seed) if hasattr(self.source, "order") else None
        if not isinstance(order, Windowed):
            return Shuffled(len(self), seed)
        held_out = np.asarray(order.starts) // self.every
        return Windowed(order.starts - held_out if self.trains else held_out, order.window, seed)

    def __getattr__(self, name: str) -> Any:
        if name in OPTIONAL and "source" in vars(self):
            return getattr(self.source, name)
        raise AttributeError(name)
