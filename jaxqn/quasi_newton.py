"""Quasi-Newton approximations of the inverse Hessian, as values with four verbs.

A host (the driver, an optax transformation) knows only :class:`QuasiNewton`; which update runs
inside, and how its matrix is stored, is nobody else's business.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._arguments import check_count
from jaxqn._numerics import HIGHEST, dot, inner, safe_divide
from jaxqn._typing import Array
from jaxqn.curvature import has_curvature
from jaxqn.rules import (
    Correction,
    Pair,
    Rule,
    bfgs_rule,
    broyden_rule,
    corners,
    dfp_rule,
    osbfgs_rule,
    sr1_rule,
    ssbfgs_rule,
    ssbroyden_rule,
)

__all__ = ["METHODS", "DenseState", "QuasiNewton", "dense", "inverse_hessian"]


class QuasiNewton(NamedTuple):
    """An inverse-Hessian approximation H as a value: how to start, correct, apply and forget it.

    Attributes:
      init: ``(x, H0=None) -> state``; H = I unless given.
      update: ``(state, s, y) -> state``. The zero pair, and any unusable one, changes no leaf.
      apply: ``(state, g) -> H g``; no sign flip.
      advance: ``(state, s, y, g, Hg, moved) -> (state, H₊ g)``, update and apply fused: g is the
        new gradient and Hg the product of the old H with the old gradient g − y, so that
        H y = H g − Hg needs no product of its own. Where ``moved`` is false, s = y = 0 and the
        product is Hg already.
      reset: ``(state, when) -> state`` with H = I where ``when`` holds, or the diagonal that a
        limited memory was given.
      dense: whether vectors must be flat arrays, since H is an n-by-n matrix.
      renew: ``(state, B) -> state`` with H made from the Hessian B at a new point, instead of
        ``advance``; ``None`` for methods that need no Hessian.
    """

    init: Callable[..., Any]
    update: Callable[[Any, Array, Array], Any]
    apply: Callable[[Any, Array], Array]
    advance: Callable[[Any, Array, Array, Array, Array, Array], tuple[Any, Array]]
    reset: Callable[[Any, Array], Any]
    dense: bool = True
    renew: Callable[[Any, Array], Any] | None = None


def check_quasi_newton(qn: Any) -> None:
    """What is built around an approximation needs one."""
    if not isinstance(qn, QuasiNewton):
        raise TypeError(f"qn must be a QuasiNewton such as jaxqn.lbfgs_memory(), not {qn!r}")


class DenseState(NamedTuple):
    """A dense H, with its newest corrections kept beside the matrix until they are folded in.

        H = base[0] · I + base[1] · matrix + panel diag(weights) panelᵀ

    Attributes:
      matrix: shape ``(n, n)``; meaningless while its factor is 0.
      base: factors of the identity and of the matrix, shape ``(2,)``.
      panel: correction vectors in columns, shape ``(n, 2 k)``.
      weights: their weights, shape ``(2 k,)``.
      counts: pairs absorbed since the start or the last reset, pairs refused since the start, and
        columns of the panel in use; int32, shape ``(3,)``.
    """

    matrix: Array
    base: Array
    panel: Array
    weights: Array
    counts: Array


def default_panel(n: int) -> int:
    """Pairs to defer: none while passes over the matrix are cheap, 32 beyond.

    On a CPU a panel takes a quarter to a half off an iteration from n = 300 on, but it takes longer
    to compile, by what a thousand or two of them save there. On an accelerator passes are cheap for
    longer, and the branches around a panel are not.
    """
    return 32 if n >= (1000 if jax.default_backend() == "cpu" else 5000) else 0


@functools.cache
def dense(
    rule: Rule = osbfgs_rule, *, scale_init: float = 1.0, panel: int | None = None
) -> QuasiNewton:
    """A dense inverse-Hessian approximation, corrected by ``rule``.

    One product H g per iteration is the only pass over the matrix that an iteration needs: H y is
    a difference of two such products, and the rank-two correction waits in a panel of 2 ``panel``
    vectors, folded in once the panel is full. An iteration costs (1 + 2/panel) passes over n²
    numbers, or 3 with ``panel=0``.

    Args:
      rule: what to do with a pair; see :mod:`jaxqn.rules`.
      scale_init: multiply the initial H = I by this times sᵀy/yᵀy before the first update
        (Nocedal & Wright, eq. 6.20); 0 leaves it I. SR1 wants less than 1: it refuses the pair
        that fits exactly. An H0 given by the caller is never rescaled.
      panel: pairs to defer; by default 32 for large n (on a CPU from 1000, on an accelerator from
        5000) and 0 for small, which compiles sooner. For many runs of one shape on a CPU 32 pays
        from n = 300 on.

    Returns:
      A :class:`QuasiNewton` over flat vectors. Memory: n² + 2 ``panel`` n numbers.

    Raises:
      TypeError: ``rule`` is no function.
      ValueError: ``panel`` is not a whole number.

    Example:
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
            panel=jnp.zeros((n, 2 * k), dtype),
            weights=jnp.zeros((2 * k,), dtype),
            counts=jnp.zeros((3,), jnp.int32),
        )

    def apply(state: DenseState, g: Array) -> Array:
        return product_from(state, g, dot(state.matrix, g))

    def product_from(state: DenseState, g: Array, Mg: Array) -> Array:
        """H g from that of the matrix, M g."""
        shift, scale = state.base
        Hg = shift * g + scale * Mg
        if state.weights.size:
            Hg += dot(state.panel, state.weights * dot(g, state.panel))
        return Hg

    def first_factor(state: DenseState, pair: Pair) -> Array:
        """What to multiply the initial H = I by before its first update."""
        one = jnp.ones_like(pair.sy)
        if not scale_init:
            return one
        first = (state.base[0] == 1) & (state.base[1] == 0) & (state.counts[0] == 0)
        first &= has_curvature(pair.ss, pair.sy, pair.yy)
        return jnp.where(first, float(scale_init) * safe_divide(pair.sy, pair.yy, first), one)

    def absorb(
        state: DenseState, pair: Pair
    ) -> tuple[DenseState, Array, Correction, tuple[Array, Array]]:
        """Correct H by a pair; also return the factor of H before, and the correction then."""
        gamma = first_factor(state, pair)
        pair = pair._replace(w=gamma * pair.w, yw=gamma * pair.yw, sBs=pair.sBs / gamma)
        c = rule(pair)
        tally = jnp.stack([c.accepted, ~c.accepted & (pair.ss > 0), jnp.zeros((), bool)])
        factor = gamma * c.scale
        state = state._replace(
            base=state.base * factor,
            weights=state.weights * factor,
            counts=state.counts + tally.astype(jnp.int32),
        )
        p, q = corners(pair.s, pair.w, c)
        store = _defer if state.weights.size else _write
        return store(state, p, q, c), gamma, c, (p, q)

    def update(state: DenseState, s: Array, y: Array) -> DenseState:
        w = apply(state, y)
        ss, sy, yy, yw = inner((s, s), (s, y), (y, y), (y, w))
        unknown = jnp.full((), jnp.nan, s.dtype)
        return absorb(state, Pair(s, y, w, ss, sy, yy, yw, sBs=unknown))[0]

    def advance(
        state: DenseState, s: Array, y: Array, g: Array, Hg: Array, moved: Array
    ) -> tuple[DenseState, Array]:
        if state.weights.size:
            # On a refused trial the product is known. Unbatched this saves a pass over n² numbers;
            # under vmap it is a select between two vectors. The pass is all that waits for `moved`,
            # so that a CPU reads the panel beside the matrix.
            Mg = jax.lax.cond(moved, lambda: dot(state.matrix, g), lambda: Hg)
            product = jnp.where(moved, product_from(state, g, Mg), Hg)
        else:
            product = apply(state, g)
        w = product - Hg
        ss, sy, yy, yw, sg, gw, sHg, HgHg = inner(
            (s, s), (y, s), (y, y), (y, w), (g, s), (g, w), (Hg, s), (Hg, Hg)
        )
        sBs = _step_curvature(ss, sHg, HgHg, sg - sy)
        state, gamma, c, (p, q) = absorb(state, Pair(s, y, w, ss, sy, yy, yw, sBs))
        gw, sg = (jnp.where(c.accepted, v, jnp.zeros_like(v)) for v in (gamma * gw, sg))
        correction = c.alpha * (sg - c.mu * gw) * p + c.beta * (gw - c.nu * sg) * q
        return state, gamma * c.scale * product + correction

    def reset(state: DenseState, when: Array) -> DenseState:
        identity = jnp.array([1, 0], state.base.dtype)
        nothing_in_use = state.counts * jnp.array([0, 1, 0], state.counts.dtype)
        return state._replace(
            base=jnp.where(when, identity, state.base),
            weights=jnp.where(when, jnp.zeros_like(state.weights), state.weights),
            counts=jnp.where(when, nothing_in_use, state.counts),
        )

    return QuasiNewton(init, update, apply, advance, reset)


def _step_curvature(ss: Array, sHg: Array, HgHg: Array, sg: Array) -> Array:
    """sᵀB s of a step s = −t H g, which is −t sᵀg; NaN for a step in any other direction.

    A later transformation (clipping, masks, bounds, weight decay) may bend a step. Then B s = −t g
    does not hold, and the step's angle to H g shows it.
    """
    t = -safe_divide(sHg, HgHg, HgHg > 0)
    bent = ss - t**2 * HgHg > 1e-4 * ss
    return jnp.where(bent, jnp.full_like(t, jnp.nan), -t * sg)


def _write(state: DenseState, p: Array, q: Array, c: Correction) -> DenseState:
    """Correct the matrix at once; a refused pair has zero weights, and needs no select."""
    written = jnp.array([0, 1], state.base.dtype)
    shift, scale = jnp.where(c.accepted, state.base, written)
    correction = jnp.outer(c.alpha * p, p) + jnp.outer(c.beta * q, q)
    return state._replace(
        matrix=scale * state.matrix + (correction + shift * _identity(state)),
        base=jnp.where(c.accepted, written, state.base),
    )


def _defer(state: DenseState, p: Array, q: Array, c: Correction) -> DenseState:
    """Put a correction into the panel; fold the panel into the matrix when it is full."""
    pair, weights, accepted = jnp.stack([p, q], 1), jnp.stack([c.alpha, c.beta]), c.accepted
    at = state.counts[2]
    zero = jnp.zeros_like(at)
    held = jax.lax.dynamic_slice(state.panel, (zero, at), pair.shape)
    pair = jnp.where(accepted, pair, held)
    used = 2 * accepted.astype(jnp.int32) * jnp.array([0, 0, 1], jnp.int32)
    state = state._replace(
        panel=jax.lax.dynamic_update_slice(state.panel, pair, (zero, at)),
        weights=jax.lax.dynamic_update_slice(state.weights, weights, (at,)),
        counts=state.counts + used,
    )
    # A loop of at most one trip, not a cond: it updates the matrix in place, and under vmap it
    # runs only when some lane's panel is full.
    return jax.lax.while_loop(lambda s: s.counts[2] == s.weights.shape[0], _fold, state)


def _fold(state: DenseState) -> DenseState:
    """Write the panel into the matrix."""
    shift, scale = state.base
    correction = dot(state.weights[None] * state.panel, state.panel.T)
    return state._replace(
        matrix=scale * state.matrix + (correction + shift * _identity(state)),
        base=jnp.array([0, 1], state.base.dtype),
        weights=jnp.zeros_like(state.weights),
        counts=state.counts * jnp.array([1, 1, 0], jnp.int32),
    )


def inverse_hessian(state: DenseState) -> Array:
    """The matrix H of a dense state, symmetric, shape ``(..., n, n)``, for any batch axes."""
    low_rank = jnp.einsum(
        "...k,...ik,...jk->...ij", state.weights, state.panel, state.panel, precision=HIGHEST
    )
    shift, scale = state.base[..., 0, None, None], state.base[..., 1, None, None]
    H = shift * _identity(state) + scale * state.matrix + low_rank
    return 0.5 * (H + jnp.swapaxes(H, -1, -2))


def _identity(state: DenseState) -> Array:
    identity = jnp.eye(state.matrix.shape[-1], dtype=state.matrix.dtype)
    return jnp.broadcast_to(identity, state.matrix.shape)


METHODS: dict[str, QuasiNewton] = {
    "bfgs": dense(bfgs_rule),
    "dfp": dense(dfp_rule),
    "sr1": dense(sr1_rule, scale_init=0.5),
    "broyden": dense(broyden_rule(0.5)),
    "osbfgs": dense(osbfgs_rule),
    "ssbfgs": dense(ssbfgs_rule),
    "ssbroyden": dense(ssbroyden_rule),
}
"""The dense quasi-Newton methods by name."""
