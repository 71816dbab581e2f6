"""Inverses of curvature with a rank, sandwiches and profiles, against NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxqn.formulas import (
    gram_inverse,
    hessian_inverse,
    inverse_gram,
    profiled_square,
    sandwich,
)

J = np.random.default_rng(0).normal(size=(12, 4)) * np.array([1.0, 1e-6, 1e3, 1.0])
R = np.random.default_rng(1).normal(size=12)
ALL = jnp.ones(4, bool)
FREE = jnp.array([True, False, True, True])


def embedded(matrix, free=FREE):
    full = np.zeros((4, 4))
    full[np.ix_(free, free)] = matrix
    return full


def exact_inverse(J):
    """(JᵀJ)⁻¹ from the pseudo-inverse of J, which SciPy makes from its own singular values."""
    D = np.linalg.norm(J, axis=0)
    pinv = scipy.linalg.pinv(J / D)
    return pinv @ pinv.T / np.outer(D, D)


def test_the_inverse_of_a_gram_matrix(dtype):
    tolerance = 1e-10 if dtype == jnp.float64 else 1e-4
    found = gram_inverse(jnp.asarray(J, dtype), ALL)
    expected = exact_inverse(J)
    np.testing.assert_allclose(found.matrix, expected, rtol=tolerance, atol=0)
    assert found.matrix.dtype == dtype
    assert int(found.rank) == 4
    assert not np.any(found.undetermined)
    singular = np.linalg.svd(J / np.linalg.norm(J, axis=0), compute_uv=False)
    np.testing.assert_allclose(found.condition, (singular[0] / singular[-1]) ** 2, rtol=tolerance)
    np.testing.assert_allclose(found.logdet, np.linalg.slogdet(expected)[1], rtol=10 * tolerance)
    np.testing.assert_array_equal(inverse_gram(jnp.asarray(J, dtype))[0], found.matrix)


def test_the_inverse_of_a_hessian(dtype):
    """The same from JᵀJ, where a parameter's own curvature is the unit."""
    tolerance = 1e-9 if dtype == jnp.float64 else 1e-3
    H = jnp.asarray(J.T @ J, dtype)
    found, gram = hessian_inverse(H, ALL), gram_inverse(jnp.asarray(J), ALL)
    np.testing.assert_allclose(found.matrix, exact_inverse(J), rtol=tolerance, atol=0)
    for name in ("condition", "logdet", "rank"):
        np.testing.assert_allclose(getattr(found, name), getattr(gram, name), rtol=tolerance)
    assert not bool(found.indefinite)


@pytest.mark.parametrize("inverse", [gram_inverse, hessian_inverse])
def test_held_parameters_have_no_part(inverse):
    kept = J[:, FREE]
    found = inverse(jnp.asarray(J if inverse is gram_inverse else J.T @ J), FREE)
    np.testing.assert_allclose(found.matrix, embedded(exact_inverse(kept)), rtol=1e-9, atol=0)
    assert int(found.rank) == 3
    scaled = kept / np.linalg.norm(kept, axis=0)
    np.testing.assert_allclose(found.condition, np.linalg.cond(scaled) ** 2, rtol=1e-9)
    logdet = np.linalg.slogdet(exact_inverse(kept))[1]
    np.testing.assert_allclose(found.logdet, logdet, rtol=1e-9)


@pytest.mark.parametrize("inverse", [gram_inverse, hessian_inverse])
def test_what_is_not_determined(inverse, dtype):
    """Two equal columns in different units: their sum is determined, and so are the others."""
    twice = np.stack([J[:, 0], 8 * J[:, 0], J[:, 2], J[:, 3]], axis=1)
    A = jnp.asarray(twice if inverse is gram_inverse else twice.T @ twice, dtype)
    found = inverse(A, ALL)
    assert int(found.rank) == 3
    assert np.isinf(found.condition)
    assert np.isnan(found.logdet)
    expected = np.zeros((4, 4))  # the direction (8, −1) in x, over the lengths of the columns
    null = np.array([1, -1 / 8]) / np.linalg.norm(J[:, 0]) / np.sqrt(2)
    expected[:2, :2] = np.outer(null, null)
    tolerance = 1e-8 if dtype == jnp.float64 else 1e-3
    np.testing.assert_allclose(found.undetermined, expected, rtol=tolerance)
    others = exact_inverse(twice[:, [0, 2, 3]])
    np.testing.assert_allclose(found.matrix[2:, 2:], others[1:, 1:], rtol=tolerance)
    total = np.array([1.0, 8.0, 0, 0])
    np.testing.assert_allclose(
        total @ np.asarray(found.matrix) @ total, others[0, 0], rtol=tolerance
    )


def test_fewer_rows_than_columns():
    found = gram_inverse(jnp.asarray(J[:2]), ALL)
    assert int(found.rank) == 2
    assert np.all(np.diag(found.undetermined) > 0)
    assert np.all(np.isfinite(found.matrix))


def test_a_saddle_and_a_flat_direction():
    H = jnp.diag(jnp.array([4.0, -1.0, 0.0, 1.0]))
    found = hessian_inverse(H, ALL)
    assert bool(found.indefinite)
    assert int(found.rank) == 2
    np.testing.assert_allclose(np.diag(found.matrix), [0.25, 0, 0, 1])
    np.testing.assert_allclose(np.diag(found.undetermined) > 0, [False, True, True, False])
    assert not bool(hessian_inverse(jnp.diag(jnp.array([4.0, 1.0, 0.0, 1.0])), ALL).indefinite)


def test_sandwich():
    A_inv = exact_inverse(J)
    expected = A_inv @ (J.T @ np.diag(R**2) @ J) @ A_inv
    np.testing.assert_allclose(sandwich(A_inv, J, R), expected, rtol=1e-9)


@pytest.mark.parametrize("free", [ALL, FREE], ids=["all", "one held"])
def test_profiled_square(free):
    """The residual sum of squares of SciPy's regression on the other columns."""
    for i in np.flatnonzero(free):
        others = [j for j in np.flatnonzero(free) if j != i]
        rest = R - J[:, others] @ scipy.linalg.lstsq(J[:, others], R)[0]
        found = profiled_square(jnp.asarray(J), jnp.asarray(R), i, free)
        np.testing.assert_allclose(found, rest @ rest, rtol=1e-10)


@pytest.mark.parametrize("m", [1, 3])
def test_profiled_square_of_few_rows(m):
    """One parameter: nothing is projected out. Fewer residuals than parameters: nothing is left."""
    one = profiled_square(jnp.asarray(J[:m, :1]), jnp.asarray(R[:m]), 0, ALL[:1])
    np.testing.assert_allclose(one, R[:m] @ R[:m], rtol=1e-12)
    np.testing.assert_allclose(profiled_square(J[:m], jnp.asarray(R[:m]), 0, ALL), 0, atol=1e-20)
