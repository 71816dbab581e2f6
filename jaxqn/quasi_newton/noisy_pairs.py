"""Pairs (s, y) from noisy gradients: how to make one, when to trust it, how far to damp it.

The difference of gradients on two batches is mostly the difference of the batches. A pair here has
both gradients on one batch, where the noise of the batch cancels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree, Objective
from jaxqn.formulas import in_range, powell_fraction
from jaxqn.linalg import safe_divide
from jaxqn.linalg.vectors import vdot
from jaxqn.quasi_newton.damping import damped_step
from jaxqn.quasi_newton.memory_state import MemoryState
from jaxqn.quasi_newton.protocol import QuasiNewton

__all__ = [
    "absorb_noisy_pair",
    "bounded_direction",
    "doubly_damped_pair",
    "same_batch_pair",
    "within_noise",
]


def same_batch_pair(
    fun: Objective,
    x: ArrayTree,
    x_new: ArrayTree,
    *args: Any,
    g_new: ArrayTree | None = None,
    has_aux: bool = False,
) -> tuple[ArrayTree, ArrayTree]:
    """The pair between two points, both gradients taken on one batch.

        s = x₊ − x,   y = ∇f(x₊; batch) − ∇f(x; batch).

    Args:
      fun: ``fun(x, *args) -> scalar``, or ``(scalar, aux)`` with ``has_aux``.
      x: the earlier point, any pytree.
      x_new: the later point.
      *args: the batch.
      g_new: ∇f(x₊; batch), if it is known.
      has_aux: whether ``fun`` returns auxiliary data beside its value.

    Returns:
      ``(s, y)``, both like ``x``.

    Cost: two gradients; one, where ``g_new`` is given.

    Example:
      >>> loss = lambda w, features, labels: jnp.mean((features @ w - labels) ** 2)
      >>> batch = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, 3.0])
      >>> s, y = same_batch_pair(loss, jnp.zeros(2), jnp.array([1.0, -1.0]), *batch)
      >>> s.tolist(), y.tolist()  # the Hessian of this batch is diag(1, 4)
      ([1.0, -1.0], [1.0, -4.0])

    References:
      Schraudolph, Yu & Günter, AISTATS 2007; Berahas, Nocedal & Takáč, NeurIPS 2016.
    """
    shapes = [jax.tree.map(jnp.shape, point) for point in (x, x_new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"x and x_new must be alike, but their shapes are {shapes[0]} and {shapes[1]}"
        )

    def gradient(point: ArrayTree) -> ArrayTree:
        out = jax.grad(fun, has_aux=has_aux)(point, *args)
        return out[0] if has_aux else out

    g_new = gradient(x_new) if g_new is None else g_new
    s = jax.tree.map(jnp.subtract, x_new, x)
    return s, jax.tree.map(jnp.subtract, g_new, gradient(x))


def within_noise(ss: Array, sy: Array, yy: Array, size: int, *, sigmas: float = 1.0) -> Array:
    """Whether the curvature of a pair is no larger than pure noise would show.

        |sᵀy| ≤ sigmas · ‖s‖ ‖y‖ / √n :

    the cosine between s and a random y in n dimensions has standard deviation 1/√n. The test is
    relative, so scaling f or x changes no decision. A zero pair is within noise, and so is one that
    is not finite or out of range. Where the noise of y differs between entries, take the products
    in a metric in which it does not, for instance that of Adam's diagonal D: sᵀD⁻¹s and yᵀD y.

    Args:
      ss: sᵀs, shape ``()``.
      sy: sᵀy, shape ``()``.
      yy: yᵀy, shape ``()``.
      size: the dimension n.
      sigmas: standard deviations that a curvature must exceed; 0 refuses no finite, non-zero pair.

    Example:
      >>> one = jnp.float32(1.0)
      >>> [bool(within_noise(one, c * one, one, 10_000)) for c in (0.005, 0.02, -0.02)]
      [True, False, False]
    """
    floor = jnp.sqrt(ss) * jnp.sqrt(yy) * (sigmas * size**-0.5)
    return ~((jnp.abs(sy) > floor) & in_range(ss, yy) & jnp.isfinite(sy))


def doubly_damped_pair(
    s: ArrayTree,
    y: ArrayTree,
    Bs: ArrayTree,
    product: Callable[[ArrayTree], ArrayTree],
    *,
    theta: float = 0.2,
) -> tuple[ArrayTree, ArrayTree]:
    """A pair that moves H neither far up nor far down.

        y' = y + B s,   s' = t s + (1 − t) H y',   t ≤ 1 the largest with s'ᵀy' ≥ theta · y'ᵀH y'.

    The first shift bounds H above, roughly by B⁻¹. The second, Powell's damping, keeps H positive
    definite where y shows too little curvature, or negative curvature.

    Args:
      s: step, any pytree.
      y: gradient change, likewise.
      Bs: product of s with a positive definite floor for the curvature; zero for none.
      product: ``v -> H v``.
      theta: fraction of y'ᵀH y' to keep, in (0, 1).

    Returns:
      ``(s', y')``.

    Example:
      >>> s, y = jnp.array([1.0]), jnp.array([-1.0])
      >>> doubly_damped_pair(s, y, 3 * s, lambda v: v)
      (Array([1.], dtype=float32), Array([2.], dtype=float32))

    References:
      Goldfarb, Ren & Bahamou, NeurIPS 2020, section 4, for damping on both sides; Nocedal & Wright,
      Numerical Optimization, 2nd ed., 2006, procedure 18.2.
    """
    y = jax.tree.map(jnp.add, y, Bs)
    Hy = product(y)
    return damped_step(s, Hy, powell_fraction(vdot(s, y), vdot(y, Hy), theta)), y


def absorb_noisy_pair(
    qn: QuasiNewton,
    approx: MemoryState,
    pair: tuple[ArrayTree, ArrayTree],
    gamma: Array,
    D: ArrayTree,
    *,
    theta: float = 0.2,
    floor: float = 1.0,
    sigmas: float = 1.0,
) -> tuple[MemoryState, Array]:
    """Put a pair into a limited memory over H₀ = D, damped and in units of D.

        gamma = running mean of sᵀy/yᵀD y,
        H corrected by (s, gamma y), doubly damped with B = floor · D⁻¹,

    both unless (s, y) is within its noise in the metric of D. Where gamma y = D⁻¹ s, H stays D: H
    learns how curvature differs between directions, and not its overall size.

    Args:
      qn: of :func:`jaxqn.lbfgs_memory`.
      approx: its state.
      pair: (s, y); a zero pair changes nothing.
      gamma: before, shape ``()``; 0 for none.
      D: a positive diagonal like s.
      theta: see :func:`doubly_damped_pair`.
      floor: likewise, in units of D⁻¹.
      sigmas: see :func:`within_noise`.

    Returns:
      ``(approx, gamma)``.

    Cost: four reads of the history.

    Example:
      >>> from jaxqn import lbfgs_memory
      >>> qn, D, v = lbfgs_memory(2), jnp.ones(2), jnp.array([1.0, 0.0])
      >>> approx, gamma = absorb_noisy_pair(qn, qn.init(v), (v, 4 * v), jnp.array(0.0), D)
      >>> float(gamma)
      0.25
    """
    s, y = pair
    Bs = jax.tree.map(jnp.divide, s, D)
    ss, sy = vdot(s, Bs), vdot(s, y)
    yy = vdot(y, jax.tree.map(jnp.multiply, D, y))
    size = sum(leaf.size for leaf in jax.tree.leaves(s))
    accepted = ~within_noise(ss, sy, yy, size, sigmas=sigmas)
    ratio, known = safe_divide(jnp.abs(sy), yy, accepted), gamma > 0
    mean = jnp.where(known, 0.9 * gamma + 0.1 * ratio, ratio)
    gamma = jnp.where(accepted & ((sy > 0) | ~known), mean, gamma)

    def times(factor: Array | float, v: ArrayTree) -> ArrayTree:
        return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, v)

    start: dict[str, Any] = {"H0": D}
    s, y = doubly_damped_pair(
        s, times(gamma, y), times(floor, Bs), lambda v: qn.apply(approx, v, **start), theta=theta
    )
    s, y = (jax.tree.map(lambda v: jnp.where(accepted, v, 0), part) for part in (s, y))
    return qn.update(approx, s, y), gamma


def bounded_direction(
    qn: QuasiNewton, approx: MemoryState, g: ArrayTree, D: ArrayTree, *, clip: float = 1.0
) -> ArrayTree:
    """H g from H₀ = D, in the metric of D⁻¹ no longer than ``clip`` times D g.

    The result is D g while there are no pairs, and where H g is no direction of descent or not
    finite.

    Args:
      qn: of :func:`jaxqn.lbfgs_memory`.
      approx: its state.
      g: gradient, or a mean of gradients.
      D: a positive diagonal like g.
      clip: longest direction, in units of D g.

    Cost: two reads of the history.

    Example:
      >>> from jaxqn import lbfgs_memory
      >>> qn, D, v = lbfgs_memory(2), jnp.ones(2), jnp.array([1.0, 0.0])
      >>> approx = qn.update(qn.init(v), 4 * v, v)
      >>> bounded_direction(qn, approx, v, D).tolist(), qn.apply(approx, v, H0=D).tolist()
      ([1.0, 0.0], [4.0, 0.0])
    """
    start: dict[str, Any] = {"H0": D}
    base, Hg = jax.tree.map(jnp.multiply, D, g), qn.apply(approx, g, **start)
    longest = clip * jnp.sqrt(vdot(base, g))
    length = jnp.sqrt(vdot(Hg, jax.tree.map(jnp.divide, Hg, D)))
    share = jnp.where(length > longest, safe_divide(longest, length, length > longest), 1)
    better = (approx.absorbed > 0) & jnp.isfinite(length) & (vdot(Hg, g) > 0)

    def of_leaf(Hg: Array, base: Array) -> Array:
        return jnp.where(better, share.astype(Hg.dtype) * Hg, base)

    return jax.tree.map(of_leaf, Hg, base)
