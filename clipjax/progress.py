"""The lines a person watches."""

from __future__ import annotations

import jax


def progress_line(step: int, total_steps: int, values: dict[str, float]) -> str:
    """'step   200/500  loss 1.234  1,234 images/s  ETA 1m 02s', and what deserves attention when it does."""
    eta = duration((total_steps - step) * values["seconds_per_step"])
    line = (
        f"step {step:>{len(str(total_steps))}}/{total_steps}  loss {values['loss']:.4f}  "
        f"scale {values['logit_scale']:.1f}  lr {values['learning_rate']:.2e}  "
        f"{values['images_per_second']:,.0f} images/s  ETA {eta}"
    )
    if values["data_wait"] > 0.05:
        line += f"  waiting for data {values['data_wait']:.0%}"
    if values["skipped"]:
        line += f"  {values['skipped']:.0f} steps skipped"
    return line


def duration(seconds: float) -> str:
    """3725 -> '1h 02m', 65 -> '1m 05s', 7 -> '7s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def announce(line: str) -> None:
    """Prints on the first process only; "" is nothing to say."""
    if line and jax.process_index() == 0:
        print(line, flush=True)
