"""Reductions over the rows and columns of a matrix of which only one tile exists at a time.

A reduction holds matrices [r, c] of one tile. Over all tiles together it gives one number for each row (axis=1) or
column (axis=0). `state` is the running form: a tuple of vectors that can be merged with the state of another tile, or
another device, in any order. `pull` is the derivative, rebuilt tile by tile from the final results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sum(NamedTuple):
    """Sum of value."""

    value: jax.Array

    @staticmethod
    def empty(size: int):
        return (jnp.zeros((size,)),)

    def state(self, axis: int):
        return (self.value.astype(jnp.float32).sum(axis),)

    @staticmethod
    def merge(a, b):
        return (a[0] + b[0],)

    @staticmethod
    def across(state, axis_name):
        return jax.lax.psum(state, axis_name)

    @staticmethod
    def finish(state):
        return state[0]

    def pull(self, result, cotangent, axis: int) -> Sum:
        del result
        return Sum(jnp.broadcast_to(jnp.expand_dims(cotangent, axis), self.value.shape).astype(self.value.dtype))


class LogSumExp(NamedTuple):
    """Log of the sum of exp(value), with a true running maximum. A value of -inf takes no part."""

    value: jax.Array

    @staticmethod
    def empty(size: int):
        return jnp.full((size,), -jnp.inf), jnp.zeros((size,))

    def state(self, axis: int):
        top = jax.lax.stop_gradient(self.value.max(axis))
        return top, jnp.exp(self.value - jnp.expand_dims(finite(top), axis)).sum(axis)

    @staticmethod
    def merge(a, b):
        top = jnp.maximum(a[0], b[0])
        return top, sum(total * jnp.exp(m - finite(top)) for m, total in (a, b))

    @staticmethod
    def across(state, axis_name):
        top = jax.lax.pmax(state[0], axis_name)
        return top, jax.lax.psum(state[1] * jnp.exp(state[0] - finite(top)), axis_name)

    @staticmethod
    def finish(state):
        return finite(state[0]) + jnp.log(state[1])

    def pull(self, result, cotangent, axis: int) -> LogSumExp:
        result, cotangent = jnp.expand_dims(finite(result), axis), jnp.expand_dims(cotangent, axis)
        return LogSumExp(jnp.exp(self.value - result) * cotangent)


class SoftmaxMean(NamedTuple):
    """Mean of value, weighted by softmax(logits). finish gives (mean, log-sum-exp of logits)."""

    logits: jax.Array
    value: jax.Array

    @staticmethod
    def empty(size: int):
        return jnp.full((size,), -jnp.inf), jnp.zeros((size,)), jnp.zeros((size,))

    def state(self, axis: int):
        top = jax.lax.stop_gradient(self.logits.max(axis))
        weight = jnp.exp(self.logits - jnp.expand_dims(finite(top), axis))
        return top, weight.sum(axis), (weight * self.value).sum(axis)

    @staticmethod
    def merge(a, b):
        top = jnp.maximum(a[0], b[0])
        factors = jnp.exp(a[0] - finite(top)), jnp.exp(b[0] - finite(top))
        return top, *(x * factors[0] + y * factors[1] for x, y in zip(a[1:], b[1:], strict=True))

    @staticmethod
    def across(state, axis_name):
        top = jax.lax.pmax(state[0], axis_name)
        factor = jnp.exp(state[0] - finite(top))
        return top, *(jax.lax.psum(s * factor, axis_name) for s in state[1:])

    @staticmethod
    def finish(state):
        top, total, weighted = state
        return weighted / total, finite(top) + jnp.log(total)

    def pull(self, result, cotangent, axis: int) -> SoftmaxMean:
        mean, lse = (jnp.expand_dims(r, axis) for r in result)
        by_mean, by_lse = (jnp.expand_dims(c, axis) for c in cotangent)
        weight = jnp.exp(self.logits - finite(lse))
        return SoftmaxMean(weight * ((self.value - mean) * by_mean + by_lse), weight * by_mean)


Reduction = Sum | LogSumExp | SoftmaxMean


class Reductions:
    """The reductions a loss uses on one side of its tiles, by name. States and results are dicts with these names."""

    def __init__(self, terms: Mapping[str, Reduction]):
        self.kinds: dict[str, type[Reduction]] = {name: type(term) for name, term in terms.items()}

    def empty(self, count: int) -> dict:
        """States of `count` rows or columns before any tile."""
        return {name: kind.empty(count) for name, kind in self.kinds.items()}

    def merge(self, a: dict, b: dict) -> dict:
        return {name: kind.merge(a[name], b[name]) for name, kind in self.kinds.items()}

    def across(self, states: dict, axis_name) -> dict:
        """States merged over all devices of axis_name."""
        return {name: kind.across(states[name], axis_name) for name, kind in self.kinds.items()}

    def finish(self, states: dict) -> dict:
        """Results: [count] arrays, or tuples of them."""
        return {name: kind.finish(states[name]) for name, kind in self.kinds.items()}


def finite(top: jax.Array) -> jax.Array:
    """top, or 0 where nothing took part yet, so that -inf - -inf never happens."""
    return jnp.where(jnp.isfinite(top), top, 0.0)
