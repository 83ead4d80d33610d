"""What differs between the compilers that plans are made with: their packages and estimates of time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from clipjax.planning.accelerator import Chip
from clipjax.planning.estimate import Estimate
from clipjax.planning.gpu_cards import Gpu
from clipjax.planning.gpu_estimate import gpu_estimate
from clipjax.planning.gpu_topology import INSTALL
from clipjax.planning.hlo import Program
from clipjax.planning.kernels import kernel_times
from clipjax.planning.parts import part_of
from clipjax.planning.tpu_chips import Tpu


class Target(NamedTuple):
    """A kind of accelerator, as `compile` needs it."""

    packages: tuple[str, ...]  # what compiles, besides JAX; the first that is installed of each "a|b"
    install: str  # the command that installs them in versions that work together
    estimate: Callable[[Program, Chip, Sequence[int]], Estimate] | None  # host_of: the host of each device


def tpu_estimate(program: Program, chip: Tpu, host_of: Sequence[int]) -> Estimate:
    """The compiler's own cycles, multiplied in loops, and the schedules of clipjax's kernels."""
    seconds: dict[str, float] = defaultdict(float)
    for instruction in program.executed():
        seconds[part_of(instruction.op_name)] += instruction.cycles * instruction.times / chip.clock
    kernels = kernel_times(program, chip)
    for kernel in kernels:
        seconds[kernel["part"]] += (kernel["seconds"] or 0) * kernel["times"]
    return Estimate(seconds, kernels)


_TARGETS = {
    Tpu: Target(("libtpu",), 'pip install "jax[tpu]=={jax}"', tpu_estimate),
    Gpu: Target(
        ("jax-cuda13-plugin|jax-cuda12-plugin", "nvidia-cudnn-cu13|nvidia-cudnn-cu12"),
        INSTALL,
        gpu_estimate,
    ),
}
HOST = Target((), "", None)


def target_of(chip: Chip | None) -> Target:
    """The target of a chip; HOST for None."""
    return _TARGETS.get(type(chip), HOST)
