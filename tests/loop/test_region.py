"""The trust region in the loop: how runs end, laws of units, and bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import STARTS, fit_of, jacobian, misfit
from scipy import optimize

from jaxqn import Status, least_squares, minimize, sum_of_squares

METHODS = ["structured", "lm"]
INF = np.inf
each_method = pytest.mark.parametrize("method", METHODS)


def status(result):
    return Status(int(result.status))


def counts(result):
    return status(result), int(result.nit), int(result.nfev)


# How runs end


@each_method
def test_every_end(method):
    """Budgets and tolerances are numbers of one program."""
    x0, (fit,) = fit_of("decay")
    solve = functools.partial(least_squares, misfit, method=method)
    expected = {
        Status.CONVERGED: {},
        Status.MAX_ITER: {"maxiter": 3},
        Status.MAX_FUN: {"maxfun": 3},
        Status.FTOL: {"ftol": 1e-3},
        Status.XTOL: {"xtol": 1e-2},
        Status.STALLED: {"gtol": 1e-300},
    }
    for end, options in expected.items():
        result = solve(x0, (fit,), **options)
        assert status(result) is end
        assert bool(result.success) is (end in (Status.CONVERGED, Status.FTOL, Status.XTOL))
    assert int(solve(x0, (fit,), maxiter=3).nit) == 3
    assert int(solve(x0, (fit,), maxfun=3).nfev) == 3
    assert counts(solve(x0, (fit,), maxiter=0)) == (Status.MAX_ITER, 0, 1)
    assert status(solve(x0, (fit,), gtol=1e-3)) is Status.CONVERGED
    assert status(solve(x0 * np.nan, (fit,))) is Status.NON_FINITE
    assert status(solve(x0, (fit._replace(y=fit.y * np.inf),))) is Status.NON_FINITE


@each_method
def test_residuals_that_vanish(method, dtype):
    """The offset has no limit there, and still the run ends well."""
    x0, (fit,) = fit_of("decay", dtype)
    exact = fit._replace(y=fit.y + misfit(jnp.asarray([3.0, 0.7, 0.5], dtype), fit))
    result = least_squares(misfit, x0, (exact,), method=method, maxfun=200)
    assert status(result) is Status.CONVERGED
    tol = 1e-4 if dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(result.x, [3, 0.7, 0.5], rtol=tol)
    again = least_squares(misfit, result.x, (exact,), method=method)
    assert status(again) is Status.CONVERGED
    assert int(again.nfev) <= 10


@each_method
def test_a_parameter_without_effect(method, dtype):
    """Never CONVERGED: the residuals do not determine it."""
    x0, args = fit_of("blind", dtype)
    result = least_squares(misfit, x0, args, method=method)
    assert status(result) is Status.SINGULAR
    assert not bool(result.success)
    assert "lost its effect" in result.message
    assert float(result.x[2]) == float(x0[2])


@each_method
def test_a_plateau_is_no_minimum(method):
    """Data above every plateau send the rate to infinity, where its column is nothing."""
    x0, (fit,) = fit_of("plateau")
    y = jnp.where(jnp.arange(24) == 0, 2.0, 1.0) * jnp.ones(24)
    result = least_squares(misfit, x0, (fit._replace(y=y),), method=method)
    assert status(result) in (Status.SINGULAR, Status.STALLED)


@each_method
def test_trials_that_are_not_finite_are_refused(method):
    """Steps into the NaN become shorter, and the run goes on."""
    x0, args = fit_of("logarithm")
    result = least_squares(misfit, x0, args, method=method)
    assert status(result) is Status.CONVERGED
    assert int(result.nfev) > int(result.nit) + 1
    np.testing.assert_allclose(result.x, STARTS["logarithm"][1], atol=0.05)


# Laws


@pytest.mark.parametrize("name", ["decay", "box", "brown", "saturation"])
@pytest.mark.parametrize("power", [-27, 27])
@each_method
def test_powers_of_two_change_no_digit(name, power, method, dtype):
    """Of residuals: the same points. Of parameters: the same points in their units."""
    x0, (fit,) = fit_of(name, dtype)
    c, u = dtype(2.0**power), jnp.asarray([2.0**9, 2.0**-12, 2.0**5], dtype)
    solve = functools.partial(least_squares, misfit, method=method, maxfun=200)
    plain = solve(x0, (fit,))
    scaled = solve(x0, (fit._replace(c=c * fit.c),))
    assert counts(scaled) == counts(plain)
    np.testing.assert_array_equal(scaled.x, plain.x)
    np.testing.assert_array_equal(scaled.cost, c * c * plain.cost)
    np.testing.assert_array_equal(scaled.grad, c * c * plain.grad)
    units = solve(x0 / u, (fit._replace(u=u),))
    assert counts(units) == counts(plain)
    np.testing.assert_array_equal(u * units.x, plain.x)
    np.testing.assert_array_equal(units.cost, plain.cost)


@pytest.mark.parametrize("c", [1e-8, 1e8])
@pytest.mark.parametrize("name", ["decay", "box", "brown", "saturation", "logarithm"])
def test_any_scale_ends_alike(name, c, dtype):
    x0, (fit,) = fit_of(name, dtype)
    plain = least_squares(misfit, x0, (fit,))
    scaled = least_squares(misfit, x0, (fit._replace(c=fit.c * dtype(c)),))
    assert status(scaled) is status(plain)
    tol = 1e-3 if dtype == jnp.float32 else 1e-7
    np.testing.assert_allclose(scaled.x, plain.x, rtol=tol, atol=tol)


def test_a_start_of_zeros(dtype):
    """Where x has no size, the residuals give the first radius; also in other units."""
    x0, (fit,) = fit_of("saturation", dtype)
    for c in (2.0**-40, 1.0, 2.0**40):
        result = least_squares(misfit, 0 * x0, (fit._replace(c=dtype(c)),))
        assert status(result) is Status.CONVERGED
        best = least_squares(misfit, x0, (fit,))
        np.testing.assert_allclose(result.x, best.x, rtol=1e-3, atol=1e-3)


# Bounds

BOXES = {
    "none holds": ("decay", -INF, [10.0, 10, 10]),
    "upper": ("decay", 0.0, [2.5, 5.0, 5.0]),
    "lower": ("decay", [0.0, 0.0, 0.55], INF),
    "two": ("saturation", [0.0, 0.8, 0.2], [5.0, 5.0, 5.0]),
    "fixed": ("decay", [0.0, 0.8, 0.0], [5.0, 0.8, 5.0]),
    "outside": ("logarithm", [0.0, 1.0, 0.0], [1.5, 4.0, 4.0]),
    "large residuals": ("brown", [-5.0, 0.0, 0.0], [30.0, 12.0, 5.0]),
    "far": ("box", [2.0, 0.0, 0.0], [5.0, 30.0, 30.0]),
}


def sides(name, dtype=np.float64):
    curve, *bounds = BOXES[name]
    return (*fit_of(curve, dtype), *(np.broadcast_to(np.array(b, dtype), 3) for b in bounds))


@pytest.mark.parametrize("name", BOXES)
@each_method
def test_bounds(name, method):
    """Beside SciPy's trf; multipliers push out of the box, and other gradients vanish."""
    x0, args, low, up = sides(name)
    result = least_squares(misfit, x0, args, bounds=(low, up), method=method)
    assert np.all((result.x >= low) & (result.x <= up))
    room = low + 1e-9 * (low == up)
    best = optimize.least_squares(
        lambda x: np.asarray(misfit(jnp.asarray(x), *args)),
        np.clip(result.x, low, up),
        lambda x: np.asarray(jacobian(jnp.asarray(x), *args)),
        bounds=(np.minimum(low, room), np.maximum(up, room)),
        x_scale="jac",
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-14,
    )
    assert float(result.cost) <= best.cost * (1 + 1e-7)
    assert status(result) is Status.CONVERGED or (method, name) == ("lm", "large residuals")
    active = np.where(result.x == low, -1, np.where(result.x == up, 1, 0))
    where_one = low < up
    np.testing.assert_array_equal(np.asarray(result.active)[where_one], active[where_one])
    g = np.asarray(jacobian(result.x, *args)).T @ np.asarray(misfit(result.x, *args))
    np.testing.assert_allclose(result.grad, g, rtol=1e-9, atol=1e-9 * np.max(np.abs(g)) + 1e-12)
    assert np.all((active * g)[where_one] <= 0)
    free = np.where((active == 0) & where_one, g, 0)
    lengths = np.linalg.norm(np.asarray(jacobian(result.x, *args)), axis=0)
    assert np.max(np.abs(free) / lengths) <= 1e-6 * np.sqrt(2 * float(result.cost)) + 1e-9


@pytest.mark.parametrize("name", ["upper", "two", "fixed"])
def test_bounds_in_single_precision(name):
    x0, args, low, up = sides(name, np.float32)
    result = least_squares(misfit, x0, args, bounds=(low, up))
    x0, args, low, up = sides(name)
    best = least_squares(misfit, x0, args, bounds=(low, up))
    assert result.x.dtype == jnp.float32
    assert status(result) is Status.CONVERGED
    np.testing.assert_allclose(result.x, best.x, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def watched():
    """Residuals that note every point where they are called."""
    seen = []

    def residuals(p, fit):
        jax.debug.callback(lambda p: seen.append(np.asarray(p)), p)
        return misfit(p, fit)

    return residuals, seen


@pytest.mark.parametrize("name", ["upper", "two", "fixed", "outside", "far"])
def test_nothing_is_evaluated_outside(name, watched, dtype):
    """Not by a last digit, in either precision."""
    residuals, seen = watched
    seen.clear()
    x0, args, low, up = sides(name, dtype)
    result = least_squares(residuals, x0, args, bounds=(low, up))
    jax.effects_barrier()
    assert len(seen) == int(result.nfev)
    assert all(np.all((x >= low) & (x <= up)) for x in seen)


# Other residuals


@pytest.mark.parametrize("method", [*METHODS, "residual"])
def test_fewer_residuals_than_parameters(method):
    def few(x):
        return jnp.stack([x[0] * x[1] - 2, x[1] * x[2] - 3])

    result = least_squares(few, jnp.ones(4) * 1.5, method=method)
    np.testing.assert_allclose(few(result.x), 0, atol=1e-8)
    assert status(result) in (Status.CONVERGED, Status.SINGULAR)
    if method == "residual":
        default = least_squares(few, jnp.ones(4) * 1.5)
        np.testing.assert_array_equal(default.x, result.x)


def test_bounds_choose_the_method_too():
    """ "residual" has none: with bounds the default is "structured"."""
    objective = sum_of_squares(lambda x: x[:1] * x[1] - 6)
    result = least_squares(objective.residuals, jnp.ones(3), bounds=(0.0, 2.5))
    np.testing.assert_allclose(result.x[0] * result.x[1], 6, rtol=1e-9)
    with pytest.raises(TypeError, match="bounds"):
        minimize(objective, jnp.ones(3), bounds=(0.0, 2.5), method="residual")
