"""Rank-one corrections of an inverse along a direction, and rank reduction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import random_spd
from spectra import N, eps, from_spectrum, indefinite, symmetric_in

from jaxqn.derivatives import hvp
from jaxqn.formulas.rank_one_corrections import rank_one_correction, wedderburn
from jaxqn.formulas.updates import sr1_update

# Rank one along a direction


fix_along = jax.jit(rank_one_correction)


def directions(rng, H, kind):
    """Random ones, or the eigenvectors from the largest magnitude to the smallest."""
    if kind == "random":
        return rng.normal(size=H.shape)
    values, vectors = np.linalg.eigh(H)
    return vectors.T[np.argsort(-np.abs(values))]


def test_a_rank_one_correction_maps_he_to_e(dtype):
    rng = np.random.default_rng(0)
    product = jax.jit(hvp(lambda x, H: x @ H @ x / 2))
    for scale in (1e-8, 1.0, 1e8):
        H = jnp.asarray(symmetric_in(dtype, indefinite(rng, N) * scale))
        start = jnp.asarray(symmetric_in(dtype, random_spd(rng, N) / scale))
        e = jnp.asarray(rng.normal(size=N), dtype)
        He = product(jnp.zeros(N, dtype), e, H)
        corrected = fix_along(start, e, He)
        np.testing.assert_allclose(corrected @ He, e, rtol=0, atol=1e3 * eps(dtype))
        added = np.linalg.svd(np.asarray(corrected - start, np.float64), compute_uv=False)
        assert added[1] <= 1e3 * eps(dtype) * added[0]


def test_it_is_the_sr1_update():
    """Not another formula: the same program."""
    H, e = jnp.eye(7), jnp.ones(7)
    mine, other = (str(jax.make_jaxpr(f)(H, e, e)) for f in (rank_one_correction, sr1_update))
    assert mine == other


@pytest.mark.parametrize("kind", ["random", "eigenvectors"])
def test_n_directions_give_the_inverse(kind):
    """Of any symmetric nonsingular matrix; and not before the last of them."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        H = from_spectrum(rng, rng.choice([-1, 1], size=N) * rng.uniform(0.2, 2, size=N))
        H_inv, errors = 9 * np.eye(N), []
        for e in directions(rng, H, kind):
            H_inv = np.asarray(fix_along(H_inv, e, H @ e))
            errors.append(np.linalg.norm(H_inv - np.linalg.inv(H)) / np.linalg.norm(H_inv))
        assert errors[-1] <= 1e-9
        assert errors[-2] >= 1e-3


def test_along_the_smallest_eigenvectors_first_the_error_is_least():
    """Each takes the largest term out of H_inv - H⁻¹, so that k of them leave the (k+1)-th."""
    values = np.array([-1e-3, 0.05, 0.5, 1.0, 2.0])
    H = from_spectrum(np.random.default_rng(2), values)
    inverse, H_inv = np.linalg.inv(H), 0.1 * np.eye(N)
    left = [*np.abs(1 / values - 0.1)[1:], 0.0]
    for e, expected in zip(directions(None, H, "eigenvectors")[::-1], left, strict=True):
        H_inv = np.asarray(fix_along(H_inv, e, H @ e))
        error = np.linalg.norm(H_inv - inverse, 2)
        assert error == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_a_direction_that_tells_nothing_changes_nothing(dtype):
    """Exact along it already; in the null space; zero; or spoilt."""
    rng = np.random.default_rng(3)
    H_inv, e = jnp.asarray(random_spd(rng, N), dtype), jnp.asarray(rng.normal(size=N), dtype)
    zero, eye = jnp.zeros(N, dtype), jnp.eye(N, dtype=dtype)
    np.testing.assert_array_equal(fix_along(eye, e, e), eye)
    exact = fix_along(H_inv, H_inv @ e, e)
    np.testing.assert_allclose(exact, H_inv, rtol=0, atol=1e2 * eps(dtype) * np.max(H_inv))
    for bad_e, bad_He in ((e, zero), (zero, zero), (e.at[0].set(jnp.nan), e), (e, e / 0.0)):
        np.testing.assert_array_equal(fix_along(H_inv, bad_e, bad_He), H_inv)


# Rank reduction


reduce_rank = jax.jit(wedderburn)


def test_each_direction_takes_one_rank_away(dtype):
    """Down to nothing after n directions, each of which stays in the null space: at any scale, for
    indefinite matrices too where eᵀH e is not small."""
    rng = np.random.default_rng(4)
    for scale in (1e-30, 1e-8, 1.0, 1e8, 1e30):
        for spectrum in ([1, 2, 3, 4, 5], [-5, -3, 1, 2, 4]):
            H = jnp.asarray(symmetric_in(dtype, from_spectrum(rng, np.array(spectrum) * scale)))
            tolerance, gone = 1e3 * eps(dtype) * 5 * scale, []
            for left in reversed(range(N)):
                before, cosine = np.asarray(H, np.float64), 0
                while cosine < 0.3:
                    e = rng.normal(size=N)
                    w = before @ e
                    cosine = np.abs(e @ w) / (np.linalg.norm(e) * np.linalg.norm(w))
                H = reduce_rank(H, jnp.asarray(100 * e, dtype))
                after = np.asarray(H, np.float64)
                assert H.dtype == dtype
                expected = before - np.outer(w / (e @ w), w)
                assert np.max(np.abs(after - expected)) <= tolerance
                singular_values = np.linalg.svd(after, compute_uv=False)
                assert np.sum(singular_values > tolerance) == left
                gone.append(e)
                assert np.max(np.abs(after @ np.transpose(gone))) <= tolerance


def test_rank_reduction_has_a_relative_guard(dtype):
    """|eᵀH e| against ‖e‖ ‖H e‖, whatever their lengths."""
    for scale in (1e-20, 1.0, 1e20):
        for cosine, used in ((0.1 * eps(dtype), False), (100 * eps(dtype) ** 0.5, True)):
            H = jnp.asarray(scale * np.array([[cosine, 1.0], [1.0, 0.0]]), dtype)
            e = jnp.asarray([3.0 / scale, 0.0], dtype)
            assert bool(np.any(np.asarray(reduce_rank(H, e) != H))) is used
    H, e, zero = jnp.eye(2, dtype=dtype), jnp.ones(2, dtype), jnp.zeros((2, 2), dtype)
    np.testing.assert_array_equal(reduce_rank(H, 0 * e), H)
    np.testing.assert_array_equal(reduce_rank(zero, e), zero)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        np.testing.assert_array_equal(reduce_rank(H, e.at[0].set(bad)), H)


def test_rank_reduction_under_vmap():
    rng = np.random.default_rng(5)
    stack, e = np.array([indefinite(rng, N) for _ in range(4)]), rng.normal(size=(4, N))
    for lane, H, v in zip(jax.jit(jax.vmap(wedderburn))(stack, e), stack, e, strict=True):
        np.testing.assert_allclose(lane, H - np.outer(H @ v, H @ v) / (v @ H @ v), atol=1e-11)
