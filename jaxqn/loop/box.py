"""A box l ≤ x ≤ u, and the path in it that bends at bounds: two-metric projection.

    x(alpha) = P(x − alpha d),    P(v) = min(max(v, l), u),    d = H_FF g_F.

F are the variables that may move: a variable at its bound whose gradient pushes it out stays there.
Everything is a mask, entry by entry; no list of indices, no sort, no solve. H learns from pairs
over the variables that may move at the new point. Once the set of bounds that hold has settled,
this is the method without bounds on the face of the box.

Why it converges: g_F is the gradient on the face and H_FF is positive definite. A variable at a
bound that d pushes out has g ≤ 0 inwards, so that holding it takes away ascent only, and the path
starts downhill.

References:
  Bertsekas, SIAM J. Control Optim. 20 (1982), for masks that keep H diagonal with respect to the
  bounds that hold; Kim, Sra & Dhillon, SIAM J. Sci. Comput. 32 (2010), for quasi-Newton matrices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import compute_if, eps, update_if, vectors
from jaxqn.linesearch import Bend
from jaxqn.loop.path import Path
from jaxqn.loop.state import Point
from jaxqn.loop.units import from_scaled, gradient_from_scaled

__all__ = ["BentPlan", "Box", "active", "bent", "finite_multipliers", "inside"]


class Box(NamedTuple):
    """Bounds, each like the parameters, with infinities where there are none."""

    lower: ArrayTree
    upper: ArrayTree


class BentPlan(NamedTuple):
    """What a path that bends is made from.

    Attributes:
      Hg: the product of H with the restricted gradient, over all variables: the next H y is the
        difference of two such products.
      d: the same over the variables that may move.
    """

    Hg: ArrayTree
    d: ArrayTree


@jax.custom_jvp
def inside(x: ArrayTree, box: Box) -> ArrayTree:
    """P(x). Derivatives pass through: at a bound they are those of the objective."""
    return jax.tree.map(jnp.clip, x, box.lower, box.upper)


@inside.defjvp
def _inside_jvp(primals: Any, tangents: Any) -> Any:
    return inside(*primals), tangents[0]


def active(x: ArrayTree, g: ArrayTree, box: Box) -> ArrayTree:
    """Which bound holds: −1 the lower, 1 the upper, 0 none; int32, like the parameters.

    Where both are equal, the gradient says which.
    """

    def of_leaf(x: Array, g: Array, low: Array, up: Array) -> Array:
        below, above = x <= low, x >= up
        lower = below & (~above | ~(g < 0))
        return jnp.where(lower, -1, jnp.where(above, 1, 0)).astype(jnp.int32)

    return jax.tree.map(of_leaf, x, g, box.lower, box.upper)


def finite_multipliers(trial: Point, box: Box) -> Point:
    """The trial, with the largest number for an infinite slope that a bound holds, as of √x."""

    def of_leaf(x: Array, g: Array, low: Array, up: Array) -> Array:
        held = ((x <= low) & (g > 0)) | ((x >= up) & (g < 0))
        most = jnp.finfo(g.dtype).max
        return jnp.where(held, jnp.clip(g, -most, most), g)

    def limited(g: ArrayTree) -> ArrayTree:
        return jax.tree.map(of_leaf, trial.x, g, box.lower, box.upper)

    branch = vectors.branching_pays(trial.x)
    infinite = ~jnp.isfinite(vectors.inf_norm(trial.g)) if branch else jnp.ones((), bool)
    return trial._replace(g=update_if(infinite, trial.g, limited, branch=branch))


def bent(box: Box) -> Path:
    """The path P(x − alpha d), over parameters in the units of ``box``."""
    return Path(
        at=functools.partial(_at, box),
        tangent=functools.partial(_tangent, box),
        gradient=lambda point: _kept(box, point.x, point.g),
        free=functools.partial(_free, box),
        room=functools.partial(_room, box),
        stationarity=functools.partial(_stationarity, box),
        bend=functools.partial(_bend, box),
        aim=functools.partial(_aim, box),
        join=BentPlan,
        product=lambda plan: plan.Hg,
    )


def _at(box: Box, x: ArrayTree, alpha: Array, plan: BentPlan) -> ArrayTree:
    """P(x − alpha d); next to a bound it is that bound, since x + (u − x) need not be u."""

    def of_leaf(x: Array, d: Array, low: Array, up: Array) -> Array:
        z = jnp.clip(x - alpha.astype(x.dtype) * d, low, up)
        size = jnp.minimum(jnp.maximum(jnp.abs(x), jnp.abs(z)), jnp.finfo(x.dtype).max)
        rounding = 4 * eps(x.dtype) * size
        z = jnp.where(z - low <= rounding, low, z)
        return jnp.where(up - z <= rounding, up, z)

    return jax.tree.map(of_leaf, x, plan.d, box.lower, box.upper)


def _free(box: Box, point: Point) -> ArrayTree:
    """Masks of the variables that may move: F."""

    def of_leaf(x: Array, g: Array, low: Array, up: Array) -> Array:
        return ~(((x <= low) & (g >= 0)) | ((x >= up) & (g <= 0)) | (low >= up))

    return jax.tree.map(of_leaf, point.x, point.g, box.lower, box.upper)


def _room(box: Box, point: Point) -> tuple[ArrayTree, ArrayTree]:
    """What every variable may change by, down and up."""
    below, above = (jax.tree.map(jnp.subtract, bound, point.x) for bound in box)
    return below, above


def _kept(box: Box, x: ArrayTree, v: ArrayTree) -> ArrayTree:
    """The entries of v but for those at a bound where −v leaves the box."""

    def of_leaf(x: Array, v: Array, low: Array, up: Array) -> Array:
        v = jnp.where(x <= low, jnp.minimum(v, 0), v)
        return jnp.where(x >= up, jnp.maximum(v, 0), v)

    return jax.tree.map(of_leaf, x, v, box.lower, box.upper)


def _tangent(box: Box, trial: Point, plan: BentPlan) -> ArrayTree:
    return _kept(box, trial.x, plan.d)


def _aim(box: Box, point: Point, Hg: ArrayTree) -> ArrayTree:
    """The part of H g that moves something."""
    return _kept(box, point.x, vectors.masked(_free(box, point), Hg))


def _stationarity(box: Box, point: Point, x_scale: Any, g_scale: Array) -> ArrayTree:
    """P(x − g) − x, written so that rounding of x takes nothing from g."""

    def of_leaf(g: Array, room_below: Array, room_above: Array) -> Array:
        scale = g_scale.astype(g.dtype)
        return jnp.clip(scale * g, room_above, room_below) / scale

    below, above = (
        from_scaled(jax.tree.map(jnp.subtract, point.x, bound), x_scale) for bound in box
    )
    return jax.tree.map(of_leaf, gradient_from_scaled(point.g, x_scale), below, above)


def _bend(
    box: Box, x: ArrayTree, trial: Point, plan: BentPlan, promised: Callable[[], Array]
) -> Bend:
    stays = jax.tree.map(jnp.subtract, plan.d, _tangent(box, trial, plan))

    def bends(x: Array, d: Array, low: Array, up: Array) -> Array:
        """The step length at which each variable meets its bound."""
        room = jnp.where(d > 0, x - low, x - up)
        return jnp.where(d == 0, jnp.inf, room / jnp.where(d == 0, 1, d))

    def last_bend(lo: Array, alpha: Array) -> Array:
        first = lo * (1 + 4 * eps(lo.dtype))

        def between(t: Array) -> Array:
            return jnp.where((t > first.astype(t.dtype)) & (t <= alpha.astype(t.dtype)), t, 0)

        last = vectors.inf_norm(jax.tree.map(between, jax.tree.map(bends, x, plan.d, *box)))
        return last.astype(alpha.dtype)

    def landed(lo: Array, alpha: Array, wanted: Array) -> Array:
        branch = vectors.branching_pays(x)
        last = compute_if(wanted, lambda: last_bend(lo, alpha), alpha, branch=branch)
        return jnp.where((alpha > lo) & (last > lo + 0.1 * (alpha - lo)), last, alpha)

    return Bend(promised(), vectors.inf_norm(stays) > 0, landed, lambda: _endless(box, plan))


def _endless(box: Box, plan: BentPlan) -> Array:
    """Whether some variable moves towards no bound."""

    def of_leaf(d: Array, low: Array, up: Array) -> Array:
        return jnp.any(((d > 0) & jnp.isneginf(low)) | ((d < 0) & jnp.isposinf(up)))

    leaves = jax.tree.leaves(jax.tree.map(of_leaf, plan.d, box.lower, box.upper))
    return functools.reduce(jnp.logical_or, leaves)
