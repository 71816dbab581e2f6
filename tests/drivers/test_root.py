"""Roots of systems, fixed points and batches of both: against SciPy and known solutions."""

import functools

import equations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxqn import Status, fixed_point, root, root_batch

DENSE = ("broyden", "broyden-bad", "newton")
LIMITED = ("lbroyden", "lbroyden-bad", "anderson", "newton-krylov")
each_method = pytest.mark.parametrize("method", DENSE + LIMITED)

EASY = {
    "broyden_tridiagonal": (equations.broyden_tridiagonal, -np.ones(10)),
    "discrete_integral": (equations.discrete_integral, np.linspace(0, 1, 10) ** 2 - 0.5),
}


@each_method
@pytest.mark.parametrize("name", EASY)
def test_a_classical_system_is_solved(name, method):
    fun, x0 = EASY[name]
    result = root(fun, jnp.asarray(x0), method=method)
    assert Status(int(result.status)) == Status.CONVERGED
    assert bool(result.success)
    oracle = scipy.optimize.root(jax.jit(fun), x0, tol=1e-13)
    np.testing.assert_allclose(result.x, oracle.x, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(result.fun, fun(result.x), atol=1e-13)
    assert int(result.njev) >= 1
    assert int(result.nfev) >= int(result.nit) + 1


@pytest.mark.parametrize("method", DENSE)
@pytest.mark.parametrize(
    ("fun", "x0", "solution"),
    [
        (equations.rosenbrock, [-1.2, 1.0], [1.0, 1.0]),
        (equations.powell_badly_scaled, [0.0, 1.0], [1.0981593296998e-05, 9.106146739866525]),
        (equations.helical_valley, [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        (equations.powell_singular, [3.0, -1.0, 0.0, 1.0], np.zeros(4)),
    ],
)
def test_known_roots(fun, x0, solution, method):
    """The last has a singular Jacobian at its root."""
    result = root(fun, jnp.array(x0), method=method)
    assert Status(int(result.status)) == Status.CONVERGED
    singular = fun is equations.powell_singular
    np.testing.assert_allclose(result.x, solution, rtol=1e-5, atol=1e-6 if singular else 1e-9)
    assert float(jnp.max(jnp.abs(result.fun))) <= 1e-10


def test_broyden_spends_fewer_evaluations_than_hybr():
    """MINPACK's finite differences for the first Jacobian included, ours as n evaluations."""
    x0 = -np.ones(10)
    oracle = scipy.optimize.root(jax.jit(equations.broyden_banded), x0, method="hybr")
    result = root(equations.broyden_banded, jnp.asarray(x0))
    assert bool(result.success)
    assert int(result.nfev) + 10 * int(result.njev) <= oracle.nfev + 10


@each_method
def test_float32(method):
    result = root(equations.broyden_tridiagonal, -jnp.ones(10, jnp.float32), method=method)
    assert Status(int(result.status)) == Status.CONVERGED
    assert result.x.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(result.fun))) <= 5e-5


def no_root(x):
    return jnp.stack([x[0] ** 2 + x[1] ** 2 + 1, x[0] - x[1]])


@pytest.mark.parametrize("method", ["broyden", "newton", "newton-krylov"])
def test_no_root_is_stalled(method, dtype):
    result = root(no_root, jnp.array([2.0, 1.0], dtype), method=method)
    assert Status(int(result.status)) == Status.STALLED
    assert not bool(result.success)
    np.testing.assert_allclose(result.fun, [1.0, 0.0], atol=0.05)
    assert "local minimum" in result.message


@pytest.mark.parametrize("method", ["lbroyden", "anderson"])
def test_limited_memory_does_not_take_a_stall_for_a_root(method, dtype):
    result = root(no_root, jnp.array([2.0, 1.0], dtype), method=method)
    assert Status(int(result.status)) == Status.STALLED
    assert result.x.dtype == dtype


@pytest.mark.parametrize("method", ["broyden", "newton", "newton-krylov"])
def test_a_singular_jacobian_at_the_root_is_no_obstacle_to_a_tolerance(method, dtype):
    """Without one a run at such a root may end as STALLED: F says nothing of the digits of x."""
    x0 = jnp.array([3.0, -1.0, 0.0, 1.0], dtype)
    result = root(equations.powell_singular, x0, method=method, tol=1e-5)
    assert Status(int(result.status)) == Status.CONVERGED
    assert float(jnp.max(jnp.abs(result.fun))) <= 1e-5
    np.testing.assert_allclose(result.x, np.zeros(4), atol=1e-2)


def test_limited_memory_that_misses_a_singular_root_says_so():
    x0 = jnp.array([3.0, -1.0, 0.0, 1.0])
    result = root(equations.powell_singular, x0, method="lbroyden", maxfun=300)
    small = float(jnp.max(jnp.abs(result.fun))) <= 1e-8
    assert bool(result.success) == small
    assert small or Status(int(result.status)) in (Status.STALLED, Status.MAX_FUN)


def test_a_singular_jacobian_at_the_start_is_said():
    result = root(lambda x: x**2 - 1, jnp.zeros(1))
    assert Status(int(result.status)) == Status.SINGULAR
    assert "stationary" in result.message


def test_an_unknown_without_effect_is_said():
    """The second column of the Jacobian vanishes on the way."""
    result = root(lambda x: jnp.stack([x[0] - 1, 1 + jnp.exp(-(x[1] ** 2))]), jnp.array([3.0, 1.0]))
    assert Status(int(result.status)) == Status.SINGULAR


@pytest.mark.parametrize("method", ["broyden", "newton", "lbroyden"])
def test_a_region_without_values_is_backed_off_from(method, dtype):
    """Newton's first step from 50 leaves the domain of the logarithm."""
    result = root(lambda x: jnp.log(x) + x - 2, jnp.array([50.0], dtype), method=method)
    assert Status(int(result.status)) == Status.CONVERGED
    rtol = 1e-9 if dtype == jnp.float64 else 2e-6
    np.testing.assert_allclose(result.x, 1.5571455989976, rtol=rtol)


@pytest.mark.parametrize("method", ["broyden", "lbroyden"])
def test_a_start_without_values_is_non_finite(method):
    result = root(jnp.log, jnp.array([-1.0]), method=method)
    assert Status(int(result.status)) == Status.NON_FINITE
    assert int(result.nfev) == 1


def test_units_decide_nothing():
    """F and x in other units take the same trips, and CONVERGED means the same."""

    def scaled(x):
        return 2.0**40 * equations.broyden_tridiagonal(2.0**30 * x)

    plain = root(equations.broyden_tridiagonal, -jnp.ones(10))
    other = root(scaled, -(2.0**-30) * jnp.ones(10))
    assert int(plain.nfev) == int(other.nfev)
    np.testing.assert_allclose(plain.x, 2.0**30 * other.x, rtol=1e-14)


def test_a_tolerance_is_one_of_F():
    result = root(equations.broyden_tridiagonal, -jnp.ones(10), tol=1e-2)
    assert Status(int(result.status)) == Status.CONVERGED
    assert 1e-9 < float(jnp.max(jnp.abs(result.fun))) <= 1e-2
    unreachable = root(lambda x: x**2 - 2, jnp.ones(1), tol=0.0)
    assert Status(int(unreachable.status)) in (Status.CONVERGED, Status.STALLED)


def test_pytrees_go_in_and_out():
    def fun(p, target):
        return p["a"] ** 2 - target, {"sum": jnp.sum(p["b"]) + p["b"] - 3.0}

    x0 = {"a": jnp.array(2.0), "b": jnp.ones((2, 1))}
    result = root(fun, x0, (9.0,))
    assert bool(result.success)
    np.testing.assert_allclose(result.x["a"], 3.0, rtol=1e-10)
    np.testing.assert_allclose(result.x["b"], np.ones((2, 1)), rtol=1e-10)
    assert jax.tree.structure(result.fun) == jax.tree.structure(fun(x0, 9.0))


@pytest.mark.parametrize("method", ["lbroyden", "newton-krylov"])
def test_limited_memory_takes_any_tree(method):
    def fun(p):
        return {"a": p["a"] ** 2 - 9.0, "b": (jnp.sum(p["b"][0]) + p["b"][0] - 3.0,)}

    x0 = {"a": jnp.array(2.0), "b": (jnp.zeros((2, 1)),)}
    result = root(fun, x0, method=method)
    assert bool(result.success)
    assert jax.tree.structure(result.x) == jax.tree.structure(x0)
    np.testing.assert_allclose(result.x["a"], 3.0, rtol=1e-10)
    np.testing.assert_allclose(result.x["b"][0], np.ones((2, 1)), rtol=1e-10)


def test_auxiliary_data_is_that_of_the_root():
    result = root(lambda x: (x - 3.0, {"double": 2 * x}), jnp.zeros(2), has_aux=True)
    np.testing.assert_allclose(result.aux["double"], [6.0, 6.0])


def test_jit_and_vmap_give_the_same():
    starts = jnp.array([[2.0, 1.0], [-3.0, 0.5], [4.0, -1.0]])

    def fun(x):
        return jnp.stack([x[0] ** 2 + x[1] ** 2 - 1.0, x[0] - x[1]])

    solve = functools.partial(root, fun)
    together = jax.jit(jax.vmap(lambda x0: solve(x0)))(starts)
    for i, x0 in enumerate(starts):
        alone = solve(x0)
        np.testing.assert_allclose(together.x[i], alone.x, rtol=1e-9)
        assert int(together.nfev[i]) == int(alone.nfev)
        assert int(together.njev[i]) == int(alone.njev)


def kepler(E, M, e):
    return E - e * jnp.sin(E) - M


@pytest.mark.parametrize("method", ["broyden", "lbroyden"])
def test_lanes_give_what_root_gives(method):
    M = jnp.linspace(0.1, 3.0, 7)[:, None]
    result = root_batch(kepler, M, (M, 0.7), in_axes=(0, 0, None), lanes=3, method=method)
    assert bool(result.success.all())
    for i in (0, 6):
        alone = root(kepler, M[i], (M[i], 0.7), method=method)
        np.testing.assert_allclose(result.x[i], alone.x, rtol=1e-9)
        assert int(result.nfev[i]) == int(alone.nfev)
        assert int(result.njev[i]) == int(alone.njev)
    np.testing.assert_allclose(result.fun, kepler(result.x, M, 0.7), atol=1e-12)


def test_a_run_is_continued_where_it_stopped():
    whole = root(equations.rosenbrock, jnp.array([-1.2, 1.0]))
    part = root(equations.rosenbrock, jnp.array([-1.2, 1.0]), maxfun=7)
    assert Status(int(part.status)) == Status.MAX_FUN
    rest = root(equations.rosenbrock, part.x, state=part.state)
    np.testing.assert_array_equal(rest.x, whole.x)
    assert int(rest.nfev) == int(whole.nfev)


def test_a_callback_sees_every_step(capfd):
    seen = []
    result = root(
        equations.broyden_tridiagonal, -jnp.ones(10), callback=lambda r: seen.append(int(r.nit))
    )
    assert seen == list(range(1, int(result.nit) + 1))
    root(equations.broyden_tridiagonal, -jnp.ones(10), progress=True)
    assert "max|F|" in capfd.readouterr().err


def test_a_given_jacobian_is_not_evaluated():
    A = np.array([[3.0, 1.0], [1.0, 2.0]])
    result = root(lambda x: jnp.asarray(A) @ x - 1.0, jnp.zeros(2), jac0=A)
    assert bool(result.success)
    assert int(result.njev) == 0
    np.testing.assert_allclose(result.x, np.linalg.solve(A, np.ones(2)), rtol=1e-12)


def test_functions_with_derivatives_backwards_only():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
    for method in ("broyden", "lbroyden", "newton-krylov"):
        result = root(lambda x: cube(x) - 8.0, jnp.array([1.5, 3.0]), method=method)
        np.testing.assert_allclose(result.x, [2.0, 2.0], rtol=1e-9)


def contraction(x, A, b):
    return jnp.tanh(A @ x) + b


@pytest.mark.parametrize("method", ["anderson", "lbroyden", "lbroyden-bad"])
def test_a_fixed_point_takes_fewer_evaluations_than_the_plain_iteration(rng, method):
    A, b = rng.normal(size=(20, 20)), rng.normal(size=20)
    A *= 0.95 / np.linalg.norm(A, 2)
    result = fixed_point(contraction, jnp.zeros(20), (A, b), method=method)
    assert Status(int(result.status)) == Status.CONVERGED
    x, plain = np.zeros(20), 0
    while np.max(np.abs(np.tanh(A @ x) + b - x)) > 1e-11:
        x, plain = np.tanh(A @ x) + b, plain + 1
    np.testing.assert_allclose(result.x, x, atol=1e-9)
    assert int(result.nfev) < plain
    np.testing.assert_allclose(result.fun, contraction(result.x, A, b) - result.x, atol=1e-14)


def test_the_first_step_of_a_fixed_point_is_the_plain_iteration():
    result = fixed_point(jnp.cos, jnp.ones(1), maxiter=1)
    np.testing.assert_allclose(result.x, np.cos(1.0))


def test_eager_calls_compile_once():
    count = []

    def fun(x, target):
        count.append(1)
        return x**3 - target

    root(fun, jnp.ones(2), (jnp.array(2.0),))
    traced = len(count)
    root(fun, 2 * jnp.ones(2), (jnp.array(5.0),), tol=1e-9)
    root(fun, jnp.ones(2), (jnp.array(3.0),), maxfun=50, tol=1e-3)
    assert len(count) == traced


def test_no_tracer_leaks():
    with jax.checking_leaks():
        jax.jit(lambda x0: root(equations.broyden_tridiagonal, x0).x)(-jnp.ones(3))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "bfgs"}, ValueError, "unknown method 'bfgs'.*lbroyden"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"jac0": jnp.eye(3)}, ValueError, r"jac0 must be a matrix of shape \(2, 2\)"),
        ({"jac0": jnp.eye(2), "method": "newton"}, ValueError, "jac0 starts a Broyden method"),
        ({"jac0": 0.0, "method": "lbroyden"}, ValueError, "must not be 0"),
        ({"memory": 0, "method": "lbroyden"}, ValueError, "memory"),
        ({"callback": 3}, TypeError, "callback"),
    ],
)
def test_errors_say_what_was_wrong(options, error, match):
    with pytest.raises(error, match=match):
        root(lambda x: x - 1, jnp.zeros(2), **options)


def test_errors_of_equations():
    with pytest.raises(ValueError, match=r"returns 1 for 2.*least_squares"):
        root(lambda x: x[:1], jnp.zeros(2))
    with pytest.raises(ValueError, match="F like x"):
        root(lambda x: (x[0], x[1]), jnp.zeros(2), method="lbroyden")
    with pytest.raises(TypeError, match="real floating"):
        root(lambda x: x > 0, jnp.zeros(2))
    with pytest.raises(TypeError, match="root_batch has no argument 'gtol'"):
        root_batch(lambda x: x, jnp.zeros((3, 2)), gtol=1e-3)


def test_a_result_says_what_it_is():
    result = root(lambda x: x - 1, jnp.zeros(2))
    assert repr(result).startswith("RootResult(status=CONVERGED, nit=")
    assert "within tol" in result.message


def circle(x, radius, slope):
    return {"circle": x["u"] ** 2 + x["v"] ** 2 - radius**2, "line": x["v"] - slope * x["u"]}


def on_the_circle(radius, slope):
    u = radius / jnp.sqrt(1 + slope**2)
    return {"u": u, "v": slope * u}


CORNER = {"u": jnp.array(1.0), "v": jnp.array(0.5)}


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev], ids=["jvp", "vjp"])
def test_derivatives(mode):
    """Against the closed form, also of second order, of the batch, and by what F closes over."""

    def alone(radius, slope):
        return root(circle, CORNER, (radius, slope)).x

    def closed_over(radius, slope):
        return root(lambda x: circle(x, radius, slope), CORNER, method="newton").x

    def in_lanes(radius, slope):
        found = root_batch(circle, CORNER, (radius[None], slope), in_axes=(None, 0, None))
        return jax.tree.map(lambda leaf: leaf[0], found.x)

    at = (jnp.array(2.0), jnp.array(0.7))
    for solve in (alone, closed_over, in_lanes):
        found, exact = mode(solve, (0, 1))(*at), mode(on_the_circle, (0, 1))(*at)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10)
    second = mode(jax.grad(lambda r, s: alone(r, s)["u"], 1), 1)(*at)
    expected = mode(jax.grad(lambda r, s: on_the_circle(r, s)["u"], 1), 1)(*at)
    np.testing.assert_allclose(second, expected, rtol=1e-9)


def test_derivatives_by_gmres():
    """Of a fixed point of 300 unknowns with limited memory: x = (I − A)⁻¹ b."""
    n = 300
    A = 0.5 * np.eye(n, k=1) - 0.3 * np.eye(n, k=-1)
    seed, b = np.cos(np.arange(n)), jnp.ones(n)
    solve = lambda b: fixed_point(lambda x, b: jnp.asarray(A) @ x + b, jnp.zeros(n), (b,)).x  # noqa: E731
    _, pull_back = jax.vjp(solve, b)
    exact = np.linalg.solve((np.eye(n) - A).T, seed)
    np.testing.assert_allclose(pull_back(jnp.asarray(seed))[0], exact, rtol=1e-8, atol=1e-9)


def test_no_root_has_no_derivative():
    """NaN where there is no solution, 0 where the result counts as a constant."""
    solve = lambda t, **option: root(lambda x, t: x**2 + t, 1.0, (t,), **option).x  # noqa: E731
    assert np.isnan(jax.grad(solve)(1.0))
    assert jax.grad(lambda t: solve(t, implicit=False))(-2.0) == 0
