"""Reductions over the rows and columns of a matrix of which only one tile exists at a time.

A reduction holds matrices [r, c] of one tile. Over all tiles together it gives one number for each row (axis=1) or
column (axis=0). `state` is the running form: a tuple of vectors that can be merged with the state of another tile, or
another device, in any order. `slopes` turns the final state, and the derivative of the loss by the result, into the
vectors from which `pull` rebuilds the derivative by the matrices, tile by tile.
"""

from __future__ import annotations

import functools
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

    @staticmethod
    def slopes(state, cotangent):
        del state
        return (cotangent,)

    def pull(self, slopes, axis: int) -> Sum:
        return Sum(jnp.broadcast_to(jnp.expand_dims(slopes[0], axis), self.value.shape).astype(self.value.dtype))


class LogSumExp(NamedTuple):
    """Log of the sum of exp(value), with a true running maximum. A value of -inf takes no part.

    also: more values of the same rows and columns. One sum of both is more precise than a sum of two rounded logs.
    """

    value: jax.Array
    also: jax.Array | None = None

    @staticmethod
    def empty(size: int):
        return jnp.full((size,), -jnp.inf), jnp.zeros((size,))

    def state(self, axis: int):
        values = jax.tree.leaves(tuple(self))
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, [v.max(axis) for v in values]))
        return top, sum(jnp.exp(v - jnp.expand_dims(finite(top), axis)).sum(axis) for v in values)

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

    @staticmethod
    def slopes(state, cotangent):
        # Not by the log-sum-exp: it is rounded (by 4e-6 near 100), and the shares would not add up to 1.
        top, total = state
        return finite(top), cotangent / jnp.where(total > 0, total, 1.0)

    def pull(self, slopes, axis: int) -> LogSumExp:
        top, share = (jnp.expand_dims(s, axis) for s in slopes)
        return jax.tree.map(lambda v: jnp.exp(v - top) * share, self)


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

    @staticmethod
    def slopes(state, cotangent):
        top, total, weighted = state
        return finite(top), weighted / total, *(c / total for c in cotangent)

    def pull(self, slopes, axis: int) -> SoftmaxMean:
        top, mean, by_mean, by_lse = (jnp.expand_dims(s, axis) for s in slopes)
        weight = jnp.exp(self.logits - top)
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

    def slopes(self, states: dict, cotangents: dict) -> dict:
        """What `pull` needs of the final states and of the loss's derivatives by their results: tuples of [count]."""
        return {name: kind.slopes(states[name], cotangents[name]) for name, kind in self.kinds.items()}


def in_pairs(a: jax.Array) -> jax.Array:
    """Sum over the last dimension [..., n], by halves: an error of log2(n) roundings, where one after another has n."""
    while a.shape[-1] > 1:
        half = (a.shape[-1] + 1) // 2
        rest = jnp.pad(a[..., half:], [(0, 0)] * (a.ndim - 1) + [(0, 2 * half - a.shape[-1])])
        a = a[..., :half] + rest
    return a[..., 0]


def finite(top: jax.Array) -> jax.Array:
    """top, or 0 where nothing took part yet, so that -inf - -inf never happens."""
    return jnp.where(jnp.isfinite(top), top, 0.0)
