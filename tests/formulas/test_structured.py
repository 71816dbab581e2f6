"""The correction of a Gauss-Newton matrix, and the covariance that one gives."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from programs import count, product_shapes

from jaxqn import structured_update
from jaxqn.formulas import inverse_gram

N = 5
each_branch = pytest.mark.parametrize("curved", [True, False], ids=["y", "Powell"])
each_scale = pytest.mark.parametrize("scaled", [False, True], ids=["W=1", "W"])


def cases(curved=True, scaled=False, seeds=6):
    """Random ``(S, s, y, y#, weights)``, S indefinite, with sᵀy > 0 or below."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        S = rng.normal(size=(N, N))
        s, y = oracles.random_pair(rng, N)
        weights = np.exp(rng.normal(size=N)) if scaled else None
        yield S + S.T, s, y if curved else -y, rng.normal(size=N), weights


def cast(dtype, *arrays):
    return [None if array is None else jnp.asarray(array, dtype) for array in arrays]


def close(actual, expected, tol):
    error = np.max(np.abs(np.asarray(actual, np.float64) - expected))
    assert error <= tol * np.max(np.abs(expected))


@each_scale
@each_branch
def test_the_update_is_the_published_one(curved, scaled, dtype):
    for S, s, y, y_sharp, weights in cases(curved, scaled):
        for tau in (None, 0.3):
            new = structured_update(*cast(dtype, S, s, y, y_sharp, tau, weights))
            assert new.dtype == dtype
            expected = oracles.structured(S, s, y, y_sharp, tau, weights)
            close(new, expected, 1e3 * float(jnp.finfo(dtype).eps))


@each_scale
@each_branch
def test_the_secant_equation_and_symmetry(curved, scaled):
    for S, s, y, y_sharp, weights in cases(curved, scaled):
        new = np.asarray(structured_update(S, s, y, y_sharp, weights=weights))
        np.testing.assert_allclose(new @ s, y_sharp, atol=1e-11)
        np.testing.assert_allclose(new, new.T, atol=1e-12 * np.max(np.abs(new)))


def test_the_correction_has_rank_two():
    for S, s, y, y_sharp, _ in cases():
        correction = structured_update(S, s, y, y_sharp, 1.0) - S
        sizes = np.linalg.svd(correction, compute_uv=False)
        assert np.all(sizes[2:] < 1e-12 * sizes[0])


@each_scale
def test_the_zero_pair_changes_nothing(scaled, dtype):
    """Bit for bit; also with a matrix that is not symmetric."""
    zero = jnp.zeros(N, dtype)
    for S, _, _, _, weights in cases(scaled=scaled, seeds=3):
        S, weights = cast(dtype, S + np.triu(np.ones((N, N))) / 3, weights)
        new = structured_update(S, zero, zero, zero, weights=weights)
        np.testing.assert_array_equal(new, S)


def test_what_is_kept_of_s_fits_the_pair():
    """tau is the ratio of the curvatures along s, but 1 where S is the smaller one or says none."""
    S, s, y_sharp = jnp.diag(jnp.array([4.0, 7.0])), jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])
    kept = structured_update(S, s, s, y_sharp)
    np.testing.assert_array_equal(kept, [[1, 0], [0, 7 / 4]])
    smaller = structured_update(S, s, s, 8 * y_sharp)
    np.testing.assert_array_equal(smaller, [[8, 0], [0, 7]])
    silent = structured_update(S.at[0, 0].set(0), s, s, y_sharp)
    np.testing.assert_array_equal(silent, [[1, 0], [0, 7]])
    opposite = structured_update(-S, s, s, y_sharp)
    np.testing.assert_array_equal(opposite, [[1, 0], [0, -7 / 4]])


@each_branch
@pytest.mark.parametrize("c", [2.0**-30, 2.0**30])
def test_the_scale_of_f(c, curved, dtype):
    for S, s, y, y_sharp, _ in cases(curved, seeds=3):
        S, s, y, y_sharp = cast(dtype, S, s, y, y_sharp)
        plain = structured_update(S, s, y, y_sharp)
        np.testing.assert_array_equal(structured_update(c * S, s, c * y, c * y_sharp), c * plain)


@each_branch
def test_units_of_x(curved, dtype):
    """x → x/u by powers of two, with weights: every digit is the same."""
    u = jnp.asarray([2.0**9, 2.0**-7, 1.0, 2.0**3, 2.0**-12], dtype)
    uu = u[:, None] * u[None]
    for S, s, y, y_sharp, weights in cases(curved, scaled=True):
        S, s, y, y_sharp, weights = cast(dtype, S, s, y, y_sharp, weights)
        plain = structured_update(S, s, y, y_sharp, weights=weights)
        new = structured_update(uu * S, s / u, u * y, u * y_sharp, weights=u**2 * weights)
        close(new / uu, np.asarray(plain, np.float64), 50 * float(jnp.finfo(dtype).eps))


def test_vmap_is_a_loop():
    columns = zip(*(case[:4] for case in cases()), strict=True)
    batch = [np.stack(column) for column in columns]
    lanes = jax.vmap(structured_update)(*batch)
    for lane, *case in zip(lanes, *batch, strict=True):
        close(lane, np.asarray(structured_update(*case)), 1e-13)


def test_it_is_one_program_without_a_product_of_matrices():
    S, s = jnp.eye(7), jnp.ones(7)
    jaxpr = jax.make_jaxpr(structured_update)(S, s, s, s).jaxpr
    assert len(jaxpr.eqns) == 1
    assert ((7, 7), (7, 7)) not in product_shapes(jaxpr)
    assert count(jaxpr, "while") == 0


# The inverse of a Gram matrix


def test_the_inverse_and_the_rank(rng, dtype):
    for m, n in ((8, 3), (20, 6), (3, 3), (1, 1)):
        J = rng.normal(size=(m, n))
        inverse, rank = inverse_gram(jnp.asarray(J, dtype))
        assert (int(rank), inverse.dtype, rank.dtype) == (n, dtype, jnp.int32)
        tol = np.linalg.cond(J) ** 2 * 20 * float(jnp.finfo(dtype).eps)
        close(inverse, np.linalg.inv(J.T @ J), tol)


def test_units_of_columns_cost_no_digits(rng):
    """Where columns are 1e±8 long, the Gram matrix has no digits left."""
    J, units = rng.normal(size=(9, 4)), np.array([1e8, 1.0, 1e-8, 1e3])
    inverse, rank = inverse_gram(J * units)
    assert int(rank) == 4
    close(inverse * np.outer(units, units), np.linalg.inv(J.T @ J), 1e-12)


def test_close_to_dependent_columns_keep_their_digits(rng):
    """Columns that differ by 1e-6: the Gram matrix by itself has 4 digits."""
    J = rng.normal(size=(9, 3))
    J[:, 2] = J[:, 0] + 1e-6 * J[:, 2]
    inverse, rank = inverse_gram(J)
    pseudo = np.linalg.pinv(J)
    assert int(rank) == 3
    close(inverse, pseudo @ pseudo.T, 1e-8)


def test_where_columns_depend_on_each_other(rng, dtype):
    """The pseudo-inverse of the columns over their lengths, and the rank."""
    J = rng.normal(size=(9, 4)).astype(dtype)
    twice, zero, wide = J.copy(), J.copy(), J[:3]
    twice[:, 3], zero[:, 1] = 2 * twice[:, 0], 0
    for matrix, expected in ((twice, 3), (zero, 3), (wide, 3), (0 * J, 0)):
        lengths = np.linalg.norm(matrix, axis=0)
        D = np.where(lengths > 0, lengths, 1)
        pseudo = np.linalg.pinv(matrix / D, rcond=1e-5) / D[:, None]
        inverse, rank = inverse_gram(jnp.asarray(matrix))
        assert int(rank) == expected
        tol = 1e-3 if dtype == jnp.float32 else 1e-12
        np.testing.assert_allclose(inverse, pseudo @ pseudo.T, rtol=tol, atol=tol)
