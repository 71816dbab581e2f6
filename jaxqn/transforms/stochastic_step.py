"""One step of the stochastic L-BFGS: Adam's means, a pair when one is due, and the direction."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg.vectors import vdot
from jaxqn.quasi_newton import absorb_noisy_pair, bounded_direction, lbfgs_memory
from jaxqn.transforms.common import (
    BoundObjective,
    adam_diagonal,
    all_entries,
    at_least_float32,
    unbiased,
)

__all__ = [
    "AdamOptions",
    "PairOptions",
    "PointAndGradient",
    "ScaleByStochasticLBFGSState",
    "stochastic_step",
    "widened",
]


class AdamOptions(NamedTuple):
    """Adam's settings, hashable."""

    b1: float
    b2: float
    eps: float


class PairOptions(NamedTuple):
    """The arguments of :func:`jaxqn.scale_by_stochastic_lbfgs` that concern pairs; hashable.

    ``decay`` is ``pair_decay`` there.
    """

    memory: int
    every: int
    average: bool
    theta: float
    floor: float
    noise: float
    decay: float
    clip: float


class PointAndGradient(NamedTuple):
    """A point and the gradient there, or running means of both."""

    params: ArrayTree
    updates: ArrayTree


class ScaleByStochasticLBFGSState(NamedTuple):
    """State of :func:`jaxqn.scale_by_stochastic_lbfgs`; vectors are in float32 or wider.

    Attributes:
      count: finite gradients seen, int32.
      gradients: extra gradients evaluated for pairs, int32.
      mu: running mean of the gradients.
      nu: running mean of their squares.
      window: means over the calls since the last pair, a :class:`PointAndGradient`.
      anchor: the beginning of the next pair, a :class:`PointAndGradient`.
      pair: running means of s and of y.
      gamma: running mean of sᵀy/yᵀD y, shape ``()``; 0 before the first pair.
      approx: state of the limited memory; ``approx.absorbed`` has the number of pairs absorbed.
    """

    count: Array  # type: ignore[assignment]
    gradients: Array
    mu: ArrayTree
    nu: ArrayTree
    window: PointAndGradient
    anchor: PointAndGradient
    pair: tuple[ArrayTree, ArrayTree]
    gamma: Array
    approx: Any


def widened(tree: ArrayTree) -> ArrayTree:
    """Copies in float32 or wider."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, at_least_float32(jnp.result_type(leaf))), tree)


@functools.partial(jax.jit, static_argnames=("objective", "adam", "pairs"))
def stochastic_step(
    updates: optax.Updates,
    state: ScaleByStochasticLBFGSState,
    params: optax.Params,
    pair: tuple[optax.Params, optax.Updates] | None,
    diagonal: ArrayTree | None,
    arrays: list[Any],
    *,
    objective: BoundObjective | None,
    adam: AdamOptions,
    pairs: PairOptions,
) -> tuple[optax.Updates, ScaleByStochasticLBFGSState]:
    """The direction H m̂ and the next state; ``diagonal`` is D, or ``None`` for Adam's."""
    finite = all_entries(jnp.isfinite, (updates, params))
    now = PointAndGradient(widened(params), widened(updates))
    place = state.count % pairs.every + 1
    anchor, state = state.anchor, _with_means(state, now, place, finite, adam)
    if diagonal is not None:
        D = jax.tree.map(lambda d, v: jnp.asarray(d, v.dtype), diagonal, state.nu)
    else:
        D = adam_diagonal(state.nu, adam.b2, adam.eps, state.count)

    if pair is not None:
        pair = jax.tree.map(lambda v: jnp.where(finite, v, 0), widened(pair))
        state = _absorb_pair(state, pair, D, pairs)
    else:
        end = state.window if pairs.average or objective is None else now
        due = finite & (place == pairs.every)

        def absorb() -> ScaleByStochasticLBFGSState:
            gradient = None if objective is None else _gradient_of(objective, arrays, params)
            begin, last, more = _ends_of_pair(anchor, end, gradient, pairs)
            after = state._replace(gradients=state.gradients + more)
            return _absorb_pair(after, tuple(optax.tree.sub(last, begin)), D, pairs)

        # A cond, so that XLA evaluates the extra gradients only when a pair is due.
        state = jax.lax.cond(due & (state.count > pairs.every), absorb, lambda: state)
        state = state._replace(anchor=optax.tree.where(due, end, state.anchor))
    mean = unbiased(state.mu, adam.b1, state.count)
    qn = lbfgs_memory(pairs.memory)
    direction = bounded_direction(qn, state.approx, mean, D, clip=pairs.clip)
    cast = jax.tree.map(lambda d, u: jnp.where(finite, d.astype(u.dtype), u), direction, updates)
    return cast, state


def _with_means(
    state: ScaleByStochasticLBFGSState,
    now: PointAndGradient,
    place: Array,
    finite: Array,
    adam: AdamOptions,
) -> ScaleByStochasticLBFGSState:
    """The state with one more gradient in its means, where ``finite`` holds.

    ``place`` counts the calls of the window from 1.
    """

    def mixed(old: ArrayTree, new: ArrayTree, weight: Any) -> ArrayTree:
        weight = jnp.asarray(weight, state.gamma.dtype)

        def of_leaf(old: Array, new: Array) -> Array:
            return jnp.where(finite, old + weight.astype(old.dtype) * (new - old), old)

        return jax.tree.map(of_leaf, old, new)

    squares = jax.tree.map(jnp.square, now.updates)
    return state._replace(
        count=state.count + finite.astype(jnp.int32),
        mu=mixed(state.mu, now.updates, 1 - adam.b1),
        nu=mixed(state.nu, squares, 1 - adam.b2),
        window=mixed(state.window, now, 1 / jnp.asarray(place, state.gamma.dtype)),
    )


def _gradient_of(
    objective: BoundObjective, arrays: list[Any], params: optax.Params
) -> Callable[[ArrayTree], ArrayTree]:
    """The gradient of the objective, in float32 or wider, as a function of such a point."""

    def gradient(point: ArrayTree) -> ArrayTree:
        point = jax.tree.map(lambda v, p: v.astype(jnp.result_type(p)), point, params)
        return widened(jax.grad(objective.__call__)(point, arrays))

    return gradient


def _ends_of_pair(
    begin: PointAndGradient,
    end: PointAndGradient,
    gradient: Callable[[ArrayTree], ArrayTree] | None,
    pairs: PairOptions,
) -> tuple[PointAndGradient, PointAndGradient, int]:
    """Both ends of a pair, and the number of gradients evaluated for the pair.

    With a ``gradient``, both ends have gradients of the present batch: the one at ``begin`` is
    evaluated anew, and so is the one at ``end`` where ``end`` is a mean.
    """
    more = 0
    if gradient is not None:
        begin, more = begin._replace(updates=gradient(begin.params)), 1
        if pairs.average:
            end, more = end._replace(updates=gradient(end.params)), 2
    return begin, end, more


def _absorb_pair(
    state: ScaleByStochasticLBFGSState,
    newest: tuple[ArrayTree, ArrayTree],
    D: ArrayTree,
    pairs: PairOptions,
) -> ScaleByStochasticLBFGSState:
    """Mix a pair into the running means of s and y, and put the means into the memory."""
    sound = jnp.isfinite(sum(vdot(v, v) for v in newest)) & (vdot(newest[0], newest[0]) > 0)

    def mixed(old: Array, new: Array) -> Array:
        return jnp.where(sound, pairs.decay * old + (1 - pairs.decay) * new, old)

    pair = jax.tree.map(mixed, state.pair, newest)
    s, y = (jax.tree.map(lambda v: jnp.where(sound, v, 0), part) for part in pair)
    approx, gamma = absorb_noisy_pair(
        lbfgs_memory(pairs.memory),
        state.approx,
        (s, y),
        state.gamma,
        D,
        theta=pairs.theta,
        floor=pairs.floor,
        sigmas=pairs.noise,
    )
    return state._replace(pair=pair, gamma=gamma, approx=approx)
