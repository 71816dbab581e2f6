"""Symmetric systems beside NumPy, on both sides of the size where their factorisation changes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from programs import count

from jaxqn.linalg import factorised, solved

SIZES = (1, 2, 7, 12, 13, 20)
each_size = pytest.mark.parametrize("n", SIZES)


@each_size
def test_solutions(n, dtype, rng):
    """Of a vector and of columns, whatever the units."""
    A = oracles.random_spd(rng, n)
    tol = 1e-3 if dtype == jnp.float32 else 1e-11
    for scale in (1e-8, 1.0, 1e8):
        factor = factorised(jnp.asarray(scale * A, dtype))
        assert bool(factor.positive)
        for b in (rng.normal(size=n), rng.normal(size=(n, 3))):
            x = np.asarray(solved(factor, jnp.asarray(b, dtype)))
            assert (x.dtype, x.shape) == (dtype, b.shape)
            expected = np.linalg.solve(scale * A, b)
            assert np.max(np.abs(x - expected)) <= tol * np.max(np.abs(expected))


@each_size
def test_what_is_not_positive_definite(n, rng):
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.geomspace(0.1, 10, n)
    for least in (-1.0, -1e-3):
        matrix = Q * np.where(np.arange(n) == 0, least, values) @ Q.T
        assert not bool(factorised((matrix + matrix.T) / 2).positive)
    assert not bool(factorised(np.zeros((n, n))).positive)
    assert not bool(factorised(np.full((n, n), np.nan)).positive)
    assert not bool(factorised(-np.eye(n)).positive)
    assert bool(factorised(1e-300 * np.eye(n)).positive)


@each_size
def test_the_smallest_eigenvalue_about(n, rng):
    """Within a factor of n for the inverse; never below it for the pivots of Cholesky."""
    for _ in range(5):
        A = oracles.random_spd(rng, n, 1e4)
        least, found = np.linalg.eigvalsh(A)[0], float(factorised(A).least)
        if n <= 12:
            assert least / n * (1 - 1e-9) <= found <= least * (1 + 1e-9)
        else:
            assert found >= least * (1 - 1e-9)


@pytest.mark.parametrize("n", [7, 13])
def test_vmap_is_a_loop(n, rng):
    """One lane that is not definite changes no other."""
    A = np.stack([oracles.random_spd(rng, n) for _ in range(5)])
    A[2] = -A[2]
    b = rng.normal(size=(5, n))
    factors = jax.vmap(factorised)(A)
    assert factors.positive.tolist() == [True, True, False, True, True]
    x = jax.vmap(solved)(factors, b)
    for lane in (0, 1, 3, 4):
        np.testing.assert_allclose(x[lane], np.linalg.solve(A[lane], b[lane]), rtol=1e-9)


def test_small_ones_are_arithmetic():
    """No call of LAPACK a lane."""
    small, large = (jax.make_jaxpr(jax.vmap(factorised))(np.zeros((3, n, n))) for n in (12, 13))
    assert count(small.jaxpr, "cholesky") == 0
    assert count(large.jaxpr, "cholesky") == 1
