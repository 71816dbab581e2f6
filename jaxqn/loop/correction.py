"""H corrected by a pair or made from second derivatives, and the way out of a saddle point."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import ArrayTree
from jaxqn.linalg import eps, vectors
from jaxqn.linesearch import rounding_noise
from jaxqn.loop.path import Path
from jaxqn.loop.protocol import Judgement, Outcome, Prospects, Run
from jaxqn.loop.state import LoopState, Measures, Point

__all__ = ["Corrected", "correct", "leave_saddle"]


class Corrected(NamedTuple):
    """What a pair or second derivatives made of the approximation.

    Attributes:
      approx: its state.
      Hg: its product with the gradient.
      downhill: from second derivatives, v with vᵀB v = −1, or 0.
      diagonal: from second derivatives, the magnitudes of their diagonal.
    """

    approx: Any
    Hg: ArrayTree
    downhill: ArrayTree | None
    diagonal: ArrayTree | None


def correct(
    path: Path,
    state: LoopState,
    outcome: Outcome,
    s: ArrayTree,
    y: ArrayTree,
    run: Run,
    second: Any,
) -> Corrected:
    """H corrected by (s, y), or made anew from second derivatives, and its product with g."""
    qn, new, moved = run.method.qn, outcome.point, outcome.judged.moved
    renew = qn.renew
    if renew is None:
        Hg = path.product(state.plan)
        return Corrected(*qn.advance(state.approx, s, y, new.g, Hg, moved), None, None)

    def renewed() -> Corrected:
        B = jax.tree.map(lambda B: B / outcome.g_scale, second(new.x))
        approx, v = renew(state.approx, s, y, B)
        Hg = qn.apply(approx, new.g)
        return Corrected(approx, Hg, v, jnp.abs(jnp.diag(B)))

    # Unbatched, a refused trial costs no Hessian; under vmap every trial does.
    none = jax.tree.map(jnp.zeros_like, new.x)
    same = Corrected(state.approx, path.product(state.plan), none, state.scales.curvature)
    return jax.lax.cond(moved, renewed, lambda: same)


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
