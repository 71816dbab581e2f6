"""The trust-region subproblem where the spectrum of the model is known."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linalg import eps, safe_divide

__all__ = ["SpectralStep", "spectral_step"]

ITERATIONS = 100
"""Steps of a safeguarded iteration that takes about five; bisection ends within these."""


class SpectralStep(NamedTuple):
    """A step in coordinates along eigenvectors.

    Attributes:
      c: the coordinates, shape ``(k,)``.
      mu: the multiplier: (lambda + mu) c = −a, but for one coordinate in the hard case.
      is_minimum: whether c is the minimum of a convex model within the radius.
    """

    c: Array
    mu: Array
    is_minimum: Array


def spectral_step(values: Array, a: Array, radius: Array) -> SpectralStep:
    """The minimum of aᵀc + ½ Σ lambdaᵢ cᵢ² over ‖c‖ ≤ Δ, to rounding, hard case included.

    A solution has (lambda + mu) c = −a with mu ≥ max(0, −lambda₁), and mu = 0 or ‖c‖ = Δ. The root
    of 1/‖c(mu)‖ − 1/Δ comes from Newton's iteration, kept between bounds. In the hard case, where a
    has nothing along the lowest eigenvectors and c(−lambda₁) is short, one of their coordinates
    fills the radius.

    Args:
      values: eigenvalues lambda in any order, shape ``(k,)``.
      a: the gradient along the eigenvectors, shape ``(k,)``.
      radius: Δ, positive, shape ``()``.

    Returns:
      A :class:`SpectralStep`. Cost: some passes over k numbers.

    Example:
      >>> step = spectral_step(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.0]), jnp.array(2.0))
      >>> round(float(step.mu), 3), [round(float(v), 3) for v in step.c]
      (2.0, [-1.0, 1.732])

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, section 4.3; Moré & Sorensen, SIAM J.
      Sci. Stat. Comput. 4 (1983).
    """
    chex.assert_rank(values, 1)
    chex.assert_equal_shape([values, a])
    digit = eps(a.dtype)
    lowest, size = jnp.min(values), jnp.max(jnp.abs(values))
    gaps = values - lowest
    low = gaps <= 10 * digit * size
    floor = jnp.maximum(-lowest, 0)
    definite = lowest > digit * size

    def at(extra: Array) -> tuple[Array, Array, Array]:
        """c, its length and its fall −d log‖c‖/dmu for mu = floor + extra."""
        d = jnp.where(definite, values + extra, gaps + extra)
        c = -safe_divide(a, d, d > 0)
        cc = jnp.sum(c**2)
        fall = safe_divide(jnp.sum(safe_divide(c**2, d, d > 0)), cc, cc > 0)
        return c, jnp.sqrt(cc), fall

    most = jnp.sqrt(jnp.sum(a**2)) / radius

    def going(carry: tuple) -> Array:
        _, lo, hi, error, count = carry
        return (jnp.abs(error) > 4 * digit) & (hi - lo > digit * hi) & (count < ITERATIONS)

    def better(carry: tuple) -> tuple:
        extra, lo, hi, _, count = carry
        _, length, fall = at(extra)
        error = length / radius - 1
        lo, hi = jnp.where(error > 0, extra, lo), jnp.where(error > 0, hi, extra)
        new = extra + safe_divide(error, fall, fall > 0)
        middle = jnp.where(lo > 0, jnp.sqrt(lo) * jnp.sqrt(hi), 1e-3 * hi)
        new = jnp.where((new > lo) & (new < hi), new, middle)
        return jnp.where(jnp.abs(error) > 4 * digit, new, extra), lo, hi, error, count + 1

    zero = jnp.zeros_like(radius)
    far = jnp.full_like(radius, jnp.inf)
    # Without what a has along the lowest eigenvectors, at mu = floor: short in the hard case.
    gap = jnp.where(definite, values, jnp.where(low, 1, gaps))
    inner = jnp.where(definite | ~low, -a / gap, 0)
    room = radius**2 - jnp.sum(inner**2)
    rest = jnp.sqrt(jnp.sum(jnp.where(low & ~definite, a, 0) ** 2))
    fits = (room >= 0) & (rest <= digit * size * jnp.sqrt(jnp.maximum(room, 0)))
    is_hard = fits & (lowest < -digit * size)
    is_minimum = fits & ~is_hard
    ends = is_hard | is_minimum
    start = (jnp.where(ends, zero, most), zero, most, jnp.where(ends, zero, far), jnp.int32(0))
    extra = jax.lax.while_loop(going, better, start)[0]
    c, length, _ = at(extra)
    c = jnp.where(length > radius, safe_divide(radius, length, length > 0), 1) * c
    first = jnp.arange(len(a), dtype=jnp.int32) == jnp.argmin(values).astype(jnp.int32)
    side = jnp.where(a > 0, -1, 1) * jnp.sqrt(jnp.maximum(room, 0))
    filled = jnp.where(first, side, inner)
    c = jnp.where(is_minimum, inner, jnp.where(is_hard, filled, c))
    return SpectralStep(c, jnp.where(is_minimum, 0, floor + extra), is_minimum)
