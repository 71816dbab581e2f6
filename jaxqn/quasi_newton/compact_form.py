"""The compact form of limited memory: all pairs at once, instead of one after the other.

The two-loop recursion (Nocedal & Wright, algorithm 7.4) reads pair after pair, and each of its 2m
inner products waits for the one before. Byrd, Nocedal & Schnabel (1994, theorem 2.2) write the same
H as one correction of rank 2m. With the pairs as columns of S and Y, from the oldest to the newest,

    H = H₀ + [S  H₀Y] [[R⁻ᵀ(D + YᵀH₀Y)R⁻¹, −R⁻ᵀ], [−R⁻¹, 0]] [S  H₀Y]ᵀ,
    R = triu(SᵀY),   D = diag(SᵀY).

Multiplied out, a product is

    R p = Sᵀg,   Rᵀ w = D p − YᵀH₀(g − Y p),   H g = H₀(g − Y p) + S w,

and this is the two-loop recursion again. Its first loop makes ``alpha`` from the newest pair to the
oldest, which is the substitution that solves R p = Sᵀg: p holds the ``alpha``. Its second loop
makes ``beta`` from the oldest to the newest, which solves the other triangular system: w holds
``alpha − beta``.

What the compact form gains is the order of the work. Since YᵀH₀(g − Y p) = YᵀH₀g − (YᵀH₀Y) p, one
read of the history makes all the inner products, Sᵀg and YᵀH₀g; the triangular systems are m by m;
a second read makes the sum. Sharded parameters need one round of reductions instead of 2m.

SᵀY and YᵀH₀Y are kept from pair to pair: a new pair replaces one row and one column. They are
:class:`Grams`, the only place that has to know which pair is older, since R is triangular in that
order. A :class:`CompactForm` says how one method makes p and w from them: L-BFGS as above, L-SR1
with its own m-by-m matrix.

References:
  Byrd, Nocedal & Schnabel, Mathematical Programming 63 (1994), theorem 2.2; Nocedal & Wright,
  Numerical Optimization, 2nd ed., 2006, section 7.2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.quasi_newton.memory_state import MemoryState

__all__ = ["CompactForm", "Grams", "by_age", "slots_by_age"]


class Grams(NamedTuple):
    """Inner products between the pairs, oldest pair first; zero for pairs that are missing.

    Attributes:
      sy: R = triu(SᵀY), shape ``(m, m)``.
      yy: YᵀH₀Y, shape ``(m, m)``.
      ss: diagonal of SᵀH₀⁻¹S, shape ``(m,)``.
      valid: which pairs there are, shape ``(m,)``.
    """

    sy: Array
    yy: Array
    ss: Array
    valid: Array


class CompactForm(NamedTuple):
    """What one limited-memory method does with its pairs.

    Attributes:
      scale: gamma is this times sᵀy/yᵀy of the newest pair with curvature.
      accepts: ``(grams, curved) -> bool``, about the newest pair.
      coefficients: ``(grams, Sᵀg, YᵀH₀g, gᵀH₀g) -> (p, w)``.
      two_halves: ``(grams, Sᵀg) -> p`` and ``(grams, p, YᵀH₀(g − Y p)) -> w``, for any H₀; ``None``
        for a method whose p needs YᵀH₀g.
      state: the class of the method's states, which tells the states of two methods apart.
    """

    scale: float
    accepts: Callable[[Grams, Array], Array]
    coefficients: Callable[[Grams, Array, Array, Array], tuple[Array, Array]]
    two_halves: tuple[Callable[..., Array], Callable[..., Array]] | None = None
    state: type[MemoryState] = MemoryState


def slots_by_age(state: Any) -> tuple[Array, Array]:
    """The slots from the oldest to the newest pair of a memory, and which of them hold one."""
    m = state.size
    rank = jnp.arange(m, dtype=jnp.int32)
    return (state.slot + rank) % m, rank >= m - state.absorbed


def by_age(state: MemoryState) -> Grams:
    """The inner products of a state, from the oldest to the newest pair."""
    oldest, (_, valid) = state.slot, slots_by_age(state)
    both = valid[:, None] & valid[None]

    def triangle(table: Array) -> Array:
        return jnp.triu(jnp.where(both, jnp.roll(table, -oldest, (0, 1)), 0))

    yy = state.gamma * triangle(state.yy)
    ss = jnp.where(valid, jnp.roll(state.ss, -oldest), 0) / state.gamma
    return Grams(triangle(state.sy), yy + jnp.triu(yy, 1).T, ss, valid)
