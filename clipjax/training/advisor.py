"""Reads a run's metrics as a colleague would, and says when they mean that nothing is being learned.

    advisor = Advisor(config)
    for advice in advisor.look(step, values): ...      # values: a line of metrics.jsonl

It speaks once about each cause, and only of what a healthy run does not do.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipjax.config import ExperimentConfig
from clipjax.losses import uninformed
from clipjax.optim.layers import TOWERS
from clipjax.training.trainable import farthest

LINES = 5  # of the log, at least, before anything is said about them
# Steps after the warm-up until a loss that has not fallen means something: a tenth of the run, within these.
PATIENCE = (100, 1000)
AT_THE_END = 50  # the same at the last step
NEAR = 0.02  # share of the uninformed loss by which one that has learned must be below it
FAR, FALLING = 0.05, 0.03  # a loss that is so far above it, and falls by so much of the difference, is on its way
UNMOVED = 0.01  # largest change of the scale's logarithm
SAME = 0.999  # mean cosine of different examples whose embeddings are all the same
LEAST_ROWS = 8  # of a batch, before equal rows are no accident


class Advice(NamedTuple):
    """A sentence about a run, which is said once for each cause."""

    cause: str
    step: int
    text: str


class Line(NamedTuple):
    """What a training line of metrics.jsonl says that is looked at."""

    step: int
    loss: float  # the parts of it that Uninformed speaks of
    scale: float
    grad_norm: float
    update_norm: float
    learning_rate: float


class Advisor:
    """Looks at each line of the log. told: causes of which it has spoken before, in an earlier start of the run.

    evidence: what is wrong with the last batch, see look_at_batch.
    """

    def __init__(
        self, config: ExperimentConfig, told: Collection[str] = (), evidence: Callable[[], list[str]] = lambda: []
    ):
        self.config, self.told, self.evidence = config, set(told), evidence
        self.pairs = config.global_batch_size * config.data.captions_per_image
        self.uninformed = uninformed(config.loss, self.pairs)
        self.begin = config.optimizer.schedule.warmup_steps
        self.patience = min(max(config.total_steps // 10, PATIENCE[0]), PATIENCE[1])
        self.lines: list[Line] = []
        self.looked_at_batch = False

    def remember(self, step: int, values: Mapping[str, float]) -> bool:
        """Takes a line of an earlier start of the run, without a word; False for a line of an evaluation."""
        names = ("loss", "logit_scale", "grad_norm", "update_norm", "learning_rate")
        if not all(math.isfinite(values.get(name, math.nan)) for name in names):
            return False
        parts = [f"{part}_loss" for part in (self.uninformed.parts if self.uninformed else ())]
        known = [values[name] for name in parts if name in values]
        loss = sum(known) if known else values["loss"]
        self.lines.append(Line(step, loss, *(values[name] for name in names[1:])))
        oldest = max(step - self.patience, 0)
        while len(self.lines) > LINES and self.lines[0].step <= oldest:
            self.lines.pop(0)
        return True

    def look(self, step: int, values: Mapping[str, float]) -> list[Advice]:
        """What this line adds; [] for most."""
        if not self.remember(step, values):
            return []
        checks = (self._batch, self._one_pair, self._no_gradient, self._no_update, self._no_learning, self._at_limit)
        return self._say(step, (check(step) for check in checks))

    def look_at_embeddings(self, step: int, image: np.ndarray, text: np.ndarray) -> list[Advice]:
        """The same about held-out pairs; image, text: [n, D] float32 of unit length, NaN where they are not known."""
        if step < self.begin + self.patience:
            return []
        return self._say(step, (_collapsed(name, rows) for name, rows in (("image", image), ("caption", text))))

    def _say(self, step: int, found: Any) -> list[Advice]:
        advice = []
        for cause, text in filter(None, found):
            if cause not in self.told:
                self.told.add(cause)
                advice.append(Advice(cause, step, text))
        return advice

    def _batch(self, step: int) -> tuple[str, str] | None:
        if self.looked_at_batch:
            return None
        self.looked_at_batch = True
        wrong = self.evidence()
        return (
            ("batch", f"in the batch of step {step}, {' and '.join(wrong)}: nothing can be learned from it.")
            if wrong
            else None
        )

    def _one_pair(self, step: int) -> tuple[str, str] | None:
        if self.pairs > 1:
            return None
        return "one pair", (
            "config.global_batch_size=1: a batch of one pair has no other pair to compare it with, so nothing is "
            "learned. Use as large a batch as fits in memory."
        )

    def _no_gradient(self, step: int) -> tuple[str, str] | None:
        last = self.lines[-LINES:]
        if len(last) < LINES or self.pairs == 1 or any(line.grad_norm or abs(line.loss) < 1e-6 for line in last):
            return None
        frozen = self._frozen()
        return "no gradient", f"the gradient has been 0 since step {last[0].step}: " + (
            f"nothing trains, because {frozen}."
            if frozen
            else "no weight changes. Scale and bias may be so large that every term of the loss is constant: restart "
            "with a smaller config.optimizer.learning_rate."
        )

    def _no_update(self, step: int) -> tuple[str, str] | None:
        last = self.lines[-LINES:]
        if len(last) < LINES or any(line.update_norm or not line.grad_norm for line in last):
            return None
        return "no update", (
            f"no weight has changed since step {last[0].step}, though the gradient is not 0: the learning rate is "
            f"{last[-1].learning_rate:.3g}, and every update was rounded to 0 or was not finite."
        )

    def _no_learning(self, step: int) -> tuple[str, str] | None:
        lines, least = [line for line in self.lines if line.step > self.begin], self.uninformed
        last = step >= self.config.total_steps
        if least is None or least.value <= 0 or len(lines) < LINES:
            return None
        if step < self.begin + (min(AT_THE_END, self.patience) if last else self.patience):
            return None
        losses = [line.loss for line in lines]
        if statistics.fmean(losses) < (1 - NEAR) * least.value or _on_its_way(losses, least.value):
            return None
        first, now = lines[0], lines[-1]
        moved = abs(math.log(max(now.scale, 1e-9) / max(first.scale, 1e-9))) > UNMOVED
        scale = f"went from {first.scale:.3g} to {now.scale:.3g}" if moved else f"has not moved from {now.scale:.3g}"
        loss = "loss" if len(least.parts) != 1 or least.parts[0] == self.config.loss.name else f"{least.parts[0]} loss"
        return "no learning", (
            f"the {loss} has been {statistics.fmean(losses):.3f} on average since step {first.step}, no better than by "
            f"chance ({least.text} = {least.value:.3f}), and logit_scale {scale}: the towers are not learning. "
            f"{self._causes(now)}"
        )

    def _causes(self, now: Line) -> str:
        """Where to look: what is certainly wrong alone, or else all that it might be."""
        if certain := list(filter(None, [self._frozen(), *self.evidence()])):
            return f"The cause: {'; '.join(certain)}."
        possible = [
            "a learning rate far too small or too large (config.optimizer.learning_rate="
            f"{self.config.optimizer.learning_rate:.3g}, and the gradient's norm is {now.grad_norm:.3g})",
            *self._partly_frozen(),
            "captions that are all alike, or that are cut off before they differ",
            "images that are black, or normalised in another way than the tower expects (config.data.pixels)",
            "images and captions that do not belong together",
            self._temperature(now),
        ]
        return f"Possible causes: {'; '.join(filter(None, possible))}. See docs/watching.md."

    def _at_limit(self, step: int) -> tuple[str, str] | None:
        limit, lines = self.config.model.logit_scale_max, self.lines
        if self.uninformed is None or len(lines) < LINES or step < self.begin + self.patience:
            return None
        if not self._temperature_trains() or limit <= 0 or any(line.scale < limit * (1 - 1e-3) for line in lines):
            return None
        if statistics.fmean(line.loss for line in lines) < self.uninformed.value / 2 or "no learning" in self.told:
            return None
        return "scale at limit", (
            f"logit_scale has been at its limit, config.model.logit_scale_max={limit:g}, since step {lines[0].step}, "
            f"while the loss is still {lines[-1].loss:.3f} (by chance it would be {self.uninformed.value:.3f}): the "
            "temperature learned faster than the towers. Use a smaller config.optimizer.temperature_lr_multiplier or "
            "learning_rate, a longer warm-up, or config.model.logit_scale_init as in the presets."
        )

    def _temperature(self, now: Line) -> str:
        limit = self.config.model.logit_scale_max
        if 0 < limit <= now.scale * (1 + 1e-3):
            return f"a temperature at its limit (config.model.logit_scale_max={limit:g})"
        if not self._temperature_trains():
            return f"a temperature that is fixed at logit_scale={now.scale:.3g}"
        return ""

    def _temperature_trains(self) -> bool:
        return self.config.optimizer.temperature_lr_multiplier > 0

    def _partly_frozen(self) -> list[str]:
        return [f"a frozen {name} tower whose weights are random" for name in TOWERS if self._is_frozen(name)]

    def _frozen(self) -> str:
        """Why no tower trains; "": one does."""
        if not all(map(self._is_frozen, TOWERS)):
            return ""
        zero = [f"config.optimizer.{name}_lr_multiplier" for name in TOWERS]
        return f"both towers are frozen ({' and '.join(zero)} are 0)"

    def _is_frozen(self, name: str) -> bool:
        adapters = self.config.lora.rank > 0 and getattr(self.config.lora, name)
        return farthest(self.config, name) < 0 and not adapters


def look_at_batch(batch: Mapping[str, Any] | None) -> list[str]:
    """What is certainly wrong with the rows of a batch that this process has; [] for a batch that may be right.

    batch: {"image": [B, ...], "text": [B, ...]}, global arrays.
    """
    found = []
    for column, what in (("image", "images"), ("text", "captions")):
        rows = _own_rows((batch or {}).get(column))
        if rows is None or len(rows) < LEAST_ROWS or (rows != rows[:1]).any():
            continue
        black = column == "image" and not rows.any()
        found.append(f"all {what} are {'black' if black else 'the same'}")
    return found


def _own_rows(array: Any, most: int = 256) -> np.ndarray | None:
    """[n, ...]: the first rows of an array that are on this process's devices."""
    if array is None:
        return None
    shards = {str(shard.index[:1]): shard for shard in array.addressable_shards}
    rows = [np.asarray(shard.data[:most]) for shard in itertools.islice(shards.values(), 8)]
    return np.concatenate(rows) if len({part.shape[1:] for part in rows}) == 1 else None


def _on_its_way(losses: Sequence[float], least: float) -> bool:
    """Whether a loss that is not below the uninformed one yet falls: to it from far above, or soon below it."""
    half = len(losses) // 2
    before, now = statistics.fmean(losses[:half]), statistics.fmean(losses[half:])
    fall = before - now
    far = before > (1 + FAR) * least
    return (far and fall > FALLING * (before - least)) or now - 2 * max(fall, 0.0) < (1 - NEAR) * least


def _collapsed(name: str, rows: np.ndarray) -> tuple[str, str] | None:
    rows = np.asarray(rows, np.float64)
    rows = rows[np.isfinite(rows).all(axis=-1)]
    count = len(rows)
    if count < LEAST_ROWS:
        return None
    cosine = (np.square(rows.sum(axis=0)).sum() - np.square(rows).sum()) / (count * (count - 1))
    if cosine < SAME:
        return None
    alike = "black images" if name == "image" else "texts of unknown tokens only"
    return f"collapsed {name}s", (
        f"the embeddings of {count} different held-out {name}s are all the same (mean cosine {cosine:.4f}): the {name} "
        f"tower does not distinguish them. Possible causes: a learning rate that is too large; {name}s that look alike "
        f"to it, such as {alike}; a tower that does not train."
    )
