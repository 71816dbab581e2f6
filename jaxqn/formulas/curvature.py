"""Is a pair (s, y) usable? The relative curvature test and Powell's damping.

Notation, here and in every module of formulas: s = x₊ − x (step), y = g₊ − g (gradient change),
H ≈ (∇²f)⁻¹, B = H⁻¹, w = H y.
"""

import jax.numpy as jnp

from jaxqn._typing import Array, compiled
from jaxqn.linalg import dot, eps, safe_divide

__all__ = ["has_curvature", "in_range", "powell_damping", "powell_fraction"]


def has_curvature(ss: Array, sy: Array, yy: Array, *, rtol: float | None = None) -> Array:
    """Whether sᵀy > rtol ‖s‖ ‖y‖, from the three inner products of a pair.

    The test is relative, so scaling f or x changes no decision; a zero pair and a pair with a
    non-finite entry, or squares out of range, fail it.

    Args:
      ss: sᵀs, shape ``()``.
      sy: sᵀy, shape ``()``.
      yy: yᵀy, shape ``()``.
      rtol: smallest accepted cosine between s and y; by default 10 eps of the dtype, which
        rounding alone can give to orthogonal vectors.

    Returns:
      Boolean array of shape ``()``.

    Example:
      >>> import jax.numpy as jnp
      >>> bool(has_curvature(jnp.float32(1.0), jnp.float32(-1.0), jnp.float32(4.0)))
      False

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, eq. 6.7 and section 6.1.
    """
    if rtol is None:
        rtol = 10 * eps(sy.dtype)
    floor = jnp.sqrt(ss) * jnp.sqrt(yy) * rtol
    return (sy > floor) & in_range(ss, yy) & jnp.isfinite(sy)


def in_range(ss: Array, yy: Array) -> Array:
    """Whether the squares of a pair have neither overflowed nor lost digits to underflow.

    It is False for a zero pair, and where an entry is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> bool(in_range(jnp.float32(1.0), jnp.float32(1e-40)))
      False
    """
    least = float(jnp.finfo(ss.dtype).tiny) / eps(ss.dtype)
    return (jnp.minimum(ss, yy) > least) & jnp.isfinite(ss) & jnp.isfinite(yy)


@compiled
def powell_damping(s: Array, y: Array, Hy: Array, *, theta: float = 0.2) -> Array:
    """Replace s by a step with enough curvature, Powell's damping in inverse form.

        s' = t s + (1 − t) H y,   t the largest value in [0, 1] with s'ᵀy ≥ theta · yᵀH y.

    Args:
      s: step, shape ``(n,)``.
      y: gradient change, shape ``(n,)``.
      Hy: product of the positive definite H with y, shape ``(n,)``.
      theta: fraction of yᵀH y to keep, in (0, 1).

    Returns:
      The damped step, shape ``(n,)``; ``s`` itself, bit for bit, when its curvature suffices.

    Example:
      >>> import jax.numpy as jnp
      >>> s, y = jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0])
      >>> powell_damping(s, y, y, theta=0.25).tolist()  # sᵀy = −1 becomes 1/4
      [0.25, 0.0]

    References:
      Nocedal & Wright, 2006, procedure 18.2, by duality (B, s, y) → (H, y, s).
    """
    t = powell_fraction(dot(s, y), dot(y, Hy), theta)
    return jnp.where(t < 1, t * s + (1 - t) * Hy, s)


def powell_fraction(sy: Array, yHy: Array, theta: float) -> Array:
    """The t of :func:`powell_damping` from sᵀy and yᵀH y; 1 when the curvature suffices.

    Example:
      >>> float(powell_fraction(jnp.float32(-1.0), jnp.float32(1.0), 0.25))
      0.375
    """
    short = sy < theta * yHy
    return jnp.where(short, safe_divide((1 - theta) * yHy, yHy - sy, short), jnp.ones_like(sy))
