"""Quantiles against SciPy's, and trials of the search for an end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxqn.formulas import ProfilePoint, normal_quantile, profile_trial, student_quantile

NO, YES = jnp.array(False), jnp.array(True)


def test_quantiles(dtype):
    tolerance = 1e-11 if dtype == jnp.float64 else 3e-4
    for level in (0.5, 0.6827, 0.95, 0.999):
        q, p = jnp.asarray(level, dtype), (1 + level) / 2
        np.testing.assert_allclose(normal_quantile(q), stats.norm.ppf(p), rtol=tolerance)
        for dof in (1.0, 2.0, 7.0, 500.0):
            found = student_quantile(q, jnp.asarray(dof, dtype))
            assert found.dtype == dtype
            np.testing.assert_allclose(found, stats.t.ppf(p, dof), rtol=tolerance)


def at(tau, t, slope):
    return ProfilePoint(*map(jnp.float64, (tau, t, slope)))


def curve(t):
    return at(t + 0.1 * t**3, t, 1 + 0.3 * t**2)


def test_a_cubic_is_met_at_once():
    trial = profile_trial(jnp.float64(2.0), curve(0.5), curve(3.0), NO)
    np.testing.assert_allclose(trial, 2.8, rtol=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "halve", "expected"),
    [
        (curve(0.5), curve(3.0), YES, (0.5125 + 5.7) / 2),
        (at(1, 1, 1), at(3, np.inf, 0), NO, 2.0),  # not finite there
        (at(1, 1, 50.0), at(3, 4, -60.0), NO, 2.0),  # no bracket
        (at(1, 1, 1.5), at(np.inf, np.inf, 0), NO, 2.5),  # Newton's step
        (at(1, 1, 100), at(np.inf, np.inf, 0), NO, 4.0),  # too long
        (at(1, 1, -1), at(np.inf, np.inf, 0), NO, 4.0),  # backwards
    ],
)
def test_trials(low, high, halve, expected):
    np.testing.assert_allclose(profile_trial(jnp.float64(2.0), low, high, halve), expected)


def test_a_search_converges():
    """Of an awkward profile, t = atan(tau), to a level near its end, in few trials."""

    def t(tau):
        return at(tau, np.arctan(tau), 1 + tau**2)

    level, low, high = jnp.float64(1.5), t(0.0), at(np.inf, np.inf, 0)
    for trials in range(20):
        tau = float(profile_trial(level, low, high, NO))
        point = t(tau if trials else 1.5)
        if abs(point.t - level) < 1e-9:
            break
        low, high = (point, high) if point.t < level else (low, point)
    assert trials < 10
    np.testing.assert_allclose(point.tau, np.tan(1.5), rtol=1e-6)


def test_under_vmap():
    points = [
        jax.tree.map(lambda *a: jnp.stack(a), curve(a), curve(b)) for a, b in [(0.5, 1), (3, 2.5)]
    ]
    found = jax.vmap(profile_trial, (None, 0, 0, None))(jnp.float64(2.0), *points, NO)
    np.testing.assert_allclose(found, [2.8, 2.8], rtol=1e-12)
