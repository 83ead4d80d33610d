"""The line that a run prints about its steps, and the rates in it."""

from __future__ import annotations

import time

from clipjax.processes import duration

COLUMNS = 100
UNITS = ("", "k", "M", "G", "T", "P", "E")


class Window:
    """Rates since the last log line, without the time that evaluations, checkpoints and compiling took.

    peak: FLOP/s that all devices of the run could make together; None: not known.
    """

    def __init__(self, batch_size: int, peak: float | None = None):
        self.batch_size, self.peak = batch_size, peak
        self.restart()

    def restart(self) -> None:
        self.started, self.steps, self.waited, self.flops = time.perf_counter(), 0, 0.0, 0.0

    def add(self, data_wait: float, paused: float = 0.0, flops: float = 0.0) -> None:
        """Counts a step. data_wait: the seconds that it waited for its batch; paused: seconds that do not count; flops:
        the model FLOPs of the step."""
        self.steps += 1
        self.waited += data_wait
        self.started += paused
        self.flops += flops

    def rates(self) -> dict[str, float]:
        """images_per_second, seconds_per_step, data_wait (a share of the time, 0 to 1) and, where FLOPs are counted,
        model_flops_per_second of all devices and mfu, their share of the peak; restarts the window."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rates = {
            "images_per_second": self.steps * self.batch_size / seconds,
            "seconds_per_step": seconds / max(self.steps, 1),
            "data_wait": self.waited / seconds,
        }
        if self.flops:
            rates["model_flops_per_second"] = self.flops / seconds
            rates |= {"mfu": self.flops / seconds / self.peak} if self.peak else {}
        self.restart()
        return rates


def progress_line(step: int, total_steps: int, values: dict[str, float]) -> str:
    """'step   200/500  loss 1.234  1,234 images/s  MFU 43.2%  ETA 1m 02s', with waiting for data and skipped steps, if
    any. Where that is longer than COLUMNS, the learning rate is left out, and then what comes next in _SHORTER."""
    eta = duration((total_steps - step) * values["seconds_per_step"])
    parts = {
        "step": f"step {step:>{len(str(total_steps))}}/{total_steps}",
        "loss": f"loss {values['loss']:.4f}",
        "scale": f"scale {values['logit_scale']:.1f}",
        "lr": f"lr {values['learning_rate']:.2e}",
        "images": f"{values['images_per_second']:,.0f} images/s",
    }
    if "mfu" in values:
        parts["flops"] = f"MFU {values['mfu']:.1%}"
    elif "model_flops_per_second" in values:
        parts["flops"] = flops_text(values["model_flops_per_second"])
    parts["eta"] = f"ETA {eta}"
    if values["data_wait"] > 0.05:
        parts["wait"] = f"waiting for data {values['data_wait']:.0%}"
    if values["skipped"]:
        parts["skipped"] = f"{values['skipped']:.0f} steps skipped"
    for name in _SHORTER:
        if len("  ".join(parts.values())) > COLUMNS:
            parts.pop(name, None)
    return "  ".join(parts.values())


_SHORTER = ("lr", "scale", "flops", "eta")  # what is left out of a line that is too long, in this order


def flops_text(flops: float) -> str:
    """38.1e9 -> '38.1 GFLOP/s': three digits."""
    for unit in UNITS:
        if flops < 999.5 or unit == UNITS[-1]:
            digits = 0 if flops >= 99.95 else 1 if flops >= 9.995 else 2
            return f"{flops:,.{digits}f} {unit}FLOP/s"
        flops /= 1000
    raise AssertionError("unreachable")
