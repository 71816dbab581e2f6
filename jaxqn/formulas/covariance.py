"""The covariance of parameters that were fitted by least squares."""

import chex
import jax.numpy as jnp

from jaxqn._typing import Array, compiled
from jaxqn.linalg import HIGHEST, eps, safe_divide

__all__ = ["inverse_gram"]


@compiled
def inverse_gram(J: Array) -> tuple[Array, Array]:
    """(JᵀJ)⁻¹ by the singular values of J over the lengths of its columns, and the rank of J.

        J = U diag(σ) Vᵀ D,    (JᵀJ)⁻¹ = D⁻¹ V diag(σ⁻²) Vᵀ D⁻¹

    Scaled first, columns in different units cost no digits, and no square of J is formed. A σ of at
    most max(m, n) eps times the largest counts as 0, and its direction is left out: that is the
    pseudo-inverse.

    Args:
      J: Jacobian of the residuals, shape ``(m, n)``.

    Returns:
      The matrix, shape ``(n, n)``, and the rank, int32. Cost: O(m n²).

    Example:
      >>> inverse, rank = inverse_gram(jnp.array([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
      >>> [round(float(value), 4) for value in jnp.diag(inverse)], int(rank)
      ([0.25, 0.0625], 2)

    References:
      Björck, Numerical Methods for Least Squares Problems, 1996, section 2.8.
    """
    chex.assert_rank(J, 2)
    lengths = jnp.sqrt(jnp.sum(J**2, axis=0))
    D = jnp.where(lengths > 0, lengths, 1)
    _, sigma, Vt = jnp.linalg.svd(J / D[None], full_matrices=False)
    counts = sigma > max(J.shape) * eps(J.dtype) * sigma[0]
    W = safe_divide(Vt, sigma[:, None], counts[:, None]) / D[None]
    return jnp.matmul(W.T, W, precision=HIGHEST), jnp.sum(counts, dtype=jnp.int32)
