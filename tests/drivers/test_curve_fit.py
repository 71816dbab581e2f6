"""``curve_fit`` beside SciPy's: parameters, covariances, and what has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import ERRORS, TIMES, data
from scipy import optimize

from jaxqn import LeastSquaresResult, Status, curve_fit

SIGMA = 0.01 * (1 + TIMES)
COVARIANCE = np.diag(SIGMA**2) + 5e-5 * np.exp(-np.abs(TIMES[:, None] - TIMES[None]))
Y = data("decay")
START = [1.0, 1.0, 1.0]


def curve(t, height, rate, floor):
    return height * jnp.exp(-rate * t) + floor


def same_curve(t, height, rate, floor):
    return height * np.exp(-rate * t) + floor


def slopes(t, height, rate, _):
    fall = np.exp(-rate * t)
    return np.stack([fall, -height * t * fall, np.ones_like(t)], axis=1)


def scipys(y=Y, **options):
    tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    return optimize.curve_fit(same_curve, TIMES, y, START, jac=slopes, **tight, **options)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    "sigma", [None, SIGMA, COVARIANCE, 0.02], ids=["none", "one each", "covariance", "number"]
)
def test_parameters_and_covariance(sigma, absolute):
    popt, pcov = curve_fit(curve, TIMES, Y, START, sigma=sigma, absolute_sigma=absolute)
    given = np.full(24, sigma) if isinstance(sigma, float) else sigma
    expected = scipys(sigma=given, absolute_sigma=absolute)
    np.testing.assert_allclose(popt, expected[0], rtol=1e-7)
    np.testing.assert_allclose(pcov, expected[1], rtol=1e-5)
    np.testing.assert_allclose(pcov, pcov.T, rtol=1e-12)


@pytest.mark.parametrize("bounds", [(0.0, [2.9, np.inf, np.inf]), (-np.inf, np.inf)])
def test_bounds(bounds):
    """SciPy's covariance at a bound is that of the whole Jacobian, and so is this one."""
    popt, pcov, fit = curve_fit(curve, TIMES, Y, START, bounds=bounds, full_output=True)
    expected = scipys(bounds=bounds, x_scale="jac", method="trf")
    np.testing.assert_allclose(popt, expected[0], rtol=1e-5)
    np.testing.assert_allclose(pcov, expected[1], rtol=1e-4)
    assert fit.active.tolist() == [int(popt[0] == 2.9), 0, 0]
    assert isinstance(fit, LeastSquaresResult)


def test_single_precision_and_python_integers():
    single = [a.astype(np.float32) for a in (TIMES, Y, np.array(START))]
    popt, pcov = curve_fit(curve, *single)
    assert popt.dtype == pcov.dtype == jnp.float32
    np.testing.assert_allclose(popt, scipys()[0], rtol=1e-4)
    np.testing.assert_allclose(pcov, scipys()[1], rtol=1e-2, atol=1e-6)
    popt, _ = curve_fit(curve, TIMES, Y, [1, 1, 1])
    np.testing.assert_allclose(popt, scipys()[0], rtol=1e-7)


def test_xdata_of_any_structure():
    """Also responses of several axes, with standard deviations like them."""

    def plane(x, a, b):
        return a * x["u"] + b * x["v"]

    u, v = np.meshgrid(TIMES[:6], TIMES[:4])
    z = 2 * u - v + 0.1 * ERRORS.reshape(4, 6)
    sigma = 0.1 * (1 + u)
    popt, pcov = curve_fit(plane, {"u": u, "v": v}, z, [0.0, 0.0], sigma=sigma, absolute_sigma=True)
    J = (np.stack([u, v]) / sigma).reshape(2, -1)
    np.testing.assert_allclose(pcov, np.linalg.inv(J @ J.T), rtol=1e-9)
    np.testing.assert_allclose(popt, np.linalg.lstsq(J.T, (z / sigma).ravel())[0], rtol=1e-9)


def test_what_the_data_do_not_determine():
    """Two parameters for one height, as SciPy has it: an infinite covariance."""

    def twice(t, a, b, rate):
        return (a + b) * jnp.exp(-rate * t)

    popt, pcov = curve_fit(twice, TIMES, Y - 0.5, [1.0, 1.0, 1.0])
    assert np.all(np.isinf(pcov))
    assert np.all(np.isfinite(popt))


@pytest.mark.parametrize("m", [2, 3])
def test_no_more_data_than_parameters(m):
    """Residuals of a full fit say nothing of errors; true standard deviations do."""
    t, y, sigma = TIMES[:m], Y[:m], SIGMA[:m]
    _, pcov = curve_fit(curve, t, y, START)
    assert np.all(np.isinf(pcov))
    popt, pcov = curve_fit(curve, t, y, START, sigma=sigma, absolute_sigma=True)
    if m == 3:
        J = slopes(t, *np.asarray(popt)) / sigma[:, None]
        np.testing.assert_allclose(pcov, np.linalg.inv(J.T @ J), rtol=1e-6)
    else:
        assert np.all(np.isinf(pcov))


def test_options_of_least_squares():
    y = Y + np.where(np.arange(24) % 8 == 3, 2.0, 0.0)
    popt, _, fit = curve_fit(curve, TIMES, y, START, loss="cauchy", f_scale=0.05, full_output=True)
    expected, _ = scipys(y, loss="cauchy", f_scale=0.05, method="trf")
    np.testing.assert_allclose(popt, expected, rtol=1e-5)
    assert bool(fit.success)
    assert Status(int(fit.status)) is Status.CONVERGED


def test_inside_jit_and_vmap():
    ys = np.stack([Y, 2 * Y, Y + 0.1])
    fit = jax.jit(jax.vmap(lambda y: curve_fit(curve, TIMES, y, jnp.ones(3))))
    popts, pcovs = fit(ys)
    for y, popt, pcov in zip(ys, popts, pcovs, strict=True):
        expected = scipys(y)
        np.testing.assert_allclose(popt, expected[0], rtol=1e-7)
        np.testing.assert_allclose(pcov, expected[1], rtol=1e-5)


def never(*_):
    raise AssertionError("the model was called before the input was checked")


NAN = np.where(np.arange(24) == 5, np.nan, Y)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "say absolute_sigma=True", dict(sigma=SIGMA)),
        (ValueError, "sigma must be positive", dict(sigma=SIGMA - SIGMA[3])),
        (ValueError, "sigma must be positive", dict(sigma=0.0)),
        (ValueError, "sigma must be positive", dict(sigma=SIGMA * np.nan)),
        (ValueError, r"shape \(24,\) of ydata.*\(24, 24\).*\(3,\)", dict(sigma=SIGMA[:3])),
        (ValueError, "symmetric and positive definite", dict(sigma=-COVARIANCE)),
        (ValueError, "ydata is not finite", dict(ydata=NAN)),
        (ValueError, "ydata is not finite", dict(ydata=Y + np.inf)),
        (ValueError, "xdata is not finite", dict(xdata={"t": NAN})),
        (ValueError, r"p0 must have shape \(n,\)", dict(p0=1.0)),
        (ValueError, r"p0 must have shape.*\(1, 3\)", dict(p0=np.ones((1, 3)))),
        (TypeError, "model must be a function", dict(model=Y)),
        (TypeError, "slope", dict(slope=3)),
        (ValueError, "unknown loss 'l1'", dict(loss="l1")),
    ],
)
def test_bad_input(error, words, options):
    call = {"model": never, "xdata": TIMES, "ydata": Y, "p0": START} | options
    call = {"absolute_sigma": True, **call} if words.startswith(("sigma", "sh", "sy")) else call
    with pytest.raises(error, match=words):
        curve_fit(**call)


def test_a_model_of_another_shape():
    """A column less a row is a matrix, whose fit is one of nothing that was measured."""
    column = TIMES[:, None]
    for t, y in ((column, Y), (TIMES, Y[:, None]), (TIMES[:-1], Y)):
        with pytest.raises(
            ValueError, match=r"model\(xdata, \*p\) must have the shape .* of ydata"
        ):
            curve_fit(curve, t, y, START)
    popt, _ = curve_fit(curve, column, Y[:, None], START)
    np.testing.assert_allclose(popt, curve_fit(curve, TIMES, Y, START)[0], rtol=1e-6)


def test_a_model_that_is_one_number():
    popt, pcov = curve_fit(lambda _, level: level, TIMES, Y, [0.0])
    np.testing.assert_allclose(popt, [Y.mean()], rtol=1e-9)
    np.testing.assert_allclose(pcov, [[Y.var(ddof=1) / Y.size]], rtol=1e-6)
