"""The front door for residuals: beside SciPy, all that it returns, counts and promises.

Most tests run one compiled program a precision: `fits.misfit`, which is every curve.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import STARTS, TIMES, fit_of, jacobian, misfit
from programs import TraceCounter
from scipy import optimize

from jaxqn import LeastSquaresResult, Status, least_squares, minimize, sum_of_squares

ROBUST = ["huber", "soft_l1", "cauchy", "arctan"]
DETERMINED = [name for name in STARTS if name != "blind"]
each_name = pytest.mark.parametrize("name", DETERMINED)


def status(result):
    return Status(int(result.status))


def scipys(name, args=None, x0=None, **options):
    """SciPy's solution, from where the fit starts or from another point."""
    start, given = fit_of(name)
    args = given if args is None else args
    with np.errstate(over="ignore"):
        return optimize.least_squares(
            lambda x: np.asarray(misfit(jnp.asarray(x), *args)),
            np.asarray(start if x0 is None else x0),
            lambda x: np.asarray(jacobian(jnp.asarray(x), *args)),
            x_scale="jac",
            **{"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15} | options,
        )


# Solutions


@each_name
@pytest.mark.parametrize("method", ["structured", "lm"])
def test_the_solution_is_that_of_scipy(name, method):
    """From SciPy's own solution, which it reaches from a far start only by luck."""
    x0, args = fit_of(name)
    result = least_squares(misfit, x0, args, method=method)
    expected = scipys(name, x0=result.x)
    assert status(result) is Status.CONVERGED or (method, name) == ("lm", "brown")
    np.testing.assert_allclose(result.x, expected.x, rtol=1e-6, atol=1e-9)
    assert float(result.cost) <= expected.cost * (1 + 1e-12) + 1e-20
    assert float(result.cost) <= scipys(name).cost * (1 + 1e-12) + 1e-20


@each_name
def test_single_precision(name):
    x0, args = fit_of(name, np.float32)
    result, best = least_squares(misfit, x0, args), least_squares(misfit, *fit_of(name))
    assert {leaf.dtype for leaf in (result.x, result.cost, result.grad, result.residuals)} == {
        np.dtype(np.float32)
    }
    assert status(result) is Status.CONVERGED
    np.testing.assert_allclose(result.x, best.x, rtol=1e-3, atol=1e-3)


def test_hard_ones_take_few_evaluations():
    """Residuals that stay large, and a canyon; SciPy's take 482 and 15."""
    x0, args = fit_of("brown")
    assert int(least_squares(misfit, x0, args).nfev) <= 25
    assert scipys("brown").nfev > 100
    assert int(least_squares(misfit, *fit_of("logarithm")).nfev) <= 25


@each_name
def test_what_a_result_holds(name):
    """At its x: the residuals, half of their squares and the gradient J'r."""
    x0, args = fit_of(name)
    result = least_squares(misfit, x0, args)
    r, J = (np.asarray(fun(result.x, *args)) for fun in (misfit, jacobian))
    np.testing.assert_allclose(result.residuals, r, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(result.cost, 0.5 * r @ r, rtol=1e-12, atol=1e-30)
    np.testing.assert_allclose(result.grad, J.T @ r, atol=1e-9 * np.max(np.abs(J)))
    assert result.active is None
    assert result.aux is None
    assert bool(result.success)
    assert "onverged" in result.message
    assert repr(result).startswith(f"LeastSquaresResult(status=CONVERGED, nit={result.nit}")


# Outliers


@pytest.fixture(scope="module")
def spoilt():
    """The start and the data of "decay" with every eighth response far off."""
    x0, (fit,) = fit_of("decay")
    return x0, (fit._replace(y=fit.y + jnp.where(jnp.arange(24) % 8 == 3, 2.0, 0.0)),)


@pytest.mark.parametrize("loss", ROBUST)
def test_robust_losses(loss, spoilt):
    x0, args = spoilt
    result = least_squares(misfit, x0, args, loss=loss, f_scale=0.05)
    expected = scipys("decay", args, x0=result.x, loss=loss, f_scale=0.05)
    assert status(result) is Status.CONVERGED
    np.testing.assert_allclose(result.x, expected.x, rtol=1e-6)
    np.testing.assert_allclose(result.cost, expected.cost, rtol=1e-10)
    np.testing.assert_allclose(result.grad, 0, atol=1e-8)
    plain = least_squares(misfit, x0, args)
    truth = np.array(STARTS["decay"][1])
    assert np.linalg.norm(result.x - truth) < 0.5 * np.linalg.norm(plain.x - truth)


def own_huber(z):
    return jnp.where(z <= 1, z, 2 * jnp.sqrt(jnp.maximum(z, 1)) - 1)


def test_a_loss_of_the_callers(spoilt):
    x0, args = spoilt
    named, own = (
        least_squares(misfit, x0, args, loss=loss, f_scale=0.05) for loss in ("huber", own_huber)
    )
    assert (int(named.nit), int(named.nfev)) == (int(own.nit), int(own.nfev))
    np.testing.assert_allclose(own.x, named.x, rtol=1e-9)


def test_a_scale_is_a_division_of_the_residuals(spoilt):
    x0, (fit,) = spoilt
    scaled = least_squares(misfit, x0, (fit,), loss="cauchy", f_scale=0.05)
    divided = least_squares(misfit, x0, (fit._replace(c=20 * fit.c),), loss="cauchy")
    np.testing.assert_allclose(divided.x, scaled.x, rtol=1e-9)
    np.testing.assert_allclose(divided.cost, 400 * scaled.cost, rtol=1e-9)


# Forms of parameters and residuals


def of_trees(p, scale):
    """Two arrays of residuals beside a number, of parameters in a tree."""
    model = p["line"]["slope"] * TIMES + p["line"]["height"]
    r = {"fit": (scale * (model - 1)).reshape(4, 6), "prior": p["bent"] - 2.0}
    return r, {"largest": jnp.max(jnp.abs(model)), "p": p["bent"]}


def test_trees_and_auxiliary_data():
    x0 = {"bent": jnp.zeros((2, 1)), "line": {"height": jnp.zeros(()), "slope": jnp.ones(())}}
    result = least_squares(of_trees, x0, (3.0,), has_aux=True)
    assert status(result) is Status.CONVERGED
    assert jax.tree.structure(result.x) == jax.tree.structure(result.grad)
    expected = {"bent": np.full((2, 1), 2), "line": {"height": 1, "slope": 0}}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), result.x, expected)
    r, aux = of_trees(result.x, 3.0)
    assert result.residuals["fit"].shape == (4, 6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), result.residuals, r)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), result.aux, aux)


# Counts


@pytest.fixture
def counting():
    """Residuals and their Jacobian that say when they are evaluated."""
    calls = {"residuals": 0, "jac": 0}

    def count(name):
        calls[name] += 1

    def residuals(p, fit):
        jax.debug.callback(lambda: count("residuals"))
        return misfit(p, fit)

    def jac(p, fit):
        jax.debug.callback(lambda: count("jac"))
        return jax.jacfwd(misfit)(p, fit)

    return residuals, jac, calls


@pytest.mark.parametrize("name", ["decay", "box", "logarithm"])
def test_evaluations_are_counted_and_refused_ones_cost_no_jacobian(name, counting):
    residuals, jac, calls = counting
    x0, args = fit_of(name)
    result = least_squares(residuals, x0, args, jac=jac)
    jax.effects_barrier()
    assert calls["residuals"] == int(result.nfev)
    assert int(result.nit) < calls["jac"] <= int(result.nfev)
    plain = least_squares(misfit, x0, args)
    np.testing.assert_allclose(result.x, plain.x, rtol=1e-8)
    if name != "decay":
        assert calls["jac"] < int(result.nfev)


def test_one_evaluation_of_residuals_a_trip_without_a_jacobian_of_the_callers(counting):
    residuals, _, calls = counting
    result = least_squares(residuals, *fit_of("box"))
    jax.effects_barrier()
    assert calls["residuals"] == int(result.nfev)


def test_new_numbers_compile_nothing():
    fun = TraceCounter(misfit)
    x0, (fit,) = fit_of("decay")
    least_squares(fun, x0, (fit,))
    first = fun.traces
    least_squares(fun, 2 * x0, (fit._replace(y=fit.y + 1),), xtol=1e-3, maxiter=3)
    assert fun.traces == first


# A run under way


def same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("stop", [1, 4, 13])
def test_it_goes_on_where_it_stopped(stop):
    """Bit for bit, whatever the trip: refused ones too."""
    x0, args = fit_of("box")
    whole = least_squares(misfit, x0, args)
    half = least_squares(misfit, x0, args, maxfun=stop)
    assert (status(half), int(half.nfev)) == (Status.MAX_FUN, stop)
    same(least_squares(misfit, x0, args, state=half.state), whole)
    ended = least_squares(misfit, x0, args, state=whole.state)
    same(ended, whole)


def test_a_callback_sees_every_step_and_can_stop():
    x0, args = fit_of("decay")
    seen = []
    whole = least_squares(misfit, x0, args, callback=seen.append)
    assert len(seen) == int(whole.nit)
    assert all(isinstance(result, LeastSquaresResult) for result in seen)
    costs = [float(result.cost) for result in seen]
    assert np.all(np.diff(costs) <= 1e-12 * costs[-1])
    same(least_squares(misfit, x0, args).x, whole.x)
    np.testing.assert_array_equal(seen[1].residuals, misfit(seen[1].x, *args))
    stopped = least_squares(misfit, x0, args, callback=lambda result: result.nit >= 2)
    assert (status(stopped), int(stopped.nit)) == (Status.STOPPED, 2)


def test_progress_is_a_line(capsys):
    x0, args = fit_of("decay")
    result = least_squares(misfit, x0, args, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert re.search(rf"evaluations +{int(result.nfev)}\b", lines[-1])


# Other methods of the same objective


def test_any_method_takes_the_sum_of_squares():
    """As a function: the same decisions as for the same function, written by hand."""
    x0, args = fit_of("decay")
    by_hand = minimize(lambda p, fit: 0.5 * jnp.sum(misfit(p, fit) ** 2), x0, args)
    objective = sum_of_squares(misfit)
    of_squares = minimize(objective, x0, args, method="osbfgs")
    assert int(of_squares.nfev) == int(by_hand.nfev)
    np.testing.assert_allclose(of_squares.x, by_hand.x, rtol=1e-9)
    np.testing.assert_allclose(of_squares.x, least_squares(misfit, x0, args).x, rtol=1e-7)
    within = minimize(objective, x0, args)
    same(within.x, least_squares(misfit, x0, args).x)
