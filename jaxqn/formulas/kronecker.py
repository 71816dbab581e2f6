"""Whitening a matrix of gradients from both sides: roots of inverse second moments.

For a parameter that is an m-by-n matrix, gradients G have second moments L ≈ E[G R⁻¹ Gᵀ]/n of
their rows and R ≈ E[Gᵀ L⁻¹ G]/m of their columns. The direction is a product with roots of their
inverses, K with K Kᵀ = L⁻¹, and a new gradient corrects a root by rank one. A root is known up to a
rotation of its columns, and no result of this module depends on that rotation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxqn._typing import Array
from jaxqn.linalg import dot, eps, safe_divide

__all__ = [
    "Side",
    "inverse_root",
    "inverse_root_update",
    "kronecker_direction",
    "side_by_factorisation",
    "side_by_rank_one",
    "white_side",
]


def inverse_root(A: Array, *, damping: Array | float = 0.1) -> Array:
    """A root of the inverse of a damped second moment, by Cholesky's factorisation.

        K Kᵀ = (A/μ + damping · I)⁻¹,   μ = tr(A)/n.

    Args:
      A: positive semidefinite, shape ``(n, n)``.
      damping: added to the diagonal, in units of its mean; positive, and at least 2 n eps, since
        rounding hides less.

    Returns:
      K, shape ``(n, n)``; where A is zero, a multiple of the identity.

    Cost: n³ or so.

    Example:
      >>> K = inverse_root(jnp.diag(jnp.array([1.5, 0.5])), damping=0.5)
      >>> jnp.round(K @ K.T, 6).tolist()
      [[0.5, 0.0], [0.0, 1.0]]
    """
    n = A.shape[0]
    mean = jnp.trace(A) / n
    identity = jnp.eye(n, dtype=A.dtype)
    damping = jnp.maximum(jnp.asarray(damping, A.dtype), 2 * n * eps(A.dtype))
    factor = jnp.linalg.cholesky(safe_divide(A, mean, mean > 0) + damping * identity)
    return solve_triangular(factor, identity, lower=True).T


def inverse_root_update(
    K: Array, u: Array, *, decay: Array | float, weight: Array | float
) -> Array:
    """Correct a root of an inverse by rank one, for a new vector in the second moment.

        K₊ K₊ᵀ = (decay · A + weight · u uᵀ)⁻¹   where K Kᵀ = A⁻¹,
        K₊ = K (I − c x xᵀ)/√decay,   x = Kᵀu,
        c = (1 − √(decay/(decay + weight · xᵀx)))/xᵀx.

    This is the formula of Sherman and Morrison for a root. It takes no difference of matrices, so
    that K₊ K₊ᵀ stays positive definite under rounding. For u = 0 it is K/√decay.

    Args:
      K: shape ``(n, n)``.
      u: shape ``(n,)``.
      decay: positive.
      weight: not negative.

    Returns:
      K₊, shape ``(n, n)``.

    Cost: two products with K, a correction of rank one.

    Example:
      >>> K = inverse_root_update(jnp.eye(2), jnp.array([1.0, 0.0]), decay=1.0, weight=3.0)
      >>> (K @ K.T).tolist()
      [[0.25, 0.0], [0.0, 1.0]]
    """
    decay, weight = jnp.asarray(decay, K.dtype), jnp.asarray(weight, K.dtype)
    x = dot(u, K)
    xx = dot(x, x)
    total = decay + weight * xx
    # (1 − √(decay/total))/xx, free of the cancellation for a short x.
    c = weight / (total + jnp.sqrt(decay * total))
    return (K - c * jnp.outer(dot(K, x), x)) / jnp.sqrt(decay)


def kronecker_direction(G: Array, left: Array | None, right: Array | None) -> Array:
    """The direction D = L⁻¹ G R⁻¹ = Kₗ Kₗᵀ G Kᵣ Kᵣᵀ, from roots of the inverses.

    It is the natural gradient for gradients whose second moment is the Kronecker product of R and
    L; the trace of GᵀD is positive.

    Args:
      G: gradient, shape ``(m, n)``.
      left: Kₗ, shape ``(m, m)``; ``None`` for the identity.
      right: Kᵣ, shape ``(n, n)``; ``None`` for the identity.

    Returns:
      D, shape ``(m, n)``.

    Cost: four products.

    Example:
      >>> G, root = jnp.array([[4.0, 0.0], [0.0, 1.0]]), jnp.diag(jnp.array([0.5, 1.0]))
      >>> kronecker_direction(G, root, None).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    D = G if left is None else dot(left, dot(left.T, G))
    return D if right is None else dot(dot(D, right), right.T)


class Side(NamedTuple):
    """The rows, or the columns, of one matrix of gradients.

    Attributes:
      moment: running second moment, shape ``(n, n)``; ``None`` where only its root is kept.
      root: K with K Kᵀ the damped inverse of the moment up to a factor, shape ``(n, n)``.
      scale: with no ``moment``, the running mean of its diagonal, shape ``()``.
    """

    moment: Array | None
    root: Array
    scale: Array


def white_side(n: int, dtype: jax.typing.DTypeLike, *, factorised: bool) -> Side:
    """A side before any gradient: K = I.

    Example:
      >>> white_side(1, jnp.float32, factorised=False).root.tolist()
      [[1.0]]
    """
    return Side(
        moment=jnp.zeros((n, n), dtype) if factorised else None,
        root=jnp.eye(n, dtype=dtype),
        scale=jnp.zeros((), dtype),
    )


def side_by_factorisation(
    side: Side, X: Array, *, weight: Array, damping: float, due: Array
) -> Side:
    """Mix X Xᵀ/m into the moment; renew the root by :func:`inverse_root` where ``due`` holds.

    Args:
      side: with a moment.
      X: shape ``(n, m)``.
      weight: of the newcomer, in [0, 1); with 0 and a finite X nothing changes.
      damping: as in :func:`inverse_root`.
      due: whether to factorise, shape ``()``; a factorisation that fails leaves the root unchanged.

    Example:
      >>> side, weight = white_side(1, jnp.float32, factorised=True), jnp.float32(0.5)
      >>> X = jnp.array([[2.0]])
      >>> side = side_by_factorisation(side, X, weight=weight, damping=3.0, due=jnp.array(True))
      >>> side.moment.tolist(), side.root.tolist()
      ([[2.0]], [[0.5]])
    """
    assert side.moment is not None
    moment = (1 - weight) * side.moment + weight * (dot(X, X.T) / X.shape[1])

    def renewed() -> Array:
        root = inverse_root(moment, damping=damping)
        return jnp.where(jnp.all(jnp.isfinite(root)), root, side.root)

    # A cond, so that only the calls where it is due pay for a factorisation, of cubic cost.
    root = jax.lax.cond(due, renewed, lambda: side.root)
    return side._replace(moment=moment, root=root)


def side_by_rank_one(side: Side, X: Array, *, weight: Array, damping: float, key: Array) -> Side:
    """Correct the root for one random vector u with E[u uᵀ] = X Xᵀ/m, and for its damping.

    The damping is of rank one as well: a vector of random signs e has E[e eᵀ] = I.

    Args:
      side: without a moment.
      X: shape ``(n, m)``.
      weight: of the newcomer, in [0, 1); with 0 and a finite X nothing changes.
      damping: in units of the mean of the moment's diagonal.
      key: of the two random vectors.

    Example:
      >>> side, weight = white_side(1, jnp.float32, factorised=False), jnp.float32(0.5)
      >>> key, X = jax.random.key(0), jnp.array([[2.0]])
      >>> side_by_rank_one(side, X, weight=weight, damping=0.1, key=key).root.tolist()
      [[1.0]]
    """
    keys = jax.random.split(key)
    n, m = X.shape
    u = dot(X, jax.random.normal(keys[0], (m,), X.dtype)) * m**-0.5
    scale = (1 - weight) * side.scale + weight * jnp.mean(u * u)
    root = inverse_root_update(side.root, u, decay=1 - weight, weight=weight)
    e = jnp.sqrt(scale) * jax.random.rademacher(keys[1], (n,), X.dtype)
    root = inverse_root_update(root, e, decay=1.0, weight=damping * weight)
    # No result depends on the factor of a root; dividing by it keeps the root in range.
    size = jnp.sqrt(jnp.mean(root * root) * n)
    size = jnp.where((weight > 0) & (size > 0), size, 1)
    return side._replace(root=root / size, scale=scale)
