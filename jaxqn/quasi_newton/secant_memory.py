"""Limited memory of an inverse Jacobian: Broyden's good and bad method, and Anderson's.

The newest m pairs are stacks S and Y, leaf by leaf like x, so that every leaf keeps its sharding.
In compact form every method here is

    H = gamma I + (S − gamma Y) K⁻¹ Zᵀ

with an m-by-m matrix K of inner products, the pairs ordered by age:

    good       Z = gamma S,   K = gamma SᵀY − L,   L the part of SᵀS below its diagonal
    bad        Z = Y,         K = the part of YᵀY on and above its diagonal
    anderson   Z = Y,         K = YᵀY

"anderson" meets all m secant equations H Y = S by least squares at once, where "bad", its member of
one equation at a time, meets the newest exactly.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_count
from jaxqn.formulas import in_range
from jaxqn.linalg import eps
from jaxqn.linalg.stacks import combine, dots, empty_stack, put_where
from jaxqn.linalg.vectors import cast_like, products, tree_dtype
from jaxqn.quasi_newton.inverse_jacobian import InverseJacobian

__all__ = ["SecantState", "newton_krylov", "secant_memory"]

Form = Literal["good", "bad", "anderson"]


class SecantState(NamedTuple):
    """The newest m pairs, and inner products between them.

    Attributes:
      s: steps, a stack ``(m, *leaf.shape)``; a new pair overwrites the slot of the oldest.
      y: changes of F, likewise.
      ss: sᵢᵀsⱼ by slot, shape ``(m, m)``.
      sy: sᵢᵀyⱼ, likewise.
      yy: yᵢᵀyⱼ, likewise.
      gamma: H = gamma I without pairs, shape ``()``.
      counts: Jacobians taken products of, pairs kept, pairs refused, and the slot to write next;
        int32, shape ``(4,)``.
    """

    s: ArrayTree
    y: ArrayTree
    ss: Array
    sy: Array
    yy: Array
    gamma: Array
    counts: Array

    @property
    def njev(self) -> Array:
        """Jacobians of which products were taken, int32, shape ``(...)``."""
        return self.counts[..., 0]


@functools.cache
def secant_memory(
    m: int = 10, *, form: Form = "good", gamma: float | None = None
) -> InverseJacobian:
    """An inverse Jacobian from the newest m pairs.

    Args:
      m: pairs to keep.
      form: "good" or "bad", Broyden's; or "anderson".
      gamma: H = gamma I at the start; by default the host takes it from a product with the
        Jacobian.

    Returns:
      An :class:`InverseJacobian` over pytrees. Memory: 2 m n numbers; a product reads them twice.

    References:
      Byrd, Nocedal & Schnabel, Math. Program. 63 (1994), section 6; Fang & Saad, Numer. Linear
      Algebra Appl. 16 (2009), for Anderson's method as the multisecant bad Broyden; Walker & Ni,
      SIAM J. Numer. Anal. 49 (2011).
    """
    m = check_count("memory", m)
    return InverseJacobian(
        functools.partial(_init, m, gamma),
        functools.partial(_update, form),
        functools.partial(_apply, form),
        _renew,
        dense=False,
    )


@functools.cache
def newton_krylov() -> InverseJacobian:
    """Newton's method with every step by GMRES, which takes products with the Jacobian alone.

    References:
      Knoll & Keyes, J. Comput. Phys. 193 (2004); Eisenstat & Walker, SIAM J. Sci. Comput. 17
      (1996), for the tolerance of GMRES.
    """
    return InverseJacobian(
        functools.partial(_init, 1, None),
        lambda state, _s, _y: state,
        functools.partial(_apply, "good"),
        _renew,
        dense=False,
        every_step=True,
        solve=_by_gmres,
    )


def _by_gmres(push: Any, F: ArrayTree, rtol: Array) -> ArrayTree:
    return jax.scipy.sparse.linalg.gmres(push, F, tol=rtol, restart=30, maxiter=4)[0]


def _init(m: int, gamma: float | None, x: ArrayTree, J0: Any = None) -> SecantState:
    dtype = tree_dtype(x)
    nothing = jnp.zeros((m, m), dtype)
    scale = jnp.asarray(1.0 if gamma is None else gamma, dtype)
    scale = scale if J0 is None else 1 / jnp.asarray(J0, dtype)
    return SecantState(
        s=empty_stack(m, x),
        y=empty_stack(m, x),
        ss=nothing,
        sy=nothing,
        yy=nothing,
        gamma=scale,
        counts=jnp.zeros((4,), jnp.int32),
    )


def _update(form: Form, state: SecantState, s: ArrayTree, y: ArrayTree) -> SecantState:
    m, slot = state.ss.shape[0], state.counts[3]
    dtype = state.ss.dtype
    ss, sy, yy = products((s, s), (s, y), (y, y))
    here = jnp.arange(m, dtype=slot.dtype) == slot
    Ss, Sy = dots(state.s, s, dtype), dots(state.s, y, dtype)
    Ys, Yy = dots(state.y, s, dtype), dots(state.y, y, dtype)

    def put(gram: Array, row: Array, column: Array, both: Array) -> Array:
        gram = jnp.where(here[:, None], row[None], gram)
        gram = jnp.where(here[None], column[:, None], gram)
        return jnp.where(here[:, None] & here[None], both, gram)

    trial = state._replace(
        ss=put(state.ss, Ss, Ss, ss),
        sy=put(state.sy, Ys, Sy, sy),
        yy=put(state.yy, Yy, Yy, yy),
    )
    numbers = jnp.concatenate([Ss, Sy, Ys, Yy, jnp.stack([ss, sy, yy])])
    accepted = in_range(ss, yy) & jnp.all(jnp.isfinite(numbers))
    if form == "good":
        accepted &= _keeps_regular(state, s, y, ss)
    kept = jnp.minimum(state.counts[1] + 1, m)
    counts = jnp.stack([state.counts[0], kept, state.counts[2], (slot + 1) % m])
    refused = state.counts.at[2].add((~accepted & (ss > 0)).astype(slot.dtype))
    return SecantState(
        s=put_where(accepted, state.s, slot, s),
        y=put_where(accepted, state.y, slot, y),
        ss=jnp.where(accepted, trial.ss, state.ss),
        sy=jnp.where(accepted, trial.sy, state.sy),
        yy=jnp.where(accepted, trial.yy, state.yy),
        gamma=state.gamma,
        counts=jnp.where(accepted, counts, refused),
    )


def _keeps_regular(state: SecantState, s: ArrayTree, y: ArrayTree, ss: Array) -> Array:
    """Whether the good update has a divisor, |sᵀH y| > 10 eps ‖s‖ ‖H y‖."""
    Hy = _apply("good", state, y)
    sHy, HyHy = products((s, Hy), (Hy, Hy))
    return jnp.abs(sHy) > 10 * eps(ss.dtype) * jnp.sqrt(ss) * jnp.sqrt(HyHy)


def _apply(form: Form, state: SecantState, F: ArrayTree) -> ArrayTree:
    gamma, dtype = state.gamma, state.ss.dtype
    oldest = jnp.where(state.counts[1] < state.ss.shape[0], 0, state.counts[3])
    age = jnp.arange(state.ss.shape[0], dtype=oldest.dtype)
    valid = age < state.counts[1]
    both = valid[:, None] & valid[None]

    def by_age(gram: Array) -> Array:
        return jnp.where(both, jnp.roll(jnp.roll(gram, -oldest, 0), -oldest, 1), 0)

    c = dots(state.s if form == "good" else state.y, F, dtype)
    c = jnp.where(valid, jnp.roll(c, -oldest), 0)
    if form == "good":
        K = gamma * by_age(state.sy) - jnp.tril(by_age(state.ss), -1)
        c = gamma * c
    else:
        yy = by_age(state.yy)
        K = jnp.triu(yy) if form == "bad" else yy
    w = jnp.roll(_solved(K, c, valid, form), oldest)
    mixed = combine(w, state.s, F), combine(w, state.y, F)
    out = jax.tree.map(
        lambda f, s, y: gamma.astype(f.dtype) * (f - y.astype(f.dtype)) + s.astype(f.dtype),
        F,
        *mixed,
    )
    return cast_like(out, F)


def _solved(K: Array, c: Array, valid: Array, form: Form) -> Array:
    """K⁻¹ c over the valid pairs; 0 where that is not finite."""
    D = jnp.sqrt(jnp.abs(jnp.diagonal(K)))
    D = jnp.where(valid & (D > 0), D, 1)
    K = K / (D[:, None] * D[None]) + jnp.diag((~valid).astype(K.dtype))
    if form == "anderson":  # pairs that almost repeat others count little
        K = K + 10 * K.shape[0] * eps(K.dtype) * jnp.eye(K.shape[0], dtype=K.dtype)
    w = jnp.linalg.solve(K, c / D) / D
    return jnp.where(valid & jnp.all(jnp.isfinite(w)), w, 0)


def _renew(state: SecantState, gamma: Array) -> SecantState:
    """No pairs, and H = gamma I."""
    kept = state.counts * jnp.array([1, 0, 1, 0], state.counts.dtype)
    return state._replace(gamma=gamma.astype(state.gamma.dtype), counts=kept.at[0].add(1))
