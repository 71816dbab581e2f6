"""H or a model corrected by a pair or made from second derivatives; the ways out of a saddle."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import eps, vectors
from jaxqn.linesearch import rounding_noise
from jaxqn.loop.path import face_of
from jaxqn.loop.protocol import Judgement, Outcome, Prospects, Run
from jaxqn.loop.state import LoopState, Measures, Point
from jaxqn.quasi_newton import Descent, Quadratic

__all__ = ["Corrected", "bends_down", "correct", "leave_saddle", "taught"]


class Corrected(NamedTuple):
    """What a pair or second derivatives made of the approximation.

    Attributes:
      approx: its state.
      Hg: its product with the gradient.
      downhill: from second derivatives, v with vᵀB v = −1, or 0.
      roots: from second derivatives, the roots of the magnitudes of their diagonal, as
        :class:`jaxqn.loop.state.Scales` keeps them.
    """

    approx: Any
    Hg: ArrayTree
    downhill: ArrayTree | None
    roots: ArrayTree | None


def correct(
    state: LoopState,
    outcome: Outcome,
    s: ArrayTree,
    y: ArrayTree,
    run: Run,
    second: Any,
) -> Corrected:
    """H corrected by (s, y), or made anew from second derivatives, and its product with g."""
    qn, new, moved, path = run.method.qn, outcome.point, outcome.judged.moved, run.path
    face = face_of(path, state.point, new, state.flags.may_rescale)
    g, Hg, renew = path.gradient(new), path.product(state.plan), qn.renew
    if renew is None:
        if face is None:
            approx, Hg = qn.advance(state.approx, s, y, g, Hg, moved)
        else:
            assert qn.advance_on_face is not None  # a front door has checked
            s, y = (vectors.masked(face.free, v) for v in (s, y))
            approx, Hg = qn.advance_on_face(state.approx, s, y, g, Hg, moved, face)
        return Corrected(approx, Hg, None, None)

    def renewed() -> Corrected:
        B = jax.tree.map(lambda B: B / outcome.g_scale, second(new.x))
        B = B if face is None else _on_face(B, face.free)
        approx, v = renew(state.approx, s, y, B)
        return Corrected(approx, qn.apply(approx, g), v, _roots(B))

    # Unbatched, a refused trial costs no Hessian; under vmap every trial does.
    none = jax.tree.map(jnp.zeros_like, new.x)
    same = Corrected(state.approx, Hg, none, state.scales.curvature)
    return jax.lax.cond(moved, renewed, lambda: same)


def _roots(B: Array) -> Array:
    return jnp.sqrt(jnp.abs(jnp.diag(B)))


def _on_face(B: Array, free: Array) -> Array:
    """The Hessian over the variables that may move, and a diagonal of its size over the others."""
    B = jnp.where(free[:, None] & free[None], B, 0)
    size = jnp.max(jnp.abs(jnp.diag(B)))
    return B + jnp.diag(jnp.where(free, 0, jnp.where(size > 0, size, 1)))


def leave_saddle(
    new: Point,
    Hg: ArrayTree,
    v: ArrayTree,
    now: Measures,
    prospects: Prospects,
    judged: Judgement,
) -> tuple[ArrayTree, Measures, Prospects]:
    """Aim along v, of curvature −1, where −H g promises nothing: at a saddle or a maximum.

    A step of t v decreases f by t²/2. The search takes that for the slope at its start.
    """
    v_size, x_size = vectors.inf_norms(v, new.x)
    leaves = judged.moved & (v_size > 0)
    leaves &= 0.5 * now.g_scale * now.gHg <= rounding_noise(new.f)
    length = eps(new.f.dtype) ** 0.25 * jnp.where(x_size > 0, x_size, 1)
    visible = 100 * rounding_noise(new.f) / now.g_scale
    decrease = jnp.maximum((length / jnp.where(leaves, v_size, 1)) ** 2, visible)
    step = jnp.where(leaves, jnp.sqrt(decrease), 0)
    d = jax.tree.map(lambda h, v: jnp.where(leaves, -step * v, h), Hg, v)
    now = now._replace(
        gHg=jnp.where(leaves, 0.5 * decrease, now.gHg),
        jac_norm=jnp.where(leaves, jnp.inf, now.jac_norm),
    )
    return (
        d,
        now,
        prospects._replace(
            settled=prospects.settled & ~leaves, at_minimum=prospects.at_minimum & ~leaves
        ),
    )


def taught(
    state: LoopState, outcome: Outcome, s: ArrayTree, y: ArrayTree, run: Run, second: Any
) -> tuple[Any, Any]:
    """The model taught a pair, or made anew from second derivatives; the roots of the diagonal."""
    renew, new = run.method.qn.renew, outcome.point
    if renew is None:
        model = run.method.qn.model
        assert isinstance(model, Quadratic)
        return model.learn(state.approx, s, y), None

    def renewed() -> tuple[Any, Array]:
        B = second(new.x) / outcome.g_scale
        return renew(state.approx, s, y, B)[0], _roots(B)

    # Unbatched, a refused trial costs no Hessian; under vmap every trial does.
    same = state.approx, state.scales.curvature
    return jax.lax.cond(outcome.judged.moved, renewed, lambda: same)


def bends_down(new: Point, descent: Descent, now: Measures, moved: Array, run: Run) -> Array:
    """Whether a point without a gradient is left along negative curvature, pᵀB p < 0."""
    along = descent.promised + vectors.vdot(new.g, descent.p) > 0
    visible = now.g_scale * descent.promised > rounding_noise(new.f)
    return moved & along & visible & (now.jac_norm <= run.tol.gtol)
