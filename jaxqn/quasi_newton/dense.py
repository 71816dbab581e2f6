"""A dense inverse Hessian: an n-by-n matrix, with the newest corrections in a panel beside it.

A product reads both. Writing corrections into the matrix is a pass over n² numbers, which only a
full panel needs.
"""

import functools

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.checks import check_count
from jaxqn.formulas import Correction, Pair, Rule, correction_vectors, has_curvature, osbfgs_rule
from jaxqn.linalg import dot, inner, safe_divide, update_if, vectors
from jaxqn.quasi_newton.dense_state import DenseState, identity, panel_of
from jaxqn.quasi_newton.protocol import Face, QuasiNewton

__all__ = ["default_panel", "dense"]


def default_panel(n: int) -> int:
    """Pairs that wait in the panel by default: 0 for small n, 32 for large.

    On a CPU a panel makes an iteration a quarter to a half faster from n = 300 on. The program also
    compiles more slowly, by what one or two thousand iterations save. On an accelerator a pass over
    the matrix is cheap up to larger n, and a branch is expensive.
    """
    return 32 if n >= (1000 if jax.default_backend() == "cpu" else 5000) else 0


@functools.cache
def dense(
    rule: Rule = osbfgs_rule, *, scale_init: float = 1.0, panel: int | None = None
) -> QuasiNewton:
    """A dense inverse-Hessian approximation, corrected by ``rule``.

    An iteration needs one product H g: H y is a difference of two such products. The rank-two
    correction waits in a panel of 2 ``panel`` vectors, which is folded into the matrix once it is
    full. An iteration costs (1 + 2/panel) passes over n² numbers, or 3 with ``panel=0``.

    Args:
      rule: what to do with a pair; see :mod:`jaxqn.rules`. The default, ``osbfgs_rule``, is BFGS
        with Oren and Spedicato's test for self-scaling.
      scale_init: multiply the initial H = I by this times sᵀy/yᵀy before the first update
        (Nocedal & Wright, eq. 6.20); 0 leaves it I. SR1 needs less than 1: with 1 it refuses the
        first pair, whose s − H y is orthogonal to y. An H0 given by the caller is never rescaled.
      panel: pairs to defer; by default 32 for large n (on a CPU from 1000, on an accelerator from
        5000) and 0 for small n, where the program compiles faster. For many runs of one shape on a
        CPU 32 pays from n = 300 on.

    Returns:
      A :class:`QuasiNewton` over flat vectors. Memory: n² + 2 ``panel`` n numbers.

    Raises:
      TypeError: ``rule`` is no function.
      ValueError: ``panel`` is not a whole number.

    Example:
      >>> from jaxqn.formulas import bfgs_rule
      >>> qn = dense(bfgs_rule)
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> state = qn.update(qn.init(jnp.zeros(2)), s, y)
      >>> qn.apply(state, jnp.array([2.0, 2.0])).tolist()
      [1.0, 1.0]
    """
    if not callable(rule):
        raise TypeError(f"rule must be a function such as jaxqn.rules.bfgs_rule, not {rule!r}")
    panel = None if panel is None else check_count("panel", panel, least=0)

    def init(x: Array, H0: Array | None = None) -> DenseState:
        n, dtype = x.shape[0], x.dtype
        k = default_panel(n) if panel is None else panel
        given = H0 is not None
        return DenseState(
            matrix=jnp.array(H0, dtype) if given else jnp.zeros((n, n), dtype),
            base=jnp.array([0, 1] if given else [1, 0], dtype),
            panel=jnp.zeros((n, 2 * k), dtype) if k else None,
            weights=jnp.zeros((2 * k,), dtype) if k else None,
            counts=jnp.zeros((3,), jnp.int32),
        )

    absorb = functools.partial(_absorb, rule, float(scale_init))

    def update(state: DenseState, s: Array, y: Array) -> DenseState:
        w = _apply(state, y)
        ss, sy, yy, yw = inner((s, s), (s, y), (y, y), (y, w))
        unknown = jnp.full((), jnp.nan, s.dtype)
        return absorb(state, Pair(s, y, w, ss, sy, yy, yw, sBs=unknown))[0]

    def advance(
        state: DenseState,
        s: Array,
        y: Array,
        g: Array,
        Hg: Array,
        moved: Array,
        face: Face | None = None,
    ) -> tuple[DenseState, Array]:
        along = Hg
        if face is not None:
            along = vectors.masked(face.free, Hg)
            Hg = update_if(face.changed, Hg, lambda _: _apply(state, face.g), branch=_is_large(g))
        product = _product_if_moved(state, g, Hg, moved)
        w = product - Hg
        ss, sy, yy, yw, sg, gw, sHg, HgHg = inner(
            (s, s), (y, s), (y, y), (y, w), (g, s), (g, w), (along, s), (along, along)
        )
        sBs = _step_curvature(ss, sHg, HgHg, sg - sy)
        pair = Pair(s, y, w, ss, sy, yy, yw, sBs)
        state, gamma, c, (p, q) = absorb(state, pair, face)
        gw, sg = (jnp.where(c.accepted, v, jnp.zeros_like(v)) for v in (gamma * gw, sg))
        correction = c.alpha * (sg - c.mu * gw) * p + c.beta * (gw - c.nu * sg) * q
        return state, gamma * c.scale * product + correction

    return QuasiNewton(init, update, _apply, advance, _reset, advance_on_face=advance)


def _is_large(g: Array) -> bool:
    """Whether a product with the matrix costs more than a branch that skips it."""
    return g.size > 100


def _apply(state: DenseState, g: Array) -> Array:
    return _product_from(state, g, dot(state.matrix, g))


def _product_from(state: DenseState, g: Array, Mg: Array) -> Array:
    """H g from the product of the matrix, M g."""
    shift, scale = state.base
    Hg = shift * g + scale * Mg
    if state.panel is not None:
        panel, weights = panel_of(state)
        Hg += dot(panel, weights * dot(g, panel))
    return Hg


def _product_if_moved(state: DenseState, g: Array, Hg: Array, moved: Array) -> Array:
    """H g where ``moved`` holds; elsewhere ``Hg``, which is H g already."""
    if state.panel is None:
        return _apply(state, g)
    # Unbatched, the cond saves a pass over n² numbers on a refused trial; under vmap it is a select
    # between two vectors. It holds only that pass: a CPU then reads the panel beside the matrix.
    Mg = jax.lax.cond(moved, lambda: dot(state.matrix, g), lambda: Hg)
    return jnp.where(moved, _product_from(state, g, Mg), Hg)


EARLY = 5
"""Pairs of bent steps that may scale H. The size of H rests on few pairs until then."""


def _first_factor(
    scale_init: float, state: DenseState, pair: Pair, face: Face | None = None
) -> Array:
    """The factor of the initial H = I before its first update (N&W, eq. 6.20).

    Where bounds bend the first steps, sᵀB s is unknown and no rule scales H: sᵀy/yᵀH y does, for
    the first pairs, so that yᵀH y = sᵀy.
    """
    one = jnp.ones_like(pair.sy)
    if not scale_init:
        return one
    first = (state.identity_factor == 1) & (state.matrix_factor == 0) & (state.absorbed == 0)
    curved = has_curvature(pair.ss, pair.sy, pair.yy)
    first &= curved
    gamma = jnp.where(first, scale_init * safe_divide(pair.sy, pair.yy, first), one)
    if face is None:
        return gamma
    early = face.may_rescale & (state.absorbed < EARLY) & jnp.isnan(pair.sBs)
    early &= ~first & curved & (pair.yw > 0)
    return jnp.where(early, scale_init * safe_divide(pair.sy, pair.yw, early), gamma)


def _absorb(
    rule: Rule, scale_init: float, state: DenseState, pair: Pair, face: Face | None = None
) -> tuple[DenseState, Array, Correction, tuple[Array, Array]]:
    """Scale H by gamma, then correct it by a pair; also returns gamma, the correction, (p, q)."""
    gamma = _first_factor(scale_init, state, pair, face)
    pair = pair._replace(w=gamma * pair.w, yw=gamma * pair.yw, sBs=pair.sBs / gamma)
    c = rule(pair)
    tally = jnp.stack([c.accepted, ~c.accepted & (pair.ss > 0), jnp.zeros((), bool)])
    factor = gamma * c.scale
    state = state._replace(
        base=state.base * factor,
        weights=jax.tree.map(lambda weights: weights * factor, state.weights),
        counts=state.counts + tally.astype(jnp.int32),
    )
    p, q = correction_vectors(pair.s, pair.w, c)
    store = _write if state.panel is None else _defer
    return store(state, p, q, c), gamma, c, (p, q)


def _reset(state: DenseState, when: Array) -> DenseState:
    identity = jnp.array([1, 0], state.base.dtype)
    nothing_in_use = state.counts * jnp.array([0, 1, 0], state.counts.dtype)
    return state._replace(
        base=jnp.where(when, identity, state.base),
        weights=jax.tree.map(lambda w: jnp.where(when, jnp.zeros_like(w), w), state.weights),
        counts=jnp.where(when, nothing_in_use, state.counts),
    )


def _step_curvature(ss: Array, sHg: Array, HgHg: Array, sg: Array) -> Array:
    """sᵀB s of a step s = −t H g, which is −t sᵀg; NaN for a step in any other direction.

    A later transformation (clipping, masks, bounds, weight decay) may change a step's direction.
    Then B s = −t g does not hold, and the angle between the step and H g shows it.
    """
    t = -safe_divide(sHg, HgHg, HgHg > 0)
    bent = ss - t**2 * HgHg > 1e-4 * ss
    return jnp.where(bent, jnp.full_like(t, jnp.nan), -t * sg)


def _write(state: DenseState, p: Array, q: Array, c: Correction) -> DenseState:
    """Correct the matrix at once; a refused pair has zero weights, so that nothing is selected."""
    written = jnp.array([0, 1], state.base.dtype)
    shift, scale = jnp.where(c.accepted, state.base, written)
    correction = jnp.outer(c.alpha * p, p) + jnp.outer(c.beta * q, q)
    return state._replace(
        matrix=scale * state.matrix + (correction + shift * identity(state)),
        base=jnp.where(c.accepted, written, state.base),
    )


def _defer(state: DenseState, p: Array, q: Array, c: Correction) -> DenseState:
    """Put a correction into the panel, and fold the panel into the matrix once it is full."""
    panel, weights = panel_of(state)
    pair, new_weights, accepted = jnp.stack([p, q], 1), jnp.stack([c.alpha, c.beta]), c.accepted
    at = state.used
    corner = jnp.zeros_like(at), at
    pair = jnp.where(accepted, pair, jax.lax.dynamic_slice(panel, corner, pair.shape))
    used = 2 * accepted.astype(jnp.int32) * jnp.array([0, 0, 1], jnp.int32)
    state = state._replace(
        panel=jax.lax.dynamic_update_slice(panel, pair, corner),
        weights=jax.lax.dynamic_update_slice(weights, new_weights, (at,)),
        counts=state.counts + used,
    )
    # A loop of at most one trip, not a cond: XLA then updates the matrix in place, and under vmap
    # the body runs only when some lane's panel is full.
    return jax.lax.while_loop(lambda s: s.used == weights.shape[0], _fold, state)


def _fold(state: DenseState) -> DenseState:
    """Write the panel into the matrix."""
    shift, scale = state.base
    panel, weights = panel_of(state)
    correction = dot(weights[None] * panel, panel.T)
    return state._replace(
        matrix=scale * state.matrix + (correction + shift * identity(state)),
        base=jnp.array([0, 1], state.base.dtype),
        weights=jnp.zeros_like(weights),
        counts=state.counts * jnp.array([1, 1, 0], jnp.int32),
    )
