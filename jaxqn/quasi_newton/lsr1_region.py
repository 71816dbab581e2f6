"""L-SR1 as a quadratic model for a trust region: the newest m pairs, and an m-by-m spectrum.

    B = gamma I + Ψ M⁻¹ Ψᵀ = gamma I + V diag(d)⁻¹ Vᵀ,    Ψ = Y − gamma S,
    M = D + L + Lᵀ − gamma SᵀS,    L + D = tril(SᵀY),    V = Ψ Tᵀ,  T M Tᵀ = diag(d).

The columns of V are v = y − B s of the recursion, and T comes from the same factors without
pivoting as those of :mod:`jaxqn.quasi_newton.lsr1`, by duality. An orthonormal basis of V is
V̂ P w^(-1/2), from the eigenvalues w and eigenvectors P of the Gram matrix of its columns V̂ of
length 1. In that basis B is an m-by-m matrix, whose spectrum with gamma for all the rest is that of
B: the subproblem is one of m + 1 numbers, and is solved to rounding.

References:
  Byrd, Nocedal & Schnabel, Mathematical Programming 63 (1994), section 5; Burdakov, Gong, Zikrin &
  Yuan, Math. Prog. Comp. 9 (2017); Brust, Erway & Marcia, Comput. Optim. Appl. 66 (2017).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_number
from jaxqn.formulas import in_range, spectral_step
from jaxqn.linalg import dot, eps, safe_divide
from jaxqn.linalg.stacks import combine, dots, empty_stack, put_where, rounded
from jaxqn.linalg.vectors import cast_like, products, tree_dtype, vdot
from jaxqn.quasi_newton.compact_form import Grams, slots_by_age
from jaxqn.quasi_newton.lsr1 import lsr1_memory, pivots
from jaxqn.quasi_newton.protocol import Descent, Quadratic, QuasiNewton
from jaxqn.quasi_newton.sr1_region import first_curvature, refuse_line

__all__ = ["RegionMemoryState", "lsr1_trust_region"]


class RegionMemoryState(NamedTuple):
    """The newest m pairs, and inner products between them.

    Attributes:
      s: steps, a stack ``(m, *leaf.shape)``; a new pair overwrites the slot of the oldest.
      y: gradient changes, likewise.
      grams: SᵀS, SᵀY and YᵀY by slot, shape ``(3, m, m)``.
      gamma: B is gamma I beside the pairs; 0 before the first one.
      counts: ``absorbed``, ``refused``, ``slot`` and ``refused_last``, int32, shape ``(4,)``.
    """

    s: ArrayTree
    y: ArrayTree
    grams: Array
    gamma: Array
    counts: Array

    @property
    def size(self) -> int:
        """How many pairs there is room for."""
        return self.grams.shape[-1]

    @property
    def absorbed(self) -> Array:
        """Pairs absorbed since the start or the last reset, int32, shape ``(...)``."""
        return self.counts[..., 0]

    @property
    def refused(self) -> Array:
        """Pairs refused since the start, int32, shape ``(...)``."""
        return self.counts[..., 1]

    @property
    def slot(self) -> Array:
        """The slot to write next, int32, shape ``(...)``."""
        return self.counts[..., 2]

    @property
    def refused_last(self) -> Array:
        """Pairs refused since the last one that passed the test, int32, shape ``(...)``."""
        return self.counts[..., 3]


class Spectrum(NamedTuple):
    """B = gamma I + V C Vᵀ in an orthonormal basis Q = Ψ K of the columns of V.

    Attributes:
      values: eigenvalues of B along the columns of Q, shape ``(m,)``; gamma for missing ones.
      K: Q = Ψ K, pairs from the oldest to the newest, shape ``(m, m)``; 0 for missing columns.
    """

    values: Array
    K: Array


def lsr1_trust_region(
    m: int = 10, *, radius: float | None = None, history_dtype: Any = None
) -> QuasiNewton:
    """L-SR1 within a trust region: the matrix of the newest m pairs, and its exact subproblem.

    As :func:`jaxqn.sr1_trust_region`, with B = gamma I before the pairs in memory, gamma being the
    largest 2 yᵀy/sᵀy of those with sᵀy > 0. No matrix has more than m rows, and vectors stay
    pytrees, sharded as the parameters are. The form for a line search, which takes bounds and a
    ``hess_inv0``, is :func:`jaxqn.lsr1_memory`.

    Args:
      m: pairs to keep.
      radius: as in :func:`jaxqn.sr1_trust_region`.
      history_dtype: as in :func:`jaxqn.lbfgs_memory`.

    Returns:
      A :class:`jaxqn.QuasiNewton` over pytrees, for :func:`jaxqn.minimize` and its kin.

    Raises:
      TypeError, ValueError: as :func:`jaxqn.lbfgs_memory`; ``radius`` is no positive number.

    Cost: per evaluation four reads of the history, two for the products of a pair and two for the
    step, O(m² + m n), and two m-by-m spectra. Memory: 2 m n numbers.

    Example:
      >>> from jaxqn import minimize
      >>> well = lambda x: jnp.sum((x**2 - 1) ** 2)
      >>> result = minimize(well, jnp.array([0.1, 2.0]), method=lsr1_trust_region())
      >>> [round(abs(float(value)), 3) for value in result.x]
      [1.0, 1.0]

    References:
      Brust, Erway & Marcia, Comput. Optim. Appl. 66 (2017).
    """
    lsr1_memory(m, history_dtype=history_dtype)  # raises for m and history_dtype
    radius = None if radius is None else check_number("radius", radius, "positive")
    dtype = None if history_dtype is None else jnp.dtype(history_dtype)
    return _verbs(int(m), radius, dtype)


@functools.cache
def _verbs(m: int, radius: float | None, history_dtype: Any) -> QuasiNewton:
    return QuasiNewton(
        init=functools.partial(_init, m, history_dtype),
        update=_learn,
        apply=_apply,
        advance=refuse_line,
        reset=_reset,
        dense=False,
        model=Quadratic(_learn, _step, radius),
    )


def _init(m: int, history_dtype: Any, x: ArrayTree, H0: Any = None) -> RegionMemoryState:
    if H0 is not None:
        raise ValueError(
            "L-SR1 in a trust region starts from no hess_inv0: take method='lsr1', which then "
            "searches along lines, or jaxqn.lsr1_memory()"
        )
    dtype = tree_dtype(x)
    return RegionMemoryState(
        s=empty_stack(m, x, history_dtype),
        y=empty_stack(m, x, history_dtype),
        grams=jnp.zeros((3, m, m), dtype),
        gamma=jnp.zeros((), dtype),
        counts=jnp.zeros((4,), jnp.int32),
    )


def _by_age(state: RegionMemoryState) -> tuple[Array, Array, Array, Array]:
    """SᵀS, SᵀY and YᵀY from the oldest to the newest pair, 0 for missing ones; which there are."""
    _, valid = slots_by_age(state)
    both = valid[:, None] & valid[None]
    ss, sy, yy = jnp.where(both, jnp.roll(state.grams, -state.slot, (1, 2)), 0)
    return ss, sy, yy, valid


def _dual(state: RegionMemoryState) -> Grams:
    """What the recursion of L-SR1 is made of, with steps and gradient changes exchanged."""
    ss, sy, yy, valid = _by_age(state)
    positive = state.gamma > 0
    over = safe_divide(jnp.diagonal(yy), state.gamma, positive)
    return Grams(jnp.triu(sy.T), state.gamma * ss, over, valid)


def _learn(state: RegionMemoryState, s: ArrayTree, y: ArrayTree) -> RegionMemoryState:
    s, y = rounded(s, state.s), rounded(y, state.y)
    m, slot, dtype = state.size, state.slot, state.grams.dtype
    ss, sy, yy = products((s, s), (s, y), (y, y))
    rows = [dots(state.s, s, dtype), dots(state.s, y, dtype)]
    rows += [dots(state.y, s, dtype), dots(state.y, y, dtype)]
    here = jnp.arange(m, dtype=slot.dtype) == slot
    own = jnp.stack([ss, sy, sy, yy])
    of_s, of_sy, of_ys, of_y = jnp.where(here[None], own[:, None], jnp.stack(rows))

    def put(gram: Array, column: Array, row: Array) -> Array:
        gram = jnp.where(here[None], column[:, None], gram)
        return jnp.where(here[:, None], row[None], gram)

    old = state.grams
    grams = jnp.stack([put(old[0], of_s, of_s), put(old[1], of_sy, of_ys), put(old[2], of_y, of_y)])
    size = jnp.minimum(state.absorbed + 1, m)
    newer = jnp.stack([size, state.refused, (slot + 1) % m, state.refused_last])
    trial = state._replace(grams=grams, counts=newer)
    gamma = jnp.maximum(_largest_curvature(trial), 0)
    gamma = jnp.where(gamma > 0, gamma, first_curvature(ss, sy, yy))
    usable = (ss > 0) & jnp.all(jnp.isfinite(grams)) & in_range(ss, yy) & (gamma > 0)
    passes = usable & pivots(_dual(trial._replace(gamma=gamma)))[2][-1]
    # Pairs that hide what all new ones say give way to them: they count once the others are gone.
    accepted = passes | (usable & (state.refused_last >= m))
    changes = accepted | (usable & (state.absorbed == 0))
    refused = (~accepted & (ss > 0)).astype(slot.dtype) * jnp.array([0, 1, 0, 1], slot.dtype)
    kept = jnp.where(passes, 0, 1).astype(slot.dtype) * trial.counts[3:]
    return RegionMemoryState(
        s=put_where(accepted, state.s, slot, s),
        y=put_where(accepted, state.y, slot, y),
        grams=jnp.where(accepted, grams, old),
        gamma=jnp.where(changes, gamma, state.gamma),
        counts=jnp.where(accepted, trial.counts.at[3:].set(kept), state.counts + refused),
    )


def _largest_curvature(state: RegionMemoryState) -> Array:
    """Twice the largest yᵀy/sᵀy of the pairs with sᵀy > 0; 0 where there are none."""
    ss, sy, yy = (jnp.diagonal(gram) for gram in _by_age(state)[:3])
    curved = sy > 10 * eps(sy.dtype) * jnp.sqrt(ss) * jnp.sqrt(yy)
    curvature = safe_divide(2 * yy, sy, curved)
    return jnp.max(jnp.where(jnp.isfinite(curvature), curvature, 0))


def _spectrum(state: RegionMemoryState) -> Spectrum:
    """The eigenvalues and eigenvectors of B in the span of V."""
    ss, sy, yy, valid = _by_age(state)
    gamma, digit = state.gamma, eps(ss.dtype)
    T, d, counts = pivots(_dual(state))
    gram = yy - gamma * (sy + sy.T) + gamma**2 * ss
    gram = dot(dot(T, gram), T.T)
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    counts = counts & valid & (lengths > 0)
    inverse = safe_divide(jnp.ones_like(d), lengths, counts)
    w, P = jnp.linalg.eigh(inverse[:, None] * inverse[None] * gram)
    kept = w > 10 * len(d) * digit * jnp.max(w)
    root = jnp.sqrt(jnp.where(kept, w, 0))
    weights = safe_divide(lengths**2, d, counts)
    C = dot(P.T * weights[None], P) * root[:, None] * root[None]
    values, U = jnp.linalg.eigh(0.5 * (C + C.T))
    basis = dot(P * safe_divide(jnp.ones_like(w), root, kept)[None], U)
    K = dot(T.T, inverse[:, None] * basis)
    return Spectrum(gamma + values, K)


def _along(state: RegionMemoryState, K: Array, g: ArrayTree) -> Array:
    """Qᵀg = KᵀΨᵀg."""
    dtype = state.grams.dtype
    psi = dots(state.y, g, dtype) - state.gamma * dots(state.s, g, dtype)
    valid = _by_age(state)[3]
    return dot(jnp.where(valid, jnp.roll(psi, -state.slot), 0), K)


def _mixed(state: RegionMemoryState, t: Array, g: ArrayTree, c: Array) -> ArrayTree:
    """The vector t g + Q c, c given as coefficients of Ψ."""
    c = jnp.roll(jnp.where(_by_age(state)[3], c, 0), state.slot)
    in_y, in_s = combine(c, state.y, g), combine(-state.gamma * c, state.s, g)
    total = jax.tree.map(lambda a, b, v: t.astype(v.dtype) * v + (a + b), in_y, in_s, g)
    return cast_like(total, g)


def _step(state: RegionMemoryState, g: ArrayTree, radius: Array, mu: Array) -> Descent:
    del mu
    values, K = _spectrum(state)
    a, gg, gamma = _along(state, K, g), vdot(g, g), state.gamma
    beside = jnp.sqrt(jnp.maximum(gg - dot(a, a), 0))
    values, a_all = jnp.append(values, gamma), jnp.append(a, beside)
    step = spectral_step(values, a_all, radius)
    c, rest = step.c[:-1], step.c[-1]
    # What is beside the basis goes along g − Q Qᵀg.
    t = safe_divide(rest, beside, beside > 0)
    p = _mixed(state, t, g, dot(K, c - t * a))
    promised = -(dot(a_all, step.c) + 0.5 * jnp.sum(values * step.c**2))
    return Descent(p, step.mu, jnp.zeros_like(step.mu), promised, step.is_minimum)


def _apply(state: RegionMemoryState, g: ArrayTree) -> ArrayTree:
    """B⁻¹ g; g itself before the first pair."""
    values, K = _spectrum(state)
    one = jnp.ones_like(state.gamma)
    t = jnp.where(state.gamma > 0, one / jnp.where(state.gamma > 0, state.gamma, 1), one)
    c = (safe_divide(jnp.ones_like(values), values, values != 0) - t) * _along(state, K, g)
    return _mixed(state, t, g, dot(K, c))


def _reset(state: RegionMemoryState, when: Array) -> RegionMemoryState:
    nothing = state.counts * jnp.array([0, 1, 1, 0], state.counts.dtype)
    return state._replace(
        gamma=jnp.where(when, jnp.zeros_like(state.gamma), state.gamma),
        counts=jnp.where(when, nothing, state.counts),
    )
