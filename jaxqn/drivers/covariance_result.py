"""What :func:`jaxqn.covariance` returns, and what follows from it."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_hashable
from jaxqn.linalg import HIGHEST, dot, eps

__all__ = ["REASONS", "Covariance", "Transformed", "jacobian_of", "like"]

REASONS = (
    "the errors can be relied on",
    "not finite: the objective or its derivatives are NaN or infinite at x",
    "no degrees of freedom: there are no more residuals than parameters, so that their size says "
    'nothing of the noise; give noise="unit", or its standard deviation, if it is known',
    "rank deficient: the data do not determine some combination of parameters; those in it have "
    "infinite errors (undetermined says which); fix one of them, or reparametrise",
    "not at a minimum: the gradient is not 0 beside the errors (offset), or the curvature along "
    "some direction is negative; fit on from x, from a point a little off it",
    "at a bound: some parameter sits at a bound (at_bound), and has no error of its own, which is "
    "NaN; the errors of the others hold for it there",
    "nonlinear: the objective is not quadratic within two standard errors (nonlinearity); take "
    "jaxqn.profile_intervals",
    'second order: the exact Hessian differs from JᵀJ; compare with kind="observed"',
    "residuals at rounding: they are no larger than what the last digits of x make of them, so "
    'that their size says nothing of the noise; give noise="unit", or its standard deviation',
)
"""What each code means, in words; the smallest that holds is given."""


class Transformed(NamedTuple):
    """A function of the parameters with its errors, see :meth:`Covariance.transform`.

    Attributes:
      value: g(x).
      standard_errors: of its entries, like ``value``.
      matrix: their covariance over the ravelled value, shape ``(k, k)``.
    """

    value: ArrayTree
    standard_errors: ArrayTree
    matrix: Array


class Covariance(NamedTuple):
    """What :func:`covariance` returns. Under ``vmap`` every field has the batch's leading axis.

    Attributes:
      x: the point, as it was given.
      matrix: covariance of the parameters over the ravelled x, shape ``(n, n)``: given the
        parameters at bounds, whose rows are 0; over what the data determine, where that is not
        all. Infinite with code 2, NaN with code 1.
      undetermined: 0 where the rank is full; else, with any large factor, what the covariance has
        beside ``matrix``, shape ``(n, n)``.
      rank: directions of positive curvature, int32.
      condition: of the matrix that was inverted, every parameter in units that make its own
        curvature 1; shape ``()``. Infinite where the rank is not full.
      offset: √(gᵀA⁻¹g) over the noise: how far the minimum of the quadratic model is from x, in
        standard errors of the combination that is farthest off; shape ``()``.
      at_bound: which bound x is at, like ``x``, int32: −1 the lower, 1 the upper, 0 none.
      nonlinearity: like ``x``, how far the profile of the objective, two standard errors off, is
        from a parabola: abs(log(t/2)), see :func:`covariance`; ``None`` without ``profile``.
      log_evidence: Laplace's approximation to log ∫ exp(−f) dx over the free parameters, shape
        ``()``; see :func:`covariance`. NaN where it is not defined: parameters at bounds, a
        Hessian that is not positive definite, noise that is estimated.
      code: the first of the doubts of ``reason`` that holds, int32; 0 for none.
    """

    x: ArrayTree
    matrix: Array
    undetermined: Array
    rank: Array
    condition: Array
    offset: Array
    at_bound: ArrayTree
    nonlinearity: ArrayTree
    log_evidence: Array
    code: Array

    @property
    def standard_errors(self) -> ArrayTree:
        """Like ``x``. Infinite for what is not determined, NaN for what is at a bound, 0 if fixed.

        A parameter is fixed by equal bounds, and then not at one.
        """
        variances = jnp.diagonal(self.matrix, axis1=-2, axis2=-1)
        unknown = jnp.diagonal(self.undetermined, axis1=-2, axis2=-1) > 0
        errors = jnp.where(unknown, jnp.inf, jnp.sqrt(variances))
        held = jnp.concatenate(
            [leaf.reshape(*self.code.shape, -1) for leaf in jax.tree.leaves(self.at_bound)], axis=-1
        )
        return like(self.x, jnp.where(held != 0, jnp.nan, errors), self.code.ndim)

    @property
    def correlation(self) -> Array:
        """Shape ``(n, n)``, with a diagonal of 1; of parameters without an error, 0 elsewhere."""
        variances = jnp.diagonal(self.matrix, axis1=-2, axis2=-1)
        has = variances > 0
        errors = jnp.sqrt(jnp.where(has, variances, 1))
        R = self.matrix / errors[..., :, None] / errors[..., None, :]
        R = jnp.where(has[..., :, None] & has[..., None, :], R, 0)
        return jnp.where(jnp.eye(R.shape[-1], dtype=bool), jnp.ones((), R.dtype), R)

    @property
    def reliable(self) -> Array:
        """Whether nothing speaks against the errors: code 0. Boolean array."""
        return self.code == 0

    @property
    def reason(self) -> str:
        """The doubt in words, with advice. Only for a single, concrete result."""
        if np.ndim(self.code):
            raise ValueError("reason is for one problem; a batch has codes: see jaxqn.REASONS")
        return REASONS[int(self.code)]

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> ArrayTree:
        """Draws from the normal distribution around x with this covariance (Laplace).

        Parameters at bounds stay there; those not determined are NaN. A draw may lie outside of
        the bounds. Only for a single result: take it under ``jax.vmap``.

        Args:
          key: as for ``jax.random``.
          shape: of the draws.

        Returns:
          A pytree like ``x`` whose leaves have the leading shape ``shape``.
        """
        self._single("sample")
        errors = jnp.sqrt(jnp.diagonal(self.matrix))
        zeros = jnp.zeros_like(errors)
        z = jax.random.multivariate_normal(
            key, zeros, self.correlation, tuple(shape), errors.dtype, method="svd"
        )
        unknown = jnp.diagonal(self.undetermined) > 0
        flat = jax.flatten_util.ravel_pytree(self.x)[0]
        scale = jnp.where(unknown, jnp.nan, errors)
        axes = (None,) * len(shape)
        return like(self.x, flat[axes] + scale[axes] * z)

    def transform(self, g: Callable[[ArrayTree], ArrayTree]) -> Transformed:
        """The errors of g(x), by the delta method: G C Gᵀ with the Jacobian G of g at x.

        They hold given the parameters at bounds. An entry that depends on nothing else has the
        error NaN, and one that depends on what is not determined an infinite one. Only for a
        single result: take it under ``jax.vmap``.

        Args:
          g: a function of a pytree like ``x``; keep it one object, a program is compiled for it.

        Returns:
          A :class:`Transformed`: ``value``, ``standard_errors`` like it, and ``matrix``.
        """
        self._single("transform")
        check_hashable(g, "g")
        return _transformed(self, g=g)

    def _single(self, what: str) -> None:
        if np.ndim(self.code):
            raise ValueError(f"{what} is for one problem: take it under jax.vmap")


@functools.partial(jax.jit, static_argnames=("g",))
def _transformed(found: Covariance, *, g: Callable[..., Any]) -> Transformed:
    v, back = jax.flatten_util.ravel_pytree(found.x)
    value = g(found.x)
    flat, like_value = jax.flatten_util.ravel_pytree(value)
    G = jacobian_of(lambda v: jax.flatten_util.ravel_pytree(g(back(v)))[0].astype(v.dtype), v)
    matrix = jnp.matmul(dot(G, found.matrix), G.T, precision=HIGHEST)
    variances = jnp.diagonal(matrix)
    alone = jnp.sum(G**2 * jnp.diagonal(found.undetermined)[None], axis=1)
    unknown = jnp.sum(dot(G, found.undetermined) * G, axis=1)
    held = jax.flatten_util.ravel_pytree(found.at_bound)[0] != 0
    on_held = jnp.any((G != 0) & held[None], axis=1)
    errors = jnp.where(unknown > eps(G.dtype) ** 0.5 * alone, jnp.inf, jnp.sqrt(variances))
    errors = jnp.where(on_held & (variances == 0), jnp.nan, errors)
    return Transformed(value, like_value(errors.astype(flat.dtype)), matrix)


def jacobian_of(fun: Callable[[Array], Array], v: Array) -> Array:
    """The Jacobian forwards, or backwards where the function has no derivative forwards."""
    try:
        return jax.jacfwd(fun)(v)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return jax.jacrev(fun)(v)


def like(x: ArrayTree, flat: Array, batch: int = 0) -> ArrayTree:
    """Flat numbers ``(..., n)`` as a pytree whose leaves end in the shapes of those of ``x``.

    Args:
      x: a pytree of arrays.
      flat: the numbers.
      batch: how many leading axes the leaves of ``x`` have beside their own; ``flat`` has them too.
    """
    leaves, structure = jax.tree.flatten(x)
    shapes = [jnp.shape(leaf)[batch:] for leaf in leaves]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1].tolist()
    parts = jnp.split(flat, ends, axis=-1)
    shaped = [
        part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)
