"""Every status is reached on purpose, means what it says, and tells the user what to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from problems import by_name, numbered, numbered_start

from jaxqn import MESSAGES, Status, backtracking, minimize_batch, wolfe
from jaxqn.drivers import minimize

each_search = pytest.mark.parametrize(
    "linesearch", [wolfe(), backtracking()], ids=["wolfe", "backtracking"]
)


def bottomless(x, kind):
    """Functions without a lower bound: they end in a straight line, at -inf, or at a pole."""
    functions = [
        lambda x: -jnp.sum(x),
        lambda x: -jnp.sum(x**4),
        lambda x: -jnp.sum(jnp.exp(x)),
        lambda x: jnp.sum(jnp.log(x - 0.5)),
    ]
    return jax.lax.switch(kind, functions, x)


def run(name, dtype=np.float64, scale=1.0, **options):
    x0, args = numbered_start(name, dtype, scale)
    return minimize(numbered, x0, args, **options)


def status(result):
    return Status(int(result.status))


def slope(result):
    return float(np.max(np.abs(result.jac)))


# CONVERGED


@pytest.mark.parametrize("gtol", [10.0, 1e-3, 1e-7])
def test_gtol_is_absolute(gtol):
    result = run("wood", gtol=gtol)
    assert status(result) == Status.CONVERGED
    assert slope(result) <= gtol
    before = run("wood", gtol=gtol, maxiter=int(result.nit) - 1)
    assert status(before) == Status.MAX_ITER
    assert float(np.max(np.abs(before.state.point.g)) * before.state.g_scale) > gtol


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs"])
def test_by_default_nothing_depends_on_the_scale_of_the_objective(method, dtype):
    """The same evaluations and the same point; the test of convergence has no unit."""
    plain = run("wood", dtype, method=method)
    assert status(plain) == Status.CONVERGED
    for power in (-20, 20):
        scaled = run("wood", dtype, 2.0**power, method=method)
        assert status(scaled) == Status.CONVERGED
        assert int(scaled.nfev) == int(plain.nfev)
        np.testing.assert_array_equal(scaled.x, plain.x)


def steep(x, wall):
    """exp(x) − x, beside whose first gradient every later one is small, and a wall below x = 1.5.

    Its minimum is 1 where there is no wall, of which the gradient does not know.
    """
    return jnp.sum(jnp.exp(x) - x) + jax.lax.stop_gradient(wall * jnp.sum(jnp.maximum(1.5 - x, 0)))


@pytest.mark.parametrize("method", ["osbfgs", "bfgs", "lbfgs"])
@pytest.mark.parametrize("start", [25.0, 40.0, 60.0])
def test_a_gradient_small_beside_an_enormous_first_one_is_not_enough(start, method, dtype):
    """Nor is it lost in float32 when it falls below what squares over the first one can hold."""
    result = minimize(steep, jnp.full(1, start, dtype), (jnp.zeros((), dtype),), method=method)
    assert status(result) == Status.CONVERGED
    assert float(result.fun) - 1 <= 100 * float(jnp.finfo(dtype).eps)
    assert int(result.nfev) < 150
    if method == "bfgs":
        np.testing.assert_allclose(result.hess_inv, 1, rtol=0.1)


@pytest.mark.parametrize("method", ["osbfgs", "bfgs", "lbfgs"])
def test_nor_is_it_where_only_one_direction_is_steep(method, dtype):
    """Poisson regression from far outside, against SciPy in float64 from zero."""
    draws = np.random.default_rng(0)
    X = draws.normal(size=(50, 2))
    counts = draws.poisson(np.exp(X @ [0.5, -0.3]))

    def deviance(w, X, counts):
        return jnp.sum(jnp.exp(X @ w) - counts * (X @ w))

    there = scipy.optimize.minimize(lambda w: float(deviance(w, X, counts)), np.zeros(2))
    data = jnp.asarray(X, dtype), jnp.asarray(counts, dtype)
    result = minimize(deviance, jnp.full(2, 10.0, dtype), data, method=method)
    assert status(result) == Status.CONVERGED
    noise = 100 * float(jnp.finfo(dtype).eps)
    assert float(result.fun) - there.fun <= noise * abs(there.fun) + 1e-9


def test_a_gtol_that_is_given_is_enough():
    result = minimize(steep, jnp.full(1, 25.0), (jnp.zeros(()),), gtol=10.0)
    assert status(result) == Status.CONVERGED
    assert 1 < slope(result) <= 10


def test_a_minimum_of_zero_and_without_curvature_ends_too(dtype):
    """There the model promises a fraction of the value for ever: the step says when to stop."""
    for centre in (0.0, 1.0):
        x0 = jnp.asarray([2.0, 3.0], dtype)
        result = minimize(lambda x, c: jnp.sum((x - c) ** 4), x0, (jnp.asarray(centre, dtype),))
        assert status(result) == Status.CONVERGED
        np.testing.assert_allclose(result.x, centre, atol=20 * float(jnp.finfo(dtype).eps) ** 0.5)
        assert int(result.nfev) < 150


def test_a_gradient_that_is_wrong_is_no_minimum_however_large_the_first_was():
    """Beside a first gradient of 7e10 the wall's 10 would count as small."""
    x0, wall = jnp.full(1, 25.0), jnp.array(10.0)
    for gtol in (None, 1e-6):
        result = minimize(steep, x0, (wall,), gtol=gtol)
        assert status(result) == Status.LINE_SEARCH_FAILED
        assert int(result.nfev) < 150


@pytest.mark.parametrize("maxiter", [20, 26, 30])
def test_a_steep_run_continues_exactly(maxiter):
    """Between the first gradient within gtol and the end as anywhere else."""
    call = functools.partial(minimize, steep, jnp.full(1, 60.0, jnp.float32), (jnp.float32(0),))
    part = call(maxiter=maxiter)
    assert status(part) == Status.MAX_ITER
    whole, rest = call(), call(state=part.state)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(one, other)


# FTOL and XTOL


def values_and_points(name, **options):
    """f and x after every iteration, the start included."""
    results = [run(name, maxiter=0)]
    run(name, callback=results.append, **options)
    return [float(r.fun) for r in results], [np.asarray(r.x) for r in results]


@pytest.mark.parametrize("ftol", [1e-1, 1e-3, 1e-6])
def test_ftol_is_the_relative_decrease_of_the_last_iteration(ftol):
    result = run("quadratic", ftol=ftol, gtol=0.0)
    assert status(result) == Status.FTOL
    assert bool(result.success)
    values, _ = values_and_points("quadratic", ftol=ftol, gtol=0.0)
    decreases = -np.diff(values) / np.abs(values[1:])
    assert decreases[-1] <= ftol
    assert np.all(decreases[:-1] > ftol)


@pytest.mark.parametrize("xtol", [1e-1, 1e-3, 1e-4])
def test_xtol_is_the_relative_length_of_the_last_step(xtol):
    result = run("wood", xtol=xtol)
    assert status(result) == Status.XTOL
    assert bool(result.success)
    _, points = values_and_points("wood", xtol=xtol)
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1) / np.linalg.norm(points[1:], axis=1)
    assert lengths[-1] <= xtol * (1 + 1e-12)
    assert np.all(lengths[:-1] > xtol)


def test_tolerances_at_zero_are_off():
    assert status(run("wood", ftol=0.0, xtol=0.0)) == Status.CONVERGED


# STALLED


def raised(x, index, scale):
    """The problems with 1000 added to their values: as many digits of the decrease are lost."""
    return numbered(x, index, scale) + 1000


def valley(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


@pytest.mark.parametrize("name", ["logistic", "quadratic", "quartic"])
def test_stalled_where_rounding_hides_the_decrease(name, dtype):
    """A gradient of exactly zero is asked for, and cannot be had: the run ends by itself, early."""
    x0, args = numbered_start(name, dtype)
    result = minimize(raised, x0 + 0.1, args, gtol=0.0)
    assert status(result) in (Status.STALLED, Status.CONVERGED)
    if status(result) == Status.CONVERGED:
        assert slope(result) == 0
    else:
        assert not bool(result.success)
    noise = 100 * float(jnp.finfo(dtype).eps) * 1000
    assert float(result.fun) - (1000 + by_name(name).minimum) <= noise
    assert int(result.nfev) < 600


@pytest.mark.parametrize("method", ["osbfgs", "bfgs", "ssbroyden"])
def test_a_direction_that_promises_less_than_the_last_digit_is_the_last(method, dtype):
    """The run ends with that search, and with the curvature that made the promise."""
    x0, args = numbered_start("logistic", dtype)
    result = minimize(raised, x0 + 0.1, args, method=method, gtol=0.0)
    assert status(result) == Status.STALLED
    assert not bool(result.state.flags.steepest)
    before = minimize(raised, x0 + 0.1, args, method=method, gtol=0.0, maxiter=int(result.nit))
    assert int(result.nfev - before.nfev) == int(result.state.search.trials)
    assert int(result.state.approx.absorbed) > 10


@pytest.mark.parametrize("method", ["osbfgs", "bfgs", "lbfgs"])
def test_converged_where_rounding_hides_the_rest(method):
    """In float32 the gradient gets no smaller than rounding leaves it, and the run ends soon."""
    x0, args = numbered_start("logistic", np.float32)
    result = minimize(raised, x0, args, method=method)
    assert status(result) == Status.CONVERGED
    assert slope(result) <= 1e-4 * slope(minimize(raised, x0, args, maxiter=0))
    assert int(result.nfev) < 40
    unending = minimize(raised, x0, args, method=method, gtol=0.0)
    assert status(unending) == Status.STALLED
    assert int(result.nfev) < int(unending.nfev)
    np.testing.assert_allclose(result.fun, unending.fun, rtol=1e-6)


@each_search
def test_one_last_digit_from_the_minimiser(linesearch, dtype):
    """Steps that would leave x as it is are not tried."""
    x0 = jnp.array([1, 1 + jnp.finfo(dtype).eps], dtype)
    result = minimize(valley, x0, linesearch=linesearch)
    assert status(result) in (Status.CONVERGED, Status.STALLED)
    assert int(result.nfev) <= 5


def box(x):
    """BoxBOD of the NIST collection: its values near the minimum differ in their last digits."""
    days = jnp.array([1, 2, 3, 5, 7, 10], x.dtype)
    demand = jnp.array([109, 149, 149, 191, 213, 224], x.dtype)
    return jnp.sum((x[0] * (1 - jnp.exp(-x[1] * days)) - demand) ** 2)


def test_going_up_and_down_by_last_digits_is_no_progress():
    """What counts is to fall below every value before, not below the last."""
    spread = jax.random.normal(jax.random.key(0), (64, 2), jnp.float32)
    x0 = jnp.array([[213, 0.54]], jnp.float32) + spread * jnp.array([[30, 0.1]], jnp.float32)
    result = minimize_batch(box, x0, gtol=0.0)
    assert Status.STALLED in result.status
    assert set(result.status.tolist()) <= {Status.CONVERGED, Status.STALLED}
    assert np.max(result.nfev) < 500
    by_default = minimize_batch(box, x0)
    # A start so near that rounding leaves more of its gradient than the fraction may end STALLED.
    far = jnp.abs(x0[:, 1] - 0.547237) > 0.03
    assert far.sum() > 40
    assert set(by_default.status[far].tolist()) == {Status.CONVERGED}
    assert np.sum(by_default.status == Status.CONVERGED) >= 62
    assert np.max(by_default.nfev) < 50
    np.testing.assert_allclose(by_default.fun, 1168.0088, rtol=1e-6)


# MAX_ITER and MAX_FUN: their exactness is tested with the driver


def test_budgets():
    assert status(run("wood", maxiter=3)) == Status.MAX_ITER
    assert status(run("wood", maxfun=3)) == Status.MAX_FUN
    assert not bool(run("wood", maxfun=3).success)


def test_the_default_budget_of_iterations():
    """The run never makes the number of steps that it would take."""
    result = minimize(lambda x: jnp.sum(jnp.sqrt(1 + x**2)) - 2.999 * x[0], jnp.ones(3))
    assert int(result.nit) <= 1000
    assert np.isfinite(float(result.fun))


def falling(x, kind, scale):
    """Straight down, ever steeper, and beyond a pole; none has a minimum below its start."""
    functions = [
        lambda x: jnp.sum(x),
        lambda x: -jnp.sum(x**2),
        lambda x: -jnp.sum(jnp.exp(x)),
        lambda x: jnp.sum(x + 1500**2 / x),
    ]
    return scale * jax.lax.switch(kind, functions, x)


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs", "newton"])
def test_unbounded_below_has_a_status_of_its_own(method, dtype):
    """After tens of evaluations, once f has fallen below any scale of the run."""
    for kind, start in enumerate((1.0, 1e-3, 0.0, -1500.0 * 1.5)):
        for scale in (1e-8, 1.0, 1e8):
            x0 = jnp.full(2, start, dtype)
            result = minimize(falling, x0, (kind, jnp.asarray(scale, dtype)), method=method)
            assert status(result) == Status.UNBOUNDED, (kind, scale)
            assert not bool(result.success)
            assert int(result.nfev) < 60
            assert np.isfinite(float(result.fun))
            again = minimize(
                falling, x0, (kind, jnp.asarray(scale, dtype)), method=method, state=result.state
            )
            assert (status(again), int(again.nfev)) == (status(result), int(result.nfev))


# LINE_SEARCH_FAILED


@jax.custom_vjp
def wrong_sign(x, minimum):
    return jnp.sum((x - 1) ** 2) + minimum


wrong_sign.defvjp(
    lambda x, minimum: (wrong_sign(x, minimum), x),
    lambda x, t: (-2 * t * (x - 1), jnp.zeros_like(t)),
)


@each_search
@pytest.mark.parametrize("minimum", [0.0, 1.0, 1e3])
def test_a_wrong_gradient_fails_the_search(linesearch, minimum):
    """The gradient points downhill: along −g the value only rises."""
    result = minimize(wrong_sign, jnp.zeros(3), (jnp.float64(minimum),), linesearch=linesearch)
    assert status(result) == Status.LINE_SEARCH_FAILED
    assert not bool(result.success)
    assert "gradient does not match" in result.message
    np.testing.assert_array_equal(result.x, np.zeros(3))
    assert float(result.fun) == 3 + minimum


def test_a_failed_search_is_final():
    """More budget does not help, and continuing does not pretend that it does."""
    args = (jnp.float64(1),)
    result = minimize(wrong_sign, jnp.zeros(3), args)
    assert status(result) == Status.LINE_SEARCH_FAILED
    again = minimize(wrong_sign, jnp.zeros(3), args, state=result.state, maxfun=500)
    assert (status(again), int(again.nfev)) == (status(result), int(result.nfev))


def kinked(x):
    """Its minimiser is where its gradient jumps: no step from there decreases it."""
    return jnp.sum(jnp.abs(x)) + 0.5 * jnp.abs(x[0] - x[1])


def test_a_kink_ends_the_run_with_a_true_status():
    result = minimize(kinked, jnp.array([0.3, -1.7]), maxfun=20_000)
    # The value falls by a constant factor towards 0, until nothing is left of the first one.
    assert status(result) in (Status.LINE_SEARCH_FAILED, Status.STALLED, Status.CONVERGED)
    assert float(result.fun) < (1e-30 if bool(result.success) else 1e-3)


@pytest.mark.parametrize("power", [1.5, 4.0])
def test_a_run_to_the_smallest_numbers_ends_by_itself(power, dtype):
    """Down to the underflow of every inner product, where H may overflow."""
    x0 = jnp.asarray([0.3, -1.7], dtype)
    result = minimize(power_sum, x0, (jnp.asarray(power, dtype),), gtol=0.0, maxfun=20_000)
    assert status(result) not in (Status.MAX_FUN, Status.NON_FINITE)
    assert np.isfinite(result.fun)
    assert float(result.fun) <= 1e-3 * float(power_sum(x0, power))


def power_sum(x, power):
    return jnp.sum(jnp.abs(x) ** power * jnp.arange(1, 3, dtype=x.dtype))


# NON_FINITE, and values that are not finite on the way


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_at_x0(bad, dtype):
    x0, args = numbered_start("rosenbrock", dtype)
    result = minimize(numbered, x0.at[0].set(bad), args)
    assert (status(result), int(result.nit), int(result.nfev)) == (Status.NON_FINITE, 0, 1)
    assert not bool(result.success)
    assert "not finite at x0" in result.message


def test_a_gradient_not_finite_at_x0():
    """sqrt at 0: the value is fine, its slope is infinite."""
    result = minimize(lambda x: jnp.sum(jnp.sqrt(x) + x**2), jnp.zeros(2))
    assert (status(result), int(result.nfev)) == (Status.NON_FINITE, 1)


def barrier(x):
    """Not defined outside the unit box; the minimiser is inside, close to its edge."""
    return -jnp.sum(jnp.log(x) + 1e-3 * jnp.log(1 - x))


@each_search
def test_a_trial_that_is_not_finite_is_no_end(linesearch):
    result = minimize(barrier, jnp.array([0.01, 0.5]), linesearch=linesearch)
    assert status(result) == Status.CONVERGED
    np.testing.assert_allclose(result.x, 1 / 1.001, rtol=1e-7)


@each_search
@pytest.mark.parametrize("kind", [1, 2, 3], ids=["quartic", "exponential", "logarithm"])
def test_a_function_unbounded_below_ends_at_its_best_finite_value(kind, linesearch, dtype):
    """No success, nothing returned that is not finite, and x0 is not blamed."""
    x0 = jnp.ones(3, dtype)
    result = minimize(bottomless, x0, (kind,), linesearch=linesearch, maxfun=50_000)
    assert not bool(result.success)
    assert status(result) != Status.NON_FINITE
    assert all(np.all(np.isfinite(leaf)) for leaf in (result.x, result.fun, result.jac))
    assert float(result.fun) < float(bottomless(x0, kind))


# STOPPED, and the words


def test_stopped_by_the_callback():
    result = run("wood", callback=lambda _: True)
    assert (status(result), int(result.nit)) == (Status.STOPPED, 1)


def test_every_status_has_its_message():
    assert set(MESSAGES) == set(Status)
    assert len(set(MESSAGES.values())) == len(Status)
    assert all(text.endswith(".") for text in MESSAGES.values())
    result = run("wood", maxiter=3)
    assert result.message == MESSAGES[Status.MAX_ITER]
    assert "state=result.state" in result.message


def test_success_is_a_tolerance_met():
    succeeded = {Status.CONVERGED, Status.FTOL, Status.XTOL}
    result = run("wood")
    for one in Status:
        assert bool(result._replace(status=jnp.int32(one)).success) == (one in succeeded)


def test_a_batch_has_statuses_and_no_message():
    batch = run("wood")._replace(status=jnp.array([1, 4, 8]))
    assert batch.success.tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"result\.status"):
        _ = batch.message
