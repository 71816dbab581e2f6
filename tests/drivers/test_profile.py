"""Profile intervals against closed forms, SciPy's nested fits, and every end that there may be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import exponential, fit_of
from scipy import optimize, stats

from jaxqn import Intervals, Status, covariance, least_squares, minimize, profile_intervals
from jaxqn import sum_of_squares as squares

X0, (FIT,) = fit_of("decay")
DATA = (FIT.t, FIT.y)
DECAY = squares(exponential)
DESIGN = np.random.default_rng(0).normal(size=(20, 3))
Y = DESIGN @ np.array([1.0, -2.0, 0.5]) + 0.3 * np.random.default_rng(1).normal(size=20)
Q = stats.norm.ppf(0.975)


def line(p, design, y):
    return p["a"] * design[:, 0] + design[:, 1:] @ p["b"] - y


LINE = squares(line)
START = {"a": jnp.zeros(()), "b": jnp.zeros(2)}


@functools.cache
def decay():
    return minimize(DECAY, X0, DATA)


def poisson(x, c):
    return jnp.exp(x) - c * x


def saturating(x, c):
    """Rises to 1 on both sides."""
    return 1 - jnp.exp(-0.5 * (x / c) ** 2)


def double_well(x, _):
    return 0.2 * (x**2 - 1) ** 2 + 0.1 * x


def walled(x, c):
    """NaN beyond c."""
    return jnp.where(x > c, jnp.nan, 0.05 * x**2)


def one_sided(x, c):
    """Linear to one side, a parabola to the other."""
    return jnp.where(x > 0, x**2 / (1 + c * jnp.abs(x)), x**2)


SCALARS = (poisson, saturating, double_well, walled, one_sided)


def scalar(x, which, c):
    """One program for all of them."""
    return jax.lax.switch(which, SCALARS, x, c)


def ends_of(fun, x0, c, **options):
    args = (jnp.int32(SCALARS.index(fun)), jnp.float64(c))
    fit = minimize(scalar, jnp.float64(x0), args)
    assert bool(fit.success)
    return fit, profile_intervals(scalar, fit, args, **options)


# --- Ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_one_parameter(level):
    """The end is where f itself reaches its level."""
    fit, found = ends_of(poisson, 0.0, 5.0, level=level)
    least, q = poisson(np.log(5.0), 5.0), stats.norm.ppf((1 + level) / 2)

    def above(x):
        return np.exp(x) - 5 * x - least - q**2 / 2

    ends = [optimize.brentq(above, -8, np.log(5)), optimize.brentq(above, np.log(5), 8)]
    np.testing.assert_allclose([found.lower, found.upper], ends, atol=2e-5 * np.ptp(ends))
    assert bool(found.success)
    assert found.reason == "all ends are found"
    assert int(found.nfev) <= 8
    np.testing.assert_allclose(found.x_lowest, fit.x, atol=1e-6)


def test_a_linear_model(dtype):
    """b ± t se with Student's t, exactly; in one round."""
    args = (jnp.asarray(DESIGN, dtype), jnp.asarray(Y, dtype))
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), START)
    fit = least_squares(line, start, args)
    found = profile_intervals(LINE, fit, args, level=0.9, noise="estimated")
    b = np.linalg.lstsq(DESIGN, Y, rcond=None)[0]
    s2 = np.sum((Y - DESIGN @ b) ** 2) / 17
    half = stats.t.ppf(0.95, 17) * np.sqrt(s2 * np.diag(np.linalg.inv(DESIGN.T @ DESIGN)))
    tolerance = {"atol": (1e-6 if dtype == jnp.float64 else 1e-3) * half.max()}
    for ends, sign in ((found.lower, -1), (found.upper, 1)):
        np.testing.assert_allclose(ends["a"], (b + sign * half)[0], **tolerance)
        np.testing.assert_allclose(ends["b"], (b + sign * half)[1:], **tolerance)
        assert ends["b"].dtype == dtype
    assert int(found.rounds) == 1


def nested(noise, q, i, side, x):
    """An end by SciPy: a root of a fit of the others."""
    t, y = map(np.asarray, DATA)

    def curve(p):
        return (p[0] * np.exp(-p[1] * t) + p[2] - y) / noise

    others, least = [j for j in range(3) if j != i], 0.5 * np.sum(curve(x) ** 2)

    def above(end):
        def held(b):
            p = np.insert(b, i, end)
            return curve(p)

        fit = optimize.least_squares(held, x[others], x_scale="jac", xtol=1e-14, ftol=1e-14)
        return np.sqrt(2 * max(fit.cost - least, 0)) - q

    step = side * 0.2
    while above(x[i] + step) < 0:
        step *= 1.5
    return optimize.brentq(above, x[i], x[i] + step, xtol=1e-10)


@pytest.mark.parametrize("scalar", [False, True], ids=["squares", "likelihood"])
def test_a_curve(scalar):
    """Noise that makes it nonlinear: the ends are far from symmetric."""
    x, noise = np.asarray(decay().x), 0.3
    expected = np.array([[nested(noise, Q, i, side, x) for i in range(3)] for side in (-1, 1)])
    if scalar:

        def likelihood(p, t, y):
            return 0.5 * jnp.sum(exponential(p, t, y) ** 2) / noise**2

        found = profile_intervals(likelihood, decay(), DATA)
    else:
        found = profile_intervals(DECAY, decay(), DATA, noise=noise)
        assert int(found.nfev) < 90
    width = expected[1] - expected[0]
    np.testing.assert_allclose(found.lower / width, expected[0] / width, atol=1e-4)
    np.testing.assert_allclose(found.upper / width, expected[1] / width, atol=1e-4)
    asymmetry = (expected[1] - x) / (x - expected[0])
    assert asymmetry.max() > 1.15
    assert bool(found.success)


def test_a_jacobian_of_the_callers():
    def jac(p, t, _):
        fall = jnp.exp(-p[1] * t)
        return jnp.stack([fall, -p[0] * t * fall, jnp.ones_like(t)], axis=1)

    given = squares(exponential, jac=jac)
    found = profile_intervals(given, decay(), DATA, noise=0.3, level=0.9)
    expected = profile_intervals(DECAY, decay(), DATA, noise=0.3, level=0.9)
    np.testing.assert_allclose(found.upper, expected.upper, rtol=1e-5)


# --- Bounds ------------------------------------------------------------------------------------


def test_bounds():
    """An end outside is the bound; the others are those of fits within it."""
    box = ([0.0, 0.0, 0.0], [100.0, 1.0, 100.0])
    found = profile_intervals(DECAY, decay(), DATA, noise=0.3, bounds=box)
    free = profile_intervals(DECAY, decay(), DATA, noise=0.3)
    assert float(free.upper[1]) > 1.0
    assert float(free.lower[2]) < 0.0
    assert found.upper_code.tolist() == [0, 1, 0]
    assert found.lower_code.tolist() == [0, 0, 1]
    assert float(found.upper[1]) == 1.0
    assert float(found.lower[2]) == 0.0
    assert "upper end of x[1]: at a bound" in found.reason
    assert bool(found.success)
    t, y = map(np.asarray, DATA)
    x = np.asarray(decay().x)
    least = np.sum((x[0] * np.exp(-x[1] * t) + x[2] - y) ** 2)

    def above(rate):  # the amplitude and the level within their bounds
        A = np.stack([np.exp(-rate * t), np.ones(24)], axis=1)
        rss = optimize.nnls(A, y)[1]
        return np.sqrt(max(rss**2 - least, 0)) / 0.3 - Q

    end = optimize.brentq(above, 0.2, float(x[1]))
    np.testing.assert_allclose(found.lower[1], end, atol=1e-4)


def test_a_parameter_at_its_bound():
    """One side is the bound; to the other f rises by its slope from the start."""

    def fun(x):
        return 2 * x[0] + 0.5 * x[0] ** 2 + 0.5 * (x[1] - 0.3 * x[0]) ** 2

    fit = minimize(fun, jnp.ones(2), bounds=(0.0, None))
    assert fit.x.tolist() == [0.0, 0.0]
    found = profile_intervals(fun, fit, bounds=([0.0, -9.0], None))
    end = -2 + np.sqrt(4 + Q**2)
    assert float(found.lower[0]) == 0.0
    assert int(found.lower_code[0]) == 1
    np.testing.assert_allclose(found.upper[0], end, rtol=1e-4)
    np.testing.assert_allclose(found.lower[1], -Q, rtol=1e-4)


def test_a_fixed_parameter():
    """The amplitude then is a ratio of sums, and the rate a root of one equation."""
    x = np.asarray(decay().x)
    box = ([0.0, 0.0, x[2]], [9.0, 9.0, x[2]])
    found = profile_intervals(DECAY, decay(), DATA, noise=0.02, bounds=box)
    assert float(found.lower[2]) == float(found.upper[2]) == x[2]
    t, y = map(np.asarray, DATA)
    least = np.sum((x[0] * np.exp(-x[1] * t) + x[2] - y) ** 2)

    def above(rate):
        fall, rest = np.exp(-rate * t), y - x[2]
        rss = rest @ rest - (fall @ rest) ** 2 / (fall @ fall)
        return np.sqrt(max(rss - least, 0)) / 0.02 - Q

    ends = [optimize.brentq(above, *sorted([x[1], x[1] + step])) for step in (-0.3, 0.3)]
    np.testing.assert_allclose([found.lower[1], found.upper[1]], ends, atol=1e-5)


# --- Ends that there are not ---------------------------------------------------------------------


def test_open():
    _, found = ends_of(saturating, 0.5, 2.0)
    assert [float(found.lower), float(found.upper)] == [-np.inf, np.inf]
    assert [int(found.lower_code), int(found.upper_code)] == [2, 2]
    assert "open" in found.reason
    assert bool(found.success)
    _, found = ends_of(saturating, 0.5, 2.0, level=0.5)
    end = 2 * np.sqrt(-2 * np.log(1 - stats.norm.ppf(0.75) ** 2 / 2))
    np.testing.assert_allclose([found.lower, found.upper], [-end, end], rtol=1e-4)


def test_a_new_minimum():
    fit, found = ends_of(double_well, 1.0, 0.0)
    assert float(fit.x) > 0
    assert int(found.lower_code) == 3
    assert np.isnan(found.lower)
    assert int(found.upper_code) == 0
    assert "fit on from x_lowest" in found.reason
    assert not bool(found.success)
    assert float(found.x_lowest) < 0
    assert double_well(float(found.x_lowest), 0) < float(fit.fun)


def test_an_end_that_is_not_found():
    """The wall is where it is lost."""
    _, found = ends_of(walled, 0.1, 2.0)
    assert int(found.upper_code) == 4
    np.testing.assert_allclose(found.upper, 2.0, rtol=1e-3)
    assert not bool(found.success)
    np.testing.assert_allclose(found.lower, -Q / np.sqrt(0.1), rtol=1e-4)


def test_far_from_a_parabola():
    _, found = ends_of(one_sided, 0.1, 30.0)
    c, h = 30.0, Q**2 / 2
    np.testing.assert_allclose(found.upper, (h * c + np.sqrt((h * c) ** 2 + 4 * h)) / 2, rtol=1e-4)
    np.testing.assert_allclose(found.lower, -np.sqrt(h), rtol=1e-4)


def test_what_the_data_do_not_determine():
    def twice(p, t, y):
        return exponential(jnp.stack([p[0] + p[3], p[1], p[2]]), t, y)

    fit = decay()._replace(x=jnp.append(decay().x, 0.0))
    found = profile_intervals(squares(twice), fit, DATA, noise=0.02)
    assert found.lower_code.tolist() == found.upper_code.tolist() == [2, 0, 0, 2]
    assert np.isposinf(found.upper[0])
    assert np.isneginf(found.lower[3])
    known = profile_intervals(DECAY, decay(), DATA, noise=0.02)
    np.testing.assert_allclose(found.lower[1:3], known.lower[1:], rtol=1e-5)


# --- How it is called --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters", ["b", ["b"], {"a": False, "b": True}, {"a": False, "b": np.array([True, True])}]
)
def test_chosen_parameters(parameters):
    args = (jnp.asarray(DESIGN), jnp.asarray(Y))
    fit = minimize(LINE, START, args)
    found = profile_intervals(LINE, fit, args, noise="estimated", parameters=parameters)
    assert np.isnan(found.lower["a"])
    assert int(found.upper_code["a"]) == 5
    errors = covariance(LINE, fit.x, args, noise="estimated").standard_errors
    width = 2 * stats.t.ppf(0.975, 17) * errors["b"]
    np.testing.assert_allclose(found.upper["b"] - found.lower["b"], width, rtol=1e-6)
    assert bool(found.success)


def test_under_vmap_and_jit():
    """Leaf by leaf what one at a time has."""
    args = (jnp.zeros(3, jnp.int32), jnp.array([3.0, 5.0, 8.0]))

    def one(which, c):
        return profile_intervals(scalar, minimize(scalar, jnp.float64(1.0), (which, c)), (which, c))

    found = jax.jit(jax.vmap(one))(*args)
    assert isinstance(found, Intervals)
    for k in range(3):
        alone = one(args[0][k], args[1][k])
        np.testing.assert_allclose(found.lower[k], alone.lower, rtol=1e-6)
        np.testing.assert_allclose(found.upper[k], alone.upper, rtol=1e-6)
    assert found.success.tolist() == [True] * 3
    with pytest.raises(ValueError, match="reason is for one problem"):
        _ = found.reason


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, 'say noise="estimated"', dict(noise=None)),
        (ValueError, "no likelihood", dict(fun=squares(line, "huber"))),
        (ValueError, "level must be between 0 and 1", dict(level=95)),
        (ValueError, "the keys of x are 'a', 'b'", dict(parameters="c")),
        (ValueError, "chooses nothing", dict(parameters={"a": False, "b": False})),
        (ValueError, "booleans like x", dict(parameters={"a": 1.0, "b": 0.0})),
        (ValueError, "booleans like x", dict(parameters={"a": np.ones(3, bool), "b": True})),
        (TypeError, "args must be a tuple", dict(args=3)),
        (TypeError, "fun must be a function", dict(fun=3)),
    ],
)
def test_bad_input(error, words, options):
    fit = type("Fit", (), {"x": START})()
    call = {"fun": LINE, "result": fit, "args": (DESIGN, Y), "noise": "unit"} | options
    with pytest.raises(error, match=words):
        profile_intervals(**call)


def test_the_fit_was_one():
    assert Status(int(decay().status)) is Status.CONVERGED
