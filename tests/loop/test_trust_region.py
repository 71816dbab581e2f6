"""Trust regions for any function: the subproblem, "sr1" and "lsr1" on functions of all kinds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import classical
from programs import count, marked

import jaxqn
from jaxqn import Status, minimize, minimize_batch
from jaxqn.formulas import spectral_step, trust_region_step
from tests.problems import rosenbrock

SEEDS = range(6)


def exact(B, g, radius):
    """The minimum within the radius from the eigenvalues of B, by bisection; also its value."""
    values, Q = np.linalg.eigh(B)
    a, low = Q.T @ g, max(0.0, -values[0])

    def at(mu):
        d = values + mu
        return -a / np.where(np.abs(d) < 1e-13 * np.abs(values).max(), np.inf, d)

    if values[0] > 0 and np.linalg.norm(at(0.0)) <= radius:
        c = at(0.0)
    elif np.linalg.norm(at(low)) < radius and np.abs(a[0]) < 1e-12:
        c = at(low)
        c[0] += np.sqrt(radius**2 - c @ c)
    else:
        lo, hi = low, low + np.linalg.norm(g) / radius
        for _ in range(200):
            middle = 0.5 * (lo + hi)
            lo, hi = (middle, hi) if np.linalg.norm(at(middle)) > radius else (lo, middle)
        c = at(hi)
    return Q @ c, a @ c + 0.5 * values @ c**2


def symmetric(seed, n, shift=0.0):
    A = np.random.default_rng(seed).normal(size=(n, n))
    return A + A.T + shift * np.eye(n)


def value(B, g, p):
    return g @ p + 0.5 * p @ B @ p


def saddle(n=6):
    """An indefinite B and a g without any part along its lowest eigenvector."""
    B, g = symmetric(3, n), np.random.default_rng(4).normal(size=n)
    v = np.linalg.eigh(B)[1][:, 0]
    return B, g - (v @ g) * v


@functools.partial(jax.jit, static_argnames="iterations")
def by_factors(B, g, radius, iterations=30):
    return trust_region_step(B, g, radius, hard=True, iterations=iterations)


in_spectrum = jax.jit(spectral_step)


@pytest.mark.parametrize("radius", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_subproblem_is_solved(seed, radius):
    B, g = symmetric(seed, 6, 7.0 * (seed % 2)), np.random.default_rng(seed).normal(size=6)
    p, least = exact(B, g, radius)
    values, Q = np.linalg.eigh(B)
    step = in_spectrum(values, Q.T @ g, jnp.array(radius))
    np.testing.assert_allclose(Q @ step.c, p, rtol=1e-9, atol=1e-11 * radius)
    near = by_factors(jnp.array(B), jnp.array(g), jnp.array(radius))
    assert float(jnp.linalg.norm(near.p)) <= 1.1 * radius * (1 + 1e-12)
    assert value(B, g, near.p) <= 0.8 * least


@pytest.mark.parametrize("radius", [3.0, 50.0])
def test_the_hard_case(radius):
    B, g = saddle()
    p, least = exact(B, g, radius)
    values, Q = np.linalg.eigh(B)
    step = in_spectrum(values, Q.T @ g, jnp.array(radius))
    assert float(step.mu) == pytest.approx(-values[0], rel=1e-12)
    assert float(jnp.linalg.norm(step.c)) == pytest.approx(radius, rel=1e-12)
    assert value(B, g, Q @ step.c) == pytest.approx(least, rel=1e-12)
    near = by_factors(jnp.array(B), jnp.array(g), jnp.array(radius))
    assert value(B, g, near.p) <= 0.8 * least
    del p


def test_no_gradient_at_all():
    """Along the lowest eigenvector as far as the radius; nowhere where nothing is negative."""
    B, radius = symmetric(3, 6), 2.0
    lowest = np.linalg.eigvalsh(B)[0]
    near = by_factors(jnp.array(B), jnp.zeros(6), jnp.array(radius))
    assert value(B, np.zeros(6), near.p) <= 0.8 * 0.5 * lowest * radius**2
    diagonal = jnp.diag(jnp.array([2.0, -2.0, 1.0]))
    near = by_factors(diagonal, jnp.zeros(3), jnp.array(radius))
    assert value(diagonal, np.zeros(3), near.p) <= -0.8 * radius**2
    values = jnp.array([0.0, 1.0, 2.0])
    np.testing.assert_array_equal(in_spectrum(values, jnp.zeros(3), jnp.array(radius)).c, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiny_and_huge_units(dtype):
    """Multiplying a model by a power of two changes no step."""
    values, a = np.array([-2.0, 1.0, 30.0], dtype), np.array([1.0, -2.0, 0.5], dtype)
    plain = in_spectrum(values, a, jnp.array(0.7, dtype)).c
    for power in (2.0**-40, 2.0**40):
        scaled = in_spectrum(dtype(power) * values, dtype(power) * a, jnp.array(0.7, dtype)).c
        np.testing.assert_array_equal(scaled, plain)


# The models


@pytest.fixture(scope="module")
def pairs():
    """Pairs of an indefinite quadratic."""
    S = np.random.default_rng(0).normal(size=(9, 8))
    return symmetric(1, 8), S


def recursion(gamma, pairs):
    B = gamma * np.eye(len(pairs[0][0]))
    for s, y in pairs:
        v = y - B @ s
        B += np.outer(v, v) / (v @ s)
    return B


def test_a_dense_model_is_the_recursion(pairs):
    A, S = pairs
    qn = jaxqn.sr1_trust_region()
    state = qn.init(jnp.zeros(8))
    for s in S:
        state = qn.update(state, jnp.array(s), jnp.array(A @ s))
    np.testing.assert_allclose(state.B, A, atol=1e-9)
    same = qn.update(state, jnp.zeros(8), jnp.zeros(8))
    jax.tree.map(np.testing.assert_array_equal, same, state)


@pytest.mark.parametrize("radius", [0.3, 30.0])
def test_the_compact_form_is_the_recursion(pairs, radius):
    """Its step, its promise and its inverse are those of the matrix of the newest pairs."""
    A, S = pairs
    qn = jaxqn.lsr1_trust_region(5)
    state = qn.init(jnp.zeros(8))
    for s in S:
        state = qn.update(state, jnp.array(s), jnp.array(A @ s))
    newest = [(s, A @ s) for s in S[-5:]]
    gamma = max(2 * (y @ y) / (s @ y) for s, y in newest if s @ y > 0)
    B, g = recursion(gamma, newest), np.random.default_rng(5).normal(size=8)
    assert np.linalg.eigvalsh(B)[0] < 0
    step = qn.model.step(state, jnp.array(g), jnp.array(radius), jnp.array(0.0))
    p, least = exact(B, g, radius)
    np.testing.assert_allclose(step.p, p, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(step.promised, -least, rtol=1e-9)
    np.testing.assert_allclose(B @ qn.apply(state, jnp.array(g)), g, atol=1e-8)
    same = qn.update(state, jnp.zeros(8), jnp.zeros(8))
    jax.tree.map(np.testing.assert_array_equal, same, state)


# Runs


def quadratic(x, A, b):
    return 0.5 * x @ A @ x - b @ x


def test_a_quadratic_takes_n_independent_steps():
    """Then B is the Hessian, and the next step ends at the minimum (N&W, theorem 6.1)."""
    n = 7
    A = symmetric(2, n)
    A = A @ A + np.eye(n)
    b = np.arange(1.0, n + 1)
    result = minimize(quadratic, jnp.zeros(n), (A, b), method="sr1")
    assert int(result.status) == Status.CONVERGED
    B = result.state.approx.B * result.state.g_scale
    np.testing.assert_allclose(B, A, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.x, np.linalg.solve(A, b), rtol=1e-8)
    assert int(result.nfev) <= 3 * n


def wells(x):
    return jnp.sum((x**2 - 1) ** 2) + 0.1 * jnp.sum(x[1:] * x[:-1])


def valley(x):
    """A maximum at 0 and saddle points on the axes."""
    return jnp.sum(jnp.cos(x)) + 0.05 * jnp.sum(x**2)


@pytest.mark.parametrize("method", ["sr1", "lsr1"])
@pytest.mark.parametrize("fun", [wells, valley])
def test_ends_at_minima(fun, method):
    """Where the Hessian is positive definite, from starts where it is not."""
    starts = 0.3 * jnp.array(np.random.default_rng(1).normal(size=(6, 4)))
    result = minimize_batch(fun, starts, method=method)
    assert np.all(result.status == Status.CONVERGED)
    lowest = np.linalg.eigvalsh(jax.vmap(jax.hessian(fun))(result.x))[:, 0]
    assert np.all(lowest > 0)


@pytest.mark.parametrize("method", ["sr1", "lsr1"])
def test_a_saddle_that_curvature_shows_is_left(method):
    """The run passes the saddle at 0 at a distance that leaves a gradient of 1e-8."""

    def fun(x):
        return 0.5 * x[0] ** 2 - 0.5 * x[1] ** 2 + 0.25 * x[1] ** 4

    result = minimize(fun, jnp.array([1.0, 1e-8]), method=method)
    assert int(result.status) == Status.CONVERGED
    np.testing.assert_allclose(np.abs(result.x), [0, 1], atol=1e-6)


@pytest.mark.parametrize("method", ["sr1", "lsr1"])
def test_a_batch_is_its_singles(method):
    starts = jnp.array(np.random.default_rng(2).normal(size=(5, 3)))
    together = minimize_batch(rosenbrock, starts, method=method)
    for i, x0 in enumerate(starts):
        alone = minimize(rosenbrock, x0, method=method)
        assert int(together.status[i]) == int(alone.status) == Status.CONVERGED
        np.testing.assert_allclose(together.x[i], alone.x, atol=1e-7)
        assert abs(int(together.nfev[i]) - int(alone.nfev)) <= 0.1 * int(alone.nfev)


@pytest.mark.parametrize("method", ["sr1", "lsr1"])
def test_float32_ends_by_itself(method):
    x0 = jnp.array([-1.2, 1.0, -1.2, 1.0], jnp.float32)
    result = minimize(rosenbrock, x0, method=method)
    assert result.x.dtype == jnp.float32
    assert int(result.status) == Status.CONVERGED
    np.testing.assert_allclose(result.x, 1, atol=1e-3)


def test_pairs_that_refuse_all_others_give_way():
    """In float32 rounding of ten pairs in three dimensions would hide every other for ever."""
    starts = jnp.array(np.random.default_rng(3).normal(size=(40, 3)), jnp.float32)
    result = minimize_batch(rosenbrock, starts, method="lsr1", lanes=40)
    assert np.all(np.asarray(result.fun) < 1e-5)
    assert np.max(result.nfev) < 400


@pytest.mark.parametrize("method", ["sr1", "lsr1"])
def test_a_run_goes_on_where_it_stopped(method):
    x0 = jnp.array([-1.2, 1.0, 0.5])
    whole = minimize(rosenbrock, x0, method=method)
    part = minimize(rosenbrock, x0, method=method, maxfun=9)
    rest = minimize(rosenbrock, x0, method=method, state=part.state)
    jax.tree.map(np.testing.assert_array_equal, rest, whole)


def test_statuses():
    """Functions without a minimum, with a wrong gradient, and out of their domain at the start."""
    x0 = jnp.array([1.0, 2.0])
    falling = minimize(lambda x: -jnp.sum(x), x0, method="sr1")
    assert int(falling.status) == Status.UNBOUNDED

    @jax.custom_jvp
    def wrong(x):
        return jnp.sum(x**2)

    wrong.defjvp(lambda x, v: (wrong(*x), -2 * x[0] @ v[0]))
    assert int(minimize(wrong, x0, method="sr1").status) == Status.LINE_SEARCH_FAILED
    nowhere = minimize(lambda x: jnp.log(jnp.sum(x)), -x0, method="sr1")
    assert int(nowhere.status) == Status.NON_FINITE
    edge = minimize(lambda x: jnp.sum(x - jnp.log(x)), 0.01 * x0, method="sr1")
    assert int(edge.status) == Status.CONVERGED
    np.testing.assert_allclose(edge.x, 1, rtol=1e-6)


def cancelling(x, size):
    """Rosenbrock's function with the rounding of ``size``: values are flat where slopes are not."""
    return (1 + rosenbrock(x) + size) - size


@pytest.mark.parametrize("size", [1e3, 1e4])
@pytest.mark.parametrize("method", ["sr1", "lsr1"])
def test_values_that_noise_hides(method, size, dtype):
    """Slopes then decide. A run along values alone finds no decrease at gradients of 1e-5."""
    starts = jnp.array(np.random.default_rng(3).normal(size=(40, 2)), dtype)
    result = minimize_batch(
        cancelling, starts, (dtype(size),), in_axes=(0, None), method=method, lanes=40
    )
    ends = np.asarray(result.status)
    assert np.all((ends == Status.CONVERGED) | (ends == Status.STALLED))
    at_minimum = np.max(np.abs(result.x - 1), axis=1) < (1e-2 if dtype == jnp.float32 else 1e-6)
    assert np.mean(at_minimum) >= 0.9


def test_noise_beyond_the_rounding_of_f():
    """In float32 the terms of this sum are 1e4 times its value: the run measures what they hide."""
    x0, numbers, _ = classical.starts((1.0, 10.0, 100.0), 2)
    names = np.array([function.name for function in classical.FUNCTIONS])[numbers]
    starts = jnp.array(x0[names == "trigonometric"], jnp.float32)
    number = jnp.array(numbers[names == "trigonometric"])
    result = minimize_batch(classical.numbered, starts, (number,), method="sr1")
    ends = np.asarray(result.status)[np.asarray(result.fun) > 1e-6]  # at 0 noise is all there is
    assert len(ends) > 0
    assert np.all((ends == Status.CONVERGED) | (ends == Status.STALLED))
    assert np.all(result.fun < 3e-4)


# Newton's method


@pytest.mark.parametrize("x0", [[0.0, 0.0], [1.0, 0.0], [1.0, 1e-3], [3.0, 0.1]])
def test_newton_leaves_a_saddle(x0, dtype):
    """Along negative curvature, also without any gradient that shows the way."""

    def fun(x):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4

    result = minimize(fun, jnp.array(x0, dtype), method=jaxqn.newton_trust_region())
    assert int(result.status) == Status.CONVERGED
    np.testing.assert_allclose(np.abs(result.x), [0, np.sqrt(0.5)], atol=1e-3)
    approx = result.state.approx
    assert int(approx.absorbed) == int(result.nit) + 1  # one Hessian at x0, and one per step
    assert int(result.nfev) <= 15


def test_newton_ends_at_minima():
    """Where the Hessian is positive definite; its last digits come in a step or two."""
    starts = 0.3 * jnp.array(np.random.default_rng(1).normal(size=(6, 4)))
    for fun in (wells, valley):
        result = minimize_batch(fun, starts, method=jaxqn.newton_trust_region())
        assert np.all(result.status == Status.CONVERGED)
        lowest = np.linalg.eigvalsh(jax.vmap(jax.hessian(fun))(result.x))[:, 0]
        assert np.all(lowest > 0)
        assert np.max(result.nfev) <= 25


def test_newton_has_one_more_site_and_no_bounds():
    method = jaxqn.newton_trust_region(0.05)
    trace = jax.make_jaxpr(functools.partial(minimize, marked(rosenbrock), method=method))
    hessian = jax.make_jaxpr(jax.hessian(marked(rosenbrock)))(jnp.zeros(2)).jaxpr
    assert count(trace(jnp.zeros(2)).jaxpr, "marker") == 1 + count(hessian, "marker")
    x0 = jnp.array([-1.2, 1.0])
    first = minimize(rosenbrock, x0, method=method, maxfun=2)
    assert float(jnp.linalg.norm(first.x - x0)) <= 0.05 * 1.1
    part = minimize(rosenbrock, x0, method=method, maxfun=9)
    rest = minimize(rosenbrock, x0, method=method, state=part.state)
    jax.tree.map(np.testing.assert_array_equal, rest, minimize(rosenbrock, x0, method=method))
    with pytest.raises(TypeError, match="takes no bounds"):
        minimize(rosenbrock, x0, method=method, bounds=(0.0, 1.0))

    def kink(x):
        return jnp.sum(jnp.abs(x) ** 1.5) + x[0] + 2 * x[1]

    ends = minimize(kink, jnp.zeros(2), method=jaxqn.newton_trust_region())
    np.testing.assert_allclose(ends.x, [-4 / 9, -16 / 9], rtol=1e-5)


def test_the_first_radius():
    x0 = jnp.array([-1.2, 1.0])
    result = minimize(rosenbrock, x0, method=jaxqn.sr1_trust_region(0.05), maxfun=2)
    assert float(jnp.linalg.norm(result.x - x0)) == pytest.approx(0.05)


def test_forms_for_a_line_are_reachable():
    """With bounds, with a line search, and for L-SR1 with a diagonal to start from."""
    x0, line = jnp.array([-1.2, 1.0]), jaxqn.dense(jaxqn.rules.sr1_rule, scale_init=0.5)
    for options in ({"bounds": (-2.0, 0.5)}, {"linesearch": jaxqn.wolfe()}):
        named, value = (minimize(rosenbrock, x0, method=m, **options) for m in ("sr1", line))
        jax.tree.map(np.testing.assert_array_equal, named, value)
    named = minimize(rosenbrock, x0, method="lsr1", hess_inv0=jnp.array([1.0, 2.0]))
    assert named.state.approx.start is not None
    with pytest.raises(TypeError, match="takes no bounds"):
        minimize(rosenbrock, x0, method=jaxqn.sr1_trust_region(), bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="takes no linesearch"):
        minimize(rosenbrock, x0, method=jaxqn.sr1_trust_region(), linesearch=jaxqn.wolfe())
    with pytest.raises(ValueError, match="no hess_inv0"):
        minimize(rosenbrock, x0, method=jaxqn.lsr1_trust_region(), hess_inv0=jnp.ones(2))
    optimizer = jaxqn.scale_by_quasi_newton(jaxqn.sr1_trust_region())
    state = optimizer.init(x0)
    with pytest.raises(TypeError, match="trust region"):
        optimizer.update(x0, state, x0)


def test_readers_of_curvature():
    """In the units of x: the inverse Hessian, its products, and the pairs."""
    A = np.diag([1.0, 4.0, 100.0]) + 0.3
    b, v = np.ones(3), jnp.array([1.0, 2.0, 3.0])
    dense = minimize(quadratic, jnp.array([5.0, 1.0, 0.1]), (A, b), method="sr1", x_scale=v)
    np.testing.assert_allclose(dense.hess_inv, np.linalg.inv(A), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dense.hess_inv_product(v), np.linalg.solve(A, v), rtol=1e-5)
    limited = minimize(quadratic, jnp.array([5.0, 1.0, 0.1]), (A, b), method="lsr1", x_scale=v)
    S, Y, valid = limited.pairs
    np.testing.assert_allclose(Y[valid], S[valid] @ A, rtol=1e-4, atol=1e-7)
    s, y = S[-1], Y[-1]
    np.testing.assert_allclose(limited.hess_inv_product(y), s, rtol=1e-3, atol=1e-8)
    given = minimize(
        quadratic, jnp.zeros(3), (A, b), method="sr1", hess_inv0=np.linalg.inv(A), maxfun=30
    )
    assert int(given.nfev) <= 6


def test_pytrees_and_derivatives():
    def fun(x, a):
        return (x["u"] - a) ** 2 + jnp.sum((x["v"] - a * x["u"]) ** 4) + jnp.sum((x["v"] - a) ** 2)

    def solution(a):
        return minimize(fun, {"u": jnp.zeros(()), "v": jnp.zeros(2)}, (a,), method="lsr1").x["u"]

    a, h = 1.3, 1e-4
    slope = jax.grad(solution)(a)
    np.testing.assert_allclose(slope, (solution(a + h) - solution(a - h)) / (2 * h), rtol=1e-4)
