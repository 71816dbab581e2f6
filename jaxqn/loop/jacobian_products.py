"""Where to go from a point by a few products with the Jacobian, without the matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import eps, safe_divide, vectors
from jaxqn.loop.state import Point

__all__ = ["Aim", "by_products", "steeper"]


class Aim(NamedTuple):
    """The approximation and the next direction, with what the Jacobian says of them.

    ``steep`` is how much every entry of F varies, |yᵢ|/‖s‖ of steps and |J v|ᵢ/‖v‖ of products.
    """

    approx: Any
    d: ArrayTree
    steep: ArrayTree
    cosine: Array
    promise: Array


def by_products(qn: Any, aim: Aim, new: Point, rtol: Array, second: Any) -> Aim:
    """The approximation and the direction made anew from products with the Jacobian.

    The direction is a v + b g, with a and b where ‖F − a J v − b J g‖ is least: v is F, or what the
    method solves for, and g is JᵀF. The pairs (g, J g) and (v, J v) are exact.
    """
    push, pull = second(new.x)
    v = new.g if qn.solve is None else qn.solve(push, new.g, rtol)
    v = jax.tree.map(lambda a, F: jnp.where(jnp.isfinite(a), a, F), v, new.g)
    Jv, g = push(v), pull(new.g)
    Jg = push(g)
    FF, vv, gg, FJv, JvJv, FJg, JgJg, JvJg = vectors.products(
        (new.g, new.g), (v, v), (g, g), (new.g, Jv), (Jv, Jv), (new.g, Jg), (Jg, Jg), (Jv, Jg)
    )
    t, t_g = safe_divide(FJv, JvJv, JvJv > 0), safe_divide(FJg, JgJg, JgJg > 0)
    gamma = jnp.where(t != 0, t, jnp.sqrt(safe_divide(vv, JvJv, JvJv > 0)))
    gamma = jnp.where(gamma != 0, gamma, 1)
    sine = 1 - safe_divide(JvJg * safe_divide(JvJg, JvJv, JvJv > 0), JgJg, JgJg > 0)
    both = sine > eps(FF.dtype) ** 0.5
    slant = safe_divide(JvJg, JvJv, JvJv > 0)
    b = safe_divide(FJg - slant * FJv, JgJg * sine, both)
    by_g = ~both & (t_g * FJg > t * FJv)
    a = jnp.where(both, t - b * slant, jnp.where(by_g, 0, t))
    b = jnp.where(both, b, jnp.where(by_g, t_g, 0))
    promise = safe_divide(a * FJv + b * FJg, FF, FF > 0)
    approx = qn.update(qn.update(qn.renew(aim.approx, gamma), g, Jg), v, Jv)

    def mixed(v: Array, g: Array) -> Array:
        return a.astype(v.dtype) * v + b.astype(v.dtype) * g

    steep = jnp.sqrt(safe_divide(JvJv, vv, vv > 0))
    steep_g = jnp.sqrt(safe_divide(JgJg, gg, gg > 0))
    # F is orthogonal to what a change of x does to it where JᵀF is nothing beside ‖J‖ ‖F‖.
    scale = jnp.maximum(steep, steep_g) * jnp.sqrt(FF)
    cosine = safe_divide(jnp.sqrt(gg), scale, scale > 0)
    varies = steeper(aim.steep, 1, (Jv, jnp.sqrt(vv)), (Jg, jnp.sqrt(gg)))
    promise = jnp.clip(promise, eps(FF.dtype), 1)
    return Aim(approx, jax.tree.map(mixed, v, g), varies, cosine, promise)


def steeper(steep: ArrayTree, fade: Any, *seen: tuple[ArrayTree, Array]) -> ArrayTree:
    """How much every entry of F varies, by changes ``y`` along vectors of some lengths."""
    for y, length in seen:
        over = safe_divide(jnp.ones_like(length), length, length > 0)
        steep = jax.tree.map(
            lambda old, y, over=over: jnp.maximum(fade * old, jnp.abs(y) * over.astype(y.dtype)),
            steep,
            y,
        )
    return steep
