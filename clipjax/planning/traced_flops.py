"""Products of a traced function: what its matrix products and convolutions cost, whatever it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def traced_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs (a multiplication and an addition are two) of function at these shapes; nothing is computed.

    A convolution's taps on padding count, as in published tables. A loop counts as often as it runs.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        shapes = [v.aval.shape for v in equation.invars[:2]]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            depth = math.prod(shapes[0][axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            features = parameters["dimension_numbers"].rhs_spec[0]
            taps = math.prod(size for axis, size in enumerate(shapes[1]) if axis != features)
            total += 2 * taps * equation.outvars[0].aval.size
        else:
            times = parameters["length"] if name == "scan" else 1
            total += times * sum(_count(inner) for inner in _inner(parameters))
    return total


def _inner(parameters: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs inside an equation: of a jit, a loop, a custom derivative, a rematerialised block."""
    found = []
    for value in parameters.values():
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
    return found
