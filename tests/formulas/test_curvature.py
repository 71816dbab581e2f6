"""The relative curvature test, and Powell's damping against its textbook (direct) form."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxqn.formulas.curvature import has_curvature, powell_damping

N = 5
usable = jax.jit(lambda s, y: has_curvature(s @ s, s @ y, y @ y))
usable_at = jax.jit(lambda s, y, rtol: has_curvature(s @ s, s @ y, y @ y, rtol=rtol))
damped = jax.jit(powell_damping, static_argnames="theta")


def at_angle(cosine, scale, dtype):
    """Vectors of lengths ``scale`` and 1/``scale`` with that cosine between them."""
    s = jnp.asarray([scale, 0.0], dtype)
    return s, jnp.asarray([cosine / scale, np.sqrt(1 - cosine**2) / scale], dtype)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_only_the_angle_decides(scale, dtype):
    eps = float(np.finfo(dtype).eps)
    for cosine, expected in ((-1, False), (0, False), (0.1 * eps, False), (2 * eps**0.5, True)):
        assert bool(usable(*at_angle(cosine, scale, dtype))) is expected


def test_the_threshold_may_be_given():
    s, y = at_angle(0.1, 1.0, np.float64)
    assert bool(usable_at(s, y, 0.09))
    assert not bool(usable_at(s, y, 0.11))


def test_a_zero_pair_has_no_curvature(dtype):
    zero, one = jnp.zeros(2, dtype), jnp.ones(2, dtype)
    assert not any(bool(usable(s, y)) for s, y in ((zero, zero), (zero, one), (one, zero)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_pair_that_is_not_finite_has_no_curvature(bad, dtype):
    one = jnp.ones(2, dtype)
    spoilt = one.at[0].set(bad)
    assert not any(bool(usable(s, y)) for s, y in ((spoilt, one), (one, spoilt), (spoilt, spoilt)))


def test_a_pair_that_overflows_has_no_curvature():
    huge = jnp.full(2, 1e30, jnp.float32)
    assert not bool(usable(huge, huge))


def textbook_damping(B, s, y, theta):
    """N&W procedure 18.2, as printed: the damped gradient change r for a direct Hessian B."""
    sBs, sy = s @ B @ s, s @ y
    t = 1.0 if sy >= theta * sBs else (1 - theta) * sBs / (sBs - sy)
    return t * y + (1 - t) * B @ s


@pytest.mark.parametrize("theta", [0.2, 0.6])
def test_powell_damping_is_the_dual_of_the_textbook(theta, dtype):
    """(B, s, y) → (H, y, s): what the textbook does to y, this does to s."""
    changed = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        H, s, y = oracles.random_spd(rng, N), rng.normal(size=N), rng.normal(size=N)
        expected = textbook_damping(H, y, s, theta)
        arrays = [jnp.asarray(v, dtype) for v in (s, y, H @ y)]
        actual = damped(*arrays, theta=theta)
        changed += bool(jnp.any(actual != arrays[0]))
        assert actual.dtype == dtype
        tol = 100 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(actual, expected, rtol=tol, atol=tol * np.abs(expected).max())
    assert 0 < changed < 12


def test_damped_pairs_have_the_curvature_asked_for():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        H, s, y = oracles.random_spd(rng, N), rng.normal(size=N), rng.normal(size=N)
        new = np.asarray(damped(s, y, H @ y))
        if s @ y < 0.2 * y @ H @ y:
            assert new @ y == pytest.approx(0.2 * y @ H @ y, rel=1e-10)
        else:
            np.testing.assert_array_equal(new, s)


def test_damping_leaves_the_zero_pair_alone(dtype):
    zero = jnp.zeros(N, dtype)
    np.testing.assert_array_equal(damped(zero, zero, zero), zero)
