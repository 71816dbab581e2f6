"""Symmetric systems beside NumPy, alone and in batches, where few unknowns go another way."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from programs import count

from jaxqn.linalg import positive_solve

SIZES = (1, 2, 7, 12, 13, 20)
each_size = pytest.mark.parametrize("n", SIZES)
solve, solve_all = jax.jit(positive_solve), jax.jit(jax.vmap(positive_solve))


def matches(found, A, b, tol):
    x = np.linalg.solve(A, b)
    np.testing.assert_allclose(found.x, x, atol=tol * np.max(np.abs(x)))
    np.testing.assert_allclose(found.form, x[:, 0] @ np.linalg.solve(A, x[:, 0]), rtol=tol)
    smallest, pivot = np.linalg.eigvalsh(A)[0], np.min(np.diag(np.linalg.cholesky(A))) ** 2
    np.testing.assert_allclose(found.least, pivot, rtol=tol)
    assert found.least >= smallest * (1 - tol)
    assert bool(found.positive)


@each_size
def test_solutions(n, dtype, rng):
    """Whatever the units; in a batch, too, where lanes differ."""
    tol = 1e-3 if dtype == jnp.float32 else 1e-11
    scales = (1e-8, 1.0, 1e8)
    A = np.stack([scale * oracles.random_spd(rng, n) for scale in scales])
    b = rng.normal(size=(3, n, 2))
    batch = jax.tree.map(np.asarray, solve_all(jnp.asarray(A, dtype), jnp.asarray(b, dtype)))
    assert {leaf.dtype for leaf in batch} == {np.dtype(dtype)}
    for i in range(3):
        alone = solve(jnp.asarray(A[i], dtype), jnp.asarray(b[i], dtype))
        matches(jax.tree.map(np.asarray, alone), A[i], b[i], tol)
        matches(type(batch)(*(leaf[i] for leaf in batch)), A[i], b[i], tol)


@each_size
def test_what_is_not_positive_definite(n, rng):
    """Alone and in a batch, where one such lane changes no other."""
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.geomspace(0.1, 10, n)
    matrices = [np.zeros((n, n)), np.full((n, n), np.nan), -np.eye(n), 1e-200 * np.eye(n)]
    for least in (-1.0, -1e-3):
        matrix = Q * np.where(np.arange(n) == 0, least, values) @ Q.T
        matrices.append((matrix + matrix.T) / 2)
    A, b = np.stack(matrices), np.broadcast_to(np.ones((n, 1)), (6, n, 1))
    expected = [False, False, False, False, False, False]
    expected[3] = n > 12  # its squares leave the range
    alone = [bool(solve(*case).positive) for case in zip(A, b, strict=True)]
    batch = solve_all(A, b).positive.tolist()
    assert alone[:3] == batch[:3] == expected[:3]
    assert alone[4:] == batch[4:] == expected[4:]
    good = oracles.random_spd(rng, n)
    mixed = solve_all(np.stack([good, A[1], A[2], good]), np.ones((4, n, 1)))
    assert mixed.positive.tolist() == [True, False, False, True]
    for lane in (0, 3):
        np.testing.assert_allclose(
            mixed.x[lane, :, 0], np.linalg.solve(good, np.ones(n)), rtol=1e-9
        )


@pytest.mark.parametrize("n", [7, 13])
def test_what_all_lanes_share(n, rng):
    """One matrix for all right-hand sides, one for all matrices, and a batch of batches."""
    A = np.stack([oracles.random_spd(rng, n) for _ in range(4)])
    b = rng.normal(size=(4, n, 1))
    shared = jax.vmap(positive_solve, (None, 0))(A[0], b)
    np.testing.assert_allclose(shared.x, np.linalg.solve(A[:1], b), rtol=1e-9, atol=1e-11)
    shared = jax.vmap(positive_solve, (0, None))(A, b[0])
    np.testing.assert_allclose(shared.x, np.linalg.solve(A, b[:1]), rtol=1e-9, atol=1e-11)
    twice = jax.vmap(jax.vmap(positive_solve))(A.reshape(2, 2, n, n), b.reshape(2, 2, n, 1))
    expected = np.linalg.solve(A, b).reshape(2, 2, n, 1)
    np.testing.assert_allclose(twice.x, expected, rtol=1e-9, atol=1e-11)


def test_a_batch_of_few_unknowns_calls_no_lapack():
    A, b = np.zeros((3, 12, 12)), np.zeros((3, 12, 1))
    together = jax.make_jaxpr(jax.vmap(positive_solve))(A, b).jaxpr
    assert count(together, "cholesky") == 0
    assert count(jax.make_jaxpr(positive_solve)(A[0], b[0]).jaxpr, "cholesky") == 1
    A, b = np.zeros((3, 13, 13)), np.zeros((3, 13, 1))
    assert count(jax.make_jaxpr(jax.vmap(positive_solve))(A, b).jaxpr, "cholesky") == 1
