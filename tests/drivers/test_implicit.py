"""Derivatives of a solution by its data, against closed forms and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxqn
from jaxqn import least_squares, minimize, minimize_batch, sum_of_squares

ROWS, N = 12, 3
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
MODES = pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev], ids=["jvp", "vjp"])


def ridge(x, penalty, A, y):
    return 0.5 * jnp.sum((A @ x - y) ** 2) + 0.5 * penalty * jnp.sum(x**2)


def rows(x, penalty, A, y):
    return {"fit": A @ x - y, "penalty": jnp.sqrt(penalty) * x}


def closed_form(penalty, A, y):
    return jnp.linalg.solve(A.T @ A + penalty * jnp.eye(N, dtype=A.dtype), A.T @ y)


def ridge_data(dtype):
    rng = np.random.default_rng(1)
    A, y = rng.normal(size=(ROWS, N)), rng.normal(size=ROWS)
    return jnp.asarray(2.0, dtype), jnp.asarray(A, dtype), jnp.asarray(y, dtype)


def fitted(way, penalty, A, y):
    """The solution, to which the data come by the way named."""
    x0, data = jnp.zeros(N, A.dtype), (penalty, A, y)
    tight = {"gtol": 0.0}
    if way == "closure":
        return minimize(lambda x: ridge(x, *data), x0, method="newton").x
    if way == "least_squares":
        return least_squares(rows, x0, data).x
    if way == "batch":
        starts = jnp.stack([x0, x0 + 1])
        return minimize_batch(ridge, starts, data, in_axes=(0, None, None, None), **tight).x[1]
    return minimize(ridge, x0, data, method=way).x


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", ["osbfgs", "lbfgs", "newton", "least_squares", "closure"])
def test_ridge_regression(way, dtype):
    """By the penalty, the matrix and the data; both modes."""
    data = ridge_data(dtype)
    expected = jax.jacfwd(closed_form, (0, 1, 2))(*ridge_data("float64"))
    for mode in (jax.jacfwd, jax.jacrev):
        found = mode(functools.partial(fitted, way), (0, 1, 2))(*data)
        for one, exact in zip(found, expected, strict=True):
            assert one.dtype == dtype
            scale = np.max(np.abs(exact))
            np.testing.assert_allclose(
                np.asarray(one) / scale, exact / scale, atol=TOLERANCE[dtype]
            )


@pytest.mark.parametrize("way", ["newton", "least_squares"])
def test_second_order(way):
    penalty, A, y = ridge_data("float64")

    def entry(solve, penalty, y):
        return solve(penalty, A, y)[0] ** 2

    for one, other in ((jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd)):
        found = one(other(functools.partial(entry, functools.partial(fitted, way))))(penalty, y)
        exact = jax.hessian(functools.partial(entry, closed_form))(penalty, y)
        np.testing.assert_allclose(found, exact, rtol=1e-9)


def quadratic(x, A, b):
    return 0.5 * x @ A @ x - b @ x


def in_a_box(b, lower, upper):
    A = jnp.array([[3.0, 1.0, 0.5], [1.0, 2.0, 0.3], [0.5, 0.3, 1.0]])
    return minimize(quadratic, jnp.zeros(3), (A, b), bounds=(lower, upper), method="newton")


@MODES
def test_bounds(mode):
    """The first variable is held below, the second above; the third is free: A₃₃ x₃ = b₃ − ...."""
    b, lower, upper = jnp.array([-4.0, 9.0, 1.0]), -jnp.ones(3), jnp.full(3, 2.0)
    result = in_a_box(b, lower, upper)
    assert result.active.tolist() == [-1, 1, 0]
    by_b, by_lower, by_upper = mode(lambda *data: in_a_box(*data).x, (0, 1, 2))(b, lower, upper)
    free = jnp.zeros((3, 3)).at[2, 2].set(1.0)
    np.testing.assert_allclose(by_b, free, atol=1e-12)
    np.testing.assert_allclose(by_lower, [[1, 0, 0], [0, 0, 0], [-0.5, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(by_upper, [[0, 0, 0], [0, 1, 0], [0, -0.3, 0]], atol=1e-12)


def test_multipliers_and_values_with_bounds():
    """Of the value by a bound, the derivative is the multiplier."""
    b, lower, upper = jnp.array([-4.0, 9.0, 1.0]), -jnp.ones(3), jnp.full(3, 2.0)
    result = in_a_box(b, lower, upper)
    by_lower = jax.grad(lambda lower: in_a_box(b, lower, upper).fun)(lower)
    np.testing.assert_allclose(by_lower, result.jac * jnp.array([1.0, 0.0, 0.0]), atol=1e-12)
    by_b = jax.jacfwd(lambda b: in_a_box(b, lower, upper).jac)(b)
    np.testing.assert_allclose(by_b[0], [-1.0, 0.0, 0.5], atol=1e-12)


def valley(x, a):
    return (x["u"] + 2 * x["v"] - a) ** 2


@MODES
def test_a_singular_hessian(mode):
    """Of all derivatives the shortest, as by the pseudo-inverse: (1, 2)/5."""
    x0 = {"u": jnp.array(0.3), "v": jnp.array(0.1)}
    found = mode(lambda a: minimize(valley, x0, (a,)).x)(2.0)
    np.testing.assert_allclose([found["u"], found["v"]], [0.2, 0.4], rtol=1e-10)


def wells(x, a):
    value = jnp.sum((x["w"] ** 2 - a) ** 2) + jnp.sum((x["v"] - jnp.cos(a)) ** 4)
    return value + jnp.sum((x["v"] - jnp.cos(a)) ** 2), {"w": x["w"] * a, "count": jnp.int32(3)}


WELLS = {"w": jnp.array([[0.8, 2.0]]), "v": jnp.array(0.1)}


def test_everything_that_a_result_holds():
    """x = (√a, cos a), the value is 0 for all a; aux follows x and a, and a counter has none."""

    def solve(a):
        result = minimize(wells, WELLS, (a,), has_aux=True, gtol=1e-12)
        return result._replace(state=None)

    result, change = jax.jvp(solve, (2.0,), (1.0,))
    assert bool(result.success)
    np.testing.assert_allclose(change.x["w"], 0.5 / np.sqrt([[2.0, 2.0]]), rtol=1e-9)
    np.testing.assert_allclose(change.x["v"], -np.sin(2.0), rtol=1e-9)
    np.testing.assert_allclose(change.aux["w"], 1.5 * np.sqrt([[2.0, 2.0]]), rtol=1e-9)
    np.testing.assert_allclose(change.fun, 0.0, atol=1e-9)
    np.testing.assert_allclose(change.jac["w"], 0.0, atol=1e-9)
    assert change.nit.dtype == change.status.dtype == change.aux["count"].dtype == jax.dtypes.float0


def test_the_value_moves_with_the_data_alone():
    """Its derivative is exact where x is not: no part of it comes from x."""
    a = jnp.array([1.0, 2.0])
    fun = lambda x, a: jnp.sum((x - a) ** 2) + jnp.sum(a**3)  # noqa: E731
    slope = jax.grad(lambda a: minimize(fun, jnp.zeros(2), (a,)).fun)(a)
    np.testing.assert_allclose(slope, 3 * a**2, rtol=1e-9)


def decay(x, t, y):
    return x[0] * jnp.exp(-x[1] * t) - y


def test_residuals_follow():
    """Against differences of tight fits."""
    t = jnp.linspace(0.0, 4.0, 15)
    y = 3 * jnp.exp(-0.7 * t) + 0.1 * jnp.cos(40 * t)

    def solve(shift):
        result = least_squares(decay, jnp.ones(2), (t, y + shift * t))
        return result.residuals, result.cost, result.x

    found = jax.jacrev(solve)(0.0)
    h = 1e-4
    expected = jax.tree.map(lambda up, down: (up - down) / (2 * h), solve(h), solve(-h))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


def rosenbrock(x, a):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2) + jnp.sum((a - x[:-1]) ** 2)


def test_a_run_that_did_not_converge():
    """Its derivatives are NaN, or by option those of the model where it ended."""
    solve = functools.partial(minimize, rosenbrock, jnp.zeros(2), maxiter=3)
    slope = lambda **option: jax.grad(lambda a: jnp.sum(solve((a,), **option).x))(1.0)  # noqa: E731
    assert np.isnan(slope())
    assert np.isfinite(slope(implicit="model"))
    assert slope(implicit=False) == 0
    assert np.isnan(jax.grad(lambda a: solve((a,)).fun)(1.0))


@pytest.mark.parametrize("bounded", [False, True], ids=["free", "bounded"])
def test_conjugate_gradients(bounded):
    """Above 256 variables, with the inverse Hessian of the run; some are held by a bound."""
    n = 300
    a, weights = jnp.linspace(-1.0, 1.0, n), jnp.logspace(0, 2, n)
    bounds = (0.0, None) if bounded else None

    def fun(x, a):
        z = jnp.concatenate([x["u"], x["v"]])
        return 0.5 * jnp.sum(weights * (z - a) ** 2) + 0.1 * jnp.sum((z[1:] - z[:-1]) ** 2)

    x0 = {"u": jnp.ones(100), "v": jnp.ones(n - 100)}

    def solve(a):
        x = minimize(fun, x0, (a,), method="lbfgs", bounds=bounds).x
        return jnp.concatenate([x["u"], x["v"]])

    free = np.asarray(solve(a)) > 0 if bounded else np.ones(n, bool)
    A = np.diag(weights) + 0.2 * (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1))
    A[[0, -1], [0, -1]] -= 0.2
    exact = np.zeros((n, n))
    exact[np.ix_(free, free)] = np.linalg.inv(A[np.ix_(free, free)])
    exact = exact * np.asarray(weights)
    seed = np.cos(np.arange(n))
    _, pull_back = jax.vjp(solve, a)
    np.testing.assert_allclose(pull_back(jnp.asarray(seed))[0], seed @ exact, atol=1e-8)
    np.testing.assert_allclose(
        jax.jvp(solve, (a,), (jnp.asarray(seed),))[1], exact @ seed, atol=1e-8
    )


def test_a_batch_equals_its_singles():
    """Of fits with data of their own and shared data, under jit, in both modes."""
    t = jnp.linspace(0.0, 4.0, 15)
    rates = jnp.linspace(0.5, 1.0, 5)
    y = 3 * jnp.exp(-rates[:, None] * t[None])
    fun = sum_of_squares(decay)

    def many(t, y):
        x0 = jnp.ones((5, 2))
        return minimize_batch(fun, x0, (t, y), in_axes=(0, None, 0)).x[:, 1]

    def one_by_one(t, y):
        return jax.vmap(lambda y: minimize(fun, jnp.ones(2), (t, y)).x[1])(y)

    def weighed(solve, t, y):
        return jnp.vdot(solve(t, y), jnp.arange(1.0, 6.0))

    found = jax.jit(jax.grad(functools.partial(weighed, many), (0, 1)))(t, y)
    expected = jax.grad(functools.partial(weighed, one_by_one), (0, 1))(t, y)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_jax_agrees():
    """JAX's own check, to second order in both modes, under jit and vmap."""

    def solve(a):
        return minimize(rosenbrock, jnp.array([0.5, 0.5]), (a,), method="newton").x

    check_grads(jax.jit(solve), (1.2,), order=2, modes=("fwd", "rev"), rtol=1e-3)
    slopes = jax.vmap(jax.grad(lambda a: jnp.sum(solve(a))))(jnp.array([1.2, 1.3]))
    np.testing.assert_allclose(slopes, [1 + 2 * 1.2, 1 + 2 * 1.3], rtol=1e-9)


@jax.custom_vjp
def one_way(x, a):
    return jnp.sum((x - a) ** 4) + jnp.sum((x - a) ** 2)


def both_ways(x, a):
    gradient = 4 * (x - a) ** 3 + 2 * (x - a)
    return one_way(x, a), gradient


one_way.defvjp(both_ways, lambda g, t: (t * g, -jnp.sum(t * g)))


@MODES
def test_an_objective_with_a_derivative_backwards_only(mode):
    solve = lambda a: minimize(one_way, jnp.zeros(2), (a,))[:2]  # noqa: E731
    x, value = mode(solve)(2.0)
    np.testing.assert_allclose(x, [1.0, 1.0], rtol=1e-9)
    np.testing.assert_allclose(value, 0.0, atol=1e-9)


def test_a_plain_call_traces_nothing_for_derivatives():
    """The objective is traced for the run alone; that of a gradient is compiled once."""
    traces = []

    def fun(x, a):
        traces.append(x)
        return jnp.sum((x - a) ** 2)

    solve = lambda a: jnp.sum(minimize(fun, jnp.zeros(2), (a,)).x)  # noqa: E731
    solve(jnp.array(1.0))
    plain = len(traces)
    jax.grad(solve)(jnp.array(2.0))
    assert len(traces) == plain + 1
    jax.grad(solve)(jnp.array(3.0))
    assert len(traces) == plain + 1


@pytest.mark.parametrize("implicit", ["always", None, 1.0])
def test_a_bad_option(implicit):
    with pytest.raises(ValueError, match="implicit must be True, False"):
        jaxqn.minimize(rosenbrock, jnp.zeros(2), (1.0,), implicit=implicit)
