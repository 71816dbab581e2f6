"""The solvers of optimistix: its own entry points run them, with its loop and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqn

optx = pytest.importorskip("optimistix")
adapter = pytest.importorskip("jaxqn.adapters.optimistix")
QuasiNewton, LeastSquares = adapter.QuasiNewton, adapter.LeastSquares

DEFAULT, RESULTS = QuasiNewton(), optx.RESULTS
START = np.array([-1.2, 1.0])


def valley(y, a):
    """Rosenbrock's function; its minimiser is (a, a²)."""
    return 100 * (y[1] - y[0] ** 2) ** 2 + (a - y[0]) ** 2


def solved(a, solver=DEFAULT, **options):
    return optx.minimise(valley, solver, jnp.asarray(START, a.dtype), a, **options)


@pytest.mark.parametrize(("method", "dtype"), [(None, jnp.float32), ("lbfgs", jnp.float64)])
def test_the_steps_are_the_trips_of_minimize(method, dtype):
    """Up to rounding, and optimistix counts as many steps as the objective has evaluations."""
    calls = []

    def counted(y, a):
        jax.debug.callback(lambda: calls.append(None))
        return valley(y, a)

    a, y0 = jnp.asarray(1.5, dtype), jnp.asarray(START, dtype)
    solution = optx.minimise(counted, QuasiNewton(method=method), y0, a)
    jax.effects_barrier()
    result = jaxqn.minimize(valley, y0, (a,), method=method)
    assert solution.result == RESULTS.successful
    assert len(calls) == solution.stats["num_steps"] == solution.stats["nfev"]
    assert abs(solution.stats["nfev"] - result.nfev) <= 2
    assert solution.stats["status"] == result.status == jaxqn.Status.CONVERGED
    assert solution.value.dtype == dtype
    rtol = 1e-4 if dtype == jnp.float32 else 1e-8
    np.testing.assert_allclose(solution.value, [1.5, 2.25], rtol=rtol)
    np.testing.assert_allclose(solution.state.f_info.f, result.fun, atol=1e-8)
    assert solution.state.f_info.grad.shape == (2,)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_the_solution_is_differentiated_by_optimistix(mode):
    derivative = mode(lambda a: solved(a).value)(jnp.array(1.5))
    np.testing.assert_allclose(derivative, [1.0, 3.0], rtol=1e-6)


def test_unrolled_derivatives_are_refused():
    """The iterations of jaxqn have none; the error says what has."""
    adjoint = optx.RecursiveCheckpointAdjoint()
    with pytest.raises(NotImplementedError, match="steps of a run of jaxqn have no derivative"):
        jax.grad(lambda a: solved(a, adjoint=adjoint).value[0])(jnp.array(1.5))


def test_a_batch():
    a = jnp.array([1.5, 1.0, 0.5])
    batch = jax.jit(jax.vmap(solved))(a)
    np.testing.assert_allclose(batch.value, np.stack([a, a**2], axis=1), rtol=1e-7)
    alone = [solved(one).stats["nfev"] for one in a]
    np.testing.assert_array_equal(batch.stats["nfev"], alone)


def test_a_pytree_with_aux():
    """The auxiliary output is that of the solution, the lowest point that was evaluated."""

    def fun(y, a):
        residual = y["scale"] * jnp.array([1.0, 2.0]) - a
        return jnp.sum(residual**2), (residual, 7)

    a = jnp.array([1.0, 4.0])
    solution = optx.minimise(fun, QuasiNewton(), {"scale": jnp.array(0.0)}, a, has_aux=True)
    np.testing.assert_allclose(solution.value["scale"], 1.8, rtol=1e-9)
    np.testing.assert_allclose(solution.aux[0], [0.8, -0.4], rtol=1e-8)
    assert solution.aux[1] == 7


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lower": 0.0, "upper": jnp.array([1.0, 1.0, 9.0])}, [0.25, 1.0, 3.0]),
        ({"upper": 0.0}, [0.0, 0.0, 0.0]),
        ({"lower": jnp.array([0.5, 2.0, 0.0]), "x_scale": 4.0}, [0.5, 3.0, 3.0]),
    ],
)
def test_bounds(options, expected):
    """Of a quadratic without mixed terms; no trial leaves the box."""
    outside = []

    def bowl(y, a):
        low, up = options.get("lower", -jnp.inf), options.get("upper", jnp.inf)
        jax.debug.callback(outside.append, jnp.any((y < low) | (y > up)))
        return jnp.sum((y - a) ** 2)

    y0, a = jnp.full(3, 0.5), jnp.array([0.25, 3.0, 3.0])
    solution = optx.minimise(bowl, QuasiNewton(), y0, a, options)
    jax.effects_barrier()
    np.testing.assert_allclose(solution.value, expected, rtol=1e-9)
    assert not any(outside)


def test_the_tolerances_of_optimistix_end_a_run_early():
    tight, loose = solved(jnp.array(1.5)), solved(jnp.array(1.5), QuasiNewton(1e-3, 1e-3))
    assert loose.result == RESULTS.successful
    assert loose.stats["status"] == jaxqn.Status.RUNNING
    assert loose.stats["num_steps"] < tight.stats["num_steps"]
    np.testing.assert_allclose(loose.value, [1.5, 2.25], rtol=1e-2)


ENDS = {
    "a wrong gradient": (
        lambda y, a: jax.lax.stop_gradient(2 * jnp.sum(y**2)) - jnp.sum(y) * a,
        RESULTS.nonlinear_divergence,
        jaxqn.Status.LINE_SEARCH_FAILED,
    ),
    "no minimum": (
        lambda y, a: -a * jnp.sum(jnp.exp(y)),
        RESULTS.nonlinear_divergence,
        jaxqn.Status.UNBOUNDED,
    ),
    "no number": (
        lambda y, a: jnp.sum(jnp.log(y - 9 * a)),
        RESULTS.nonfinite,
        jaxqn.Status.NON_FINITE,
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_bad_end(name):
    fun, word, status = ENDS[name]
    solution = optx.minimise(fun, QuasiNewton(), jnp.ones(2), jnp.array(1.0), throw=False)
    assert solution.result == word
    assert solution.stats["status"] == status


def test_optimistix_counts_the_steps_and_throws():
    short = solved(jnp.array(1.5), max_steps=5, throw=False)
    assert short.result == RESULTS.nonlinear_max_steps_reached
    assert short.stats["nfev"] == 5
    with pytest.raises(Exception, match="maximum number of steps"):
        solved(jnp.array(1.5), max_steps=5)


def test_forward_mode_for_a_loop_without_a_transpose():
    def fun(y, a):
        halved = jax.lax.while_loop(lambda v: v > 1, lambda v: v / 2, a)
        total = jax.lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + (y["v"] - halved) ** 2), (0, 0.0)
        )
        return total[1]

    y0, options = {"v": jnp.array(4.0)}, {"autodiff_mode": "fwd"}
    solution = optx.minimise(fun, QuasiNewton(), y0, jnp.array(3.0), options)
    np.testing.assert_allclose(solution.value["v"], 0.75, rtol=1e-9)
    with pytest.raises(ValueError, match="'bwd' or 'fwd'"):
        optx.minimise(fun, QuasiNewton(), y0, jnp.array(3.0), {"autodiff_mode": "rev"})


def test_an_unknown_option():
    with pytest.raises(ValueError, match="unknown option 'uppr'; a solver of jaxqn takes"):
        solved(jnp.array(1.5), options={"uppr": 1.0})


T = np.linspace(0.0, 2.0, 20)


def decay(y, data):
    return y["scale"] * jnp.exp(-y["rate"] * T) - data


@pytest.mark.parametrize("solver", [LeastSquares(), QuasiNewton()])
def test_least_squares(solver):
    """Also by the minimiser, to which optimistix hands half the sum of squares."""
    y0 = {"scale": jnp.array(1.0), "rate": jnp.array(1.0)}
    data = jnp.asarray(3 * np.exp(-0.7 * T) + 0.01 * np.cos(9 * T))
    solution = optx.least_squares(decay, solver, y0, data)
    fit = jaxqn.least_squares(decay, y0, (data,))
    assert solution.stats["status"] == jaxqn.Status.CONVERGED
    for name in y0:
        np.testing.assert_allclose(solution.value[name], fit.x[name], rtol=1e-7)
    np.testing.assert_allclose(solution.state.f_info.f, fit.cost, rtol=1e-9)
    if isinstance(solver, LeastSquares):
        assert solution.stats["nfev"] == fit.nfev


def test_the_fit_of_a_line_and_its_derivative():
    """The normal equations: both are linear in the data."""
    design = np.stack([np.ones_like(T), T], axis=1)

    def residuals(y, data):
        return design @ y - data, jnp.sum(data)

    def fit(data):
        y0 = jnp.zeros(2)
        return optx.least_squares(residuals, LeastSquares(), y0, data, has_aux=True).value

    data = jnp.asarray(np.sin(3 * T))
    hat = np.linalg.pinv(design)
    np.testing.assert_allclose(fit(data), hat @ data, rtol=1e-9)
    np.testing.assert_allclose(jax.jacrev(fit)(data), hat, atol=1e-12)
