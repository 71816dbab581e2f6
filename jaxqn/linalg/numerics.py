"""Inner products at full precision, safe quotients, decisions, and limits of the dtypes.

On accelerators a default-precision product may round its inputs to bfloat16 or TF32; curvature
information does not survive that, so every product here asks for ``Precision.HIGHEST``.
"""

import jax
import jax.numpy as jnp

from jaxqn._typing import Array

HIGHEST = jax.lax.Precision.HIGHEST


def dot(a: Array, b: Array) -> Array:
    """Inner product of two vectors, or product of a matrix with a vector or matrix."""
    return jnp.dot(a, b, precision=HIGHEST)


SHORT = 256
"""Entries up to which inner products are sums; a batch of tiny matrix products takes longer."""


SMALL_MATRIX = 32
"""Columns up to which a product with a vector is a sum, for the same reason."""


def inner(*pairs: tuple[Array, Array]) -> Array:
    """The inner product of every pair of flat vectors, shape ``(k,)``.

    For longer vectors, a matrix of all the firsts multiplies each distinct second. Such a product
    needs no kernel of its own, and unlike a product of two matrices it needs no other thread.
    """
    if pairs[0][0].size <= SHORT:
        left, right = (jnp.stack(side) for side in zip(*pairs, strict=True))
        return jnp.sum(left * right, axis=1)
    firsts = {id(a): a for a, _ in pairs}
    row = {key: i for i, key in enumerate(firsts)}
    rows = jnp.stack(list(firsts.values()))
    columns = {key: dot(rows, b) for key, b in {id(b): b for _, b in pairs}.items()}
    return jnp.stack([columns[id(b)][row[id(a)]] for a, b in pairs])


def matvec(A: Array, x: Array) -> Array:
    """The product of a matrix with a vector, a sum of products for a small one."""
    return jnp.sum(A * x[None], axis=1) if x.size <= SMALL_MATRIX else dot(A, x)


def computed_once(*flags: Array) -> Array:
    """The flags in one array, which XLA computes once.

    XLA computes a cheap value again in every kernel that reads it, and most kernels of a loop read
    whether its step was accepted. XLA never duplicates a square root.
    """
    return jnp.sqrt(jnp.stack(flags).astype(jnp.float32)) > 0.5


def safe_divide(numerator: Array, denominator: Array, where: Array) -> Array:
    """``numerator / denominator`` where ``where`` holds, else 0; a masked value divides nothing."""
    quotient = numerator / jnp.where(where, denominator, jnp.ones_like(denominator))
    return jnp.where(where, quotient, jnp.zeros_like(quotient))


def widest(*dtypes: jnp.dtype) -> jnp.dtype:
    """The dtype of sums over numbers of these: the widest, and at least float32."""
    return max([jnp.dtype(jnp.float32), *dtypes], key=lambda dtype: jnp.finfo(dtype).bits)


def eps(dtype: jax.typing.DTypeLike) -> float:
    """Spacing of the numbers next to 1 in ``dtype``."""
    return float(jnp.finfo(dtype).eps)


def last_digits(change: Array, x: Array) -> Array:
    """A change of x in units of its last digit, entry by entry."""
    return change / jnp.maximum(eps(x.dtype) * jnp.abs(x), jnp.finfo(x.dtype).tiny)


def power_of_two(size: Array) -> Array:
    """The power of two next to a size, within what can be inverted; 1 for zero and NaN."""
    info = jnp.finfo(size.dtype)
    power = jax.lax.reduce_precision(size, exponent_bits=info.nexp, mantissa_bits=0)
    return jnp.where(size > 0, jnp.clip(power, info.tiny, info.max / 4), 1)


def magnitude(array: Array) -> Array:
    """The power of two next to the largest magnitude: dividing by it rounds nothing.

    Twice it and the reciprocal of that are normal numbers; it is 1 for zero and NaN.
    """
    most = 0.25 / float(jnp.finfo(array.dtype).tiny)
    return power_of_two(jnp.minimum(jnp.max(jnp.abs(array)), most))


def far_apart(a: Array, b: Array) -> Array:
    """Whether squares of numbers next to one size may leave the range when held over another."""
    limit = float(jnp.finfo(a.dtype).tiny) ** (1 / 3)
    return (a < limit * b) | (b < limit * a)
