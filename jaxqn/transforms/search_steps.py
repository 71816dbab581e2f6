"""The steps that a search may take: straight along the updates, or bent at bounds.

A search sees phi(alpha) = f(x + u(alpha)), with the updates u(alpha) = alpha d. In a box they are
P(x + alpha d) − x, the path of :mod:`jaxqn.loop.box`, rounded so that the sum is in the box.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import vectors
from jaxqn.linesearch import Bend
from jaxqn.loop import Box, Point, bent, inside

__all__ = ["SearchSteps", "is_inside", "like", "steps_along"]


class SearchSteps(NamedTuple):
    """Updates by the step length alpha, and what a search sees of them.

    Attributes:
      direction: d.
      gradient: g at the parameters; with bounds, over those that may move, and 0 elsewhere.
      steepest: ``() -> list``: for each leaf, whether d = −g.
      at: ``alpha -> updates``.
      slope: ``(alpha, gradient) -> phi'(alpha)``, with the gradient at the trial.
      bends: ``alpha -> list``: one ``Bend`` where steps bend at bounds, none elsewhere.
    """

    direction: ArrayTree
    gradient: ArrayTree
    steepest: Callable[[], list[Array]]
    at: Callable[[Array], optax.Updates]
    slope: Callable[[Array, optax.Updates], Array]
    bends: Callable[[Array], list[Bend]]


def steps_along(
    updates: optax.Updates,
    grad: optax.Updates,
    params: optax.Params,
    box: Box | None,
    dtype: np.dtype,
) -> SearchSteps:
    """Steps along the updates, in the box if there is one; inner products are in ``dtype``."""
    if box is None:
        return _straight_steps(updates, grad, dtype)
    return _bent_steps(updates, grad, params, box, dtype)


def _straight_steps(updates: optax.Updates, grad: optax.Updates, dtype: np.dtype) -> SearchSteps:
    """Multiples of the updates."""
    direction = optax.tree.cast(updates, dtype)

    def at(alpha: Array) -> optax.Updates:
        scaled = jax.tree.map(lambda d: jnp.where(alpha > 0, alpha * d, 0), direction)
        return like(updates, scaled)

    def slope(_alpha: Array, g: optax.Updates) -> Array:
        return optax.tree.vdot(direction, optax.tree.cast(g, dtype))

    return SearchSteps(
        direction, grad, lambda: _opposite(updates, grad), at, slope, lambda _alpha: []
    )


def _bent_steps(
    updates: optax.Updates, grad: optax.Updates, params: optax.Params, box: Box, dtype: np.dtype
) -> SearchSteps:
    """Steps that end in the box.

    A parameter stays at a bound where the gradient or the updates push it out. If the rest of a
    direction of descent does not descend, −g takes its place. From outside of the box no direction
    descends: the step of length 0 enters it.
    """
    d, g, x, box = (optax.tree.cast(tree, dtype) for tree in (updates, grad, params, box))
    from_inside = is_inside(x, box)
    d = jax.tree.map(lambda d: jnp.where(from_inside, -d, 0), d)
    g = jax.tree.map(lambda g: jnp.where(from_inside, g, 0), g)
    x, path = inside(x, box), bent(box)
    start = Point(x, jnp.zeros((), dtype), g, None)
    plan, fallback = path.join(d, path.aim(start, d)), path.join(g, path.aim(start, g))
    lost = (_product(d, g) > 0) & ~(_product(plan.d, g) > 0)
    plan = optax.tree.where(lost, fallback, plan)

    def target(alpha: Array) -> ArrayTree:
        return optax.tree.where(alpha > 0, path.at(x, alpha, plan), x)

    def at(alpha: Array) -> optax.Updates:
        return _updates_to(target(alpha), params, updates, box, dtype)

    def slope(alpha: Array, g: optax.Updates) -> Array:
        tangent = path.tangent(start._replace(x=target(alpha)), plan)
        return -_product(tangent, optax.tree.cast(g, dtype))

    def bends(alpha: Array) -> list[Bend]:
        def promised() -> Array:
            return _product(optax.tree.cast(at(alpha), dtype), g)

        bend = path.bend(x, start._replace(x=target(alpha)), plan, promised)
        return [] if bend is None else [bend]

    direction = jax.tree.map(jnp.negative, plan.d)
    free = vectors.masked(path.free(start), g)
    return SearchSteps(direction, free, lambda: _opposite(direction, free), at, slope, bends)


def _product(v: ArrayTree, g: optax.Updates) -> Array:
    """The inner product, where g may be infinite if v is 0: a bound may hold an infinite slope."""
    return optax.tree.vdot(v, jax.tree.map(lambda v, g: jnp.where(v == 0, 0, g), v, g))


def _opposite(d: ArrayTree, g: ArrayTree) -> list[Array]:
    return [jnp.all(d == -g) for d, g in zip(*map(jax.tree.leaves, (d, g)), strict=True)]


def _updates_to(
    z: ArrayTree, params: optax.Params, updates: optax.Updates, box: Box, dtype: np.dtype
) -> optax.Updates:
    """Updates whose sum with the parameters is z up to rounding, and in the box.

    With u = z − x rounded, x + u may lie beyond a bound. The number u₋ next to u on the side of the
    box is not beyond z − x, so that x + u₋ is not beyond z. Rounding is monotone, and keeps bounds,
    since they are numbers of the dtype: the rounded sum is not beyond the bound either.
    """

    def difference(z: Array, x: Array, update: Array) -> Array:
        dtypes = (dtype, jnp.result_type(update))
        coarser = min(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
        return (z - jnp.asarray(x, dtype)).astype(coarser)

    u = jax.tree.map(difference, z, params, updates)
    sums = optax.tree.cast(optax.apply_updates(params, like(updates, u)), dtype)

    def corrected(u: Array, x: Array, low: Array, up: Array) -> Array:
        inwards = jnp.where(x > up, -jnp.inf, jnp.inf).astype(u.dtype)
        return jnp.where((x < low) | (x > up), jnp.nextafter(u, inwards), u)

    return like(updates, jax.tree.map(corrected, u, sums, box.lower, box.upper))


def is_inside(params: optax.Params, box: Box) -> Array:
    """Whether all parameters are in the box, shape ``()``."""

    def of_leaf(x: Array, low: Array, up: Array) -> Array:
        return jnp.all((x >= low) & (x <= up))

    return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(of_leaf, params, *box))))


def like(example: ArrayTree, tree: ArrayTree) -> ArrayTree:
    """``tree`` in the dtypes of ``example``, none of them weak."""
    return jax.tree.map(lambda e, leaf: jnp.asarray(leaf, jnp.result_type(e)), example, tree)
