"""What a run says of its end is true: CONVERGED at minima, failure where something failed.

The inputs are those of users that went wrong, each an instance of a kind.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import classical

import jaxqn
from jaxqn import Status, minimize, minimize_batch
from jaxqn.loop.units import units_of_zeros

POOR = 0.1  # in chi-squared


def status(result):
    return Status(int(result.status))


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


# Far starts: the first gradient says nothing


@pytest.mark.parametrize("method", ["osbfgs", "bfgs", "lbfgs", "newton"])
def test_a_far_start_makes_no_test_vacuous(method, dtype):
    """From 1e4 in float32 the valley is below rounding, and a run may stop there; not CONVERGED."""
    starts = [[100.0, 100.0], [50.0, 1.0], [1e4, 1e4], [-1.2e4, 1e4], [1.0, -1e3]]
    result = minimize_batch(rosenbrock, jnp.asarray(starts, dtype), method=method)
    believed = np.asarray(result.status) == Status.CONVERGED
    assert np.all(np.asarray(result.fun)[believed] < 1e-6)
    assert set(result.status.tolist()) <= {Status.CONVERGED, Status.STALLED, Status.MAX_ITER}
    if method == "osbfgs":
        assert believed[:2].all()


def test_what_a_run_knows_of_the_curvature():
    """Trial by trial: the bound of each pair, and how earlier ones fade."""
    value_and_grad = jax.jit(jax.value_and_grad(rosenbrock))
    small, state, faded = np.finfo(float).eps, None, 0
    for count in range(1, 30):
        before = state
        state = minimize(
            rosenbrock,
            jnp.array([-30.0, 5.0]),
            maxfun=count,
            **({"x_scale": 1.0} if before is None else {"state": before}),
        ).state
        if before is None or state.g_scale != before.g_scale:
            continue
        x, root, scale = before.point.x, before.scales.curvature, float(before.g_scale)
        trial = x - before.search.alpha * before.plan
        f, g = value_and_grad(trial)
        s, g0, g = trial - x, before.point.g, g / scale
        first, last, moved = float(s @ g0), float(s @ g), int(state.nit) > int(before.nit)
        sy, shows = last - first, last - first > 100 * small * max(abs(first), abs(last))
        error = abs(float(f - before.point.f) - 0.5 * scale * (first + last))
        bend = 12 * max(error - 10 * small * abs(float(before.point.f)), 0) / (scale * sy)
        share = jnp.max(root * jnp.abs(s) / (root * jnp.abs(trial) + 1e-3 * before.measures.extent))
        expected = root
        if shows and (moved or bend < 1):
            fade = 0.77 / (1 + bend) / (1 + share) if moved else 1.0
            bound = jnp.abs(g - g0) / np.sqrt(sy)
            expected = jnp.maximum(fade * root, bound)
            faded += bool(moved and share > 0.1 and jnp.any(fade * root > bound))
        np.testing.assert_allclose(state.scales.curvature, expected, rtol=1e-6)
    assert faded > 0


FAR = {"beale": 1e-3, "kowalik osborne": 1.9e-3, "rosenbrock 6": 4.1}
"""Functions, and the highest of their minima and infima along valleys."""


def test_curvature_met_elsewhere_fades(dtype):
    """Beside that of a far start a gradient would be at its noise in every valley on the way."""
    x0, numbers, scales = classical.starts((10.0, 100.0, 1e3), 2)
    names = np.array([function.name for function in classical.FUNCTIONS])[numbers]
    # Farther out Beale's function ends in a valley without an end.
    chosen = np.isin(names, list(FAR)) & ~((names == "beale") & (scales > 100))
    result = minimize_batch(classical.numbered, jnp.asarray(x0[chosen], dtype), (numbers[chosen],))
    highest = np.array([FAR[name] for name in names[chosen]])
    believed = np.asarray(result.success)
    assert np.mean(believed) > 0.5
    assert np.all(np.asarray(result.fun)[believed] <= highest[believed])


# Fits


def decays(count, dtype, seed=0):
    """Noisy decays A exp(−k t) + c, some hardly bent: flat valleys in A, k and c."""
    draws = np.random.default_rng(seed)
    t = np.linspace(0, 10, 60)
    A, k, c = draws.uniform(50, 500, count), 10 ** draws.uniform(-1.5, 0.3, count), 5.0
    noise = 2 * draws.normal(size=(count, len(t)))
    y = A[:, None] * np.exp(-k[:, None] * t) + c + noise
    return t.astype(dtype), y.astype(np.float32).astype(dtype)


def misfit(p, t, y):
    return jnp.sum((p[0] * jnp.exp(-p[1] * t) + p[2] - y) ** 2)


def softplus_misfit(u, t, y):
    return misfit([jax.nn.softplus(u[0]), jax.nn.softplus(u[1]), u[2]], t, y)


def fits(fun, start, count, dtype, **options):
    t, y = decays(count, dtype)
    run = functools.partial(minimize_batch, fun, in_axes=(None, None, 0), **options)
    return jax.jit(run)(jnp.asarray(start, dtype), (t, y))


def test_a_fit_that_says_converged_is_good_for_statistics():
    """Float32 fits beside float64 ones of the same data."""
    count = 500
    exact = fits(misfit, [200.0, 0.3, 5.0], count, np.float64)
    assert np.mean(exact.success) > 0.999
    result = fits(misfit, [200.0, 0.3, 5.0], count, np.float32)
    t, y = decays(count, np.float64)
    value = jax.vmap(misfit, (0, None, 0))(np.asarray(result.x, np.float64), t, y)
    above = (value - exact.fun) / 4
    said = np.asarray(result.success)
    assert np.max(above[said]) < POOR
    assert np.mean(~said & (above < POOR)) <= 0.02
    assert np.mean(result.nfev) < 30


def test_no_step_carries_a_parameter_to_a_plateau(dtype):
    """Softplus of free parameters: the sizes of the start say how far a step may go."""
    start = [200.0, float(np.log(np.expm1(0.3))), 5.0]
    result = fits(softplus_misfit, start, 500, dtype)
    assert np.max(result.fun) < 480  # twice the expected value


def test_noise_of_the_objective_is_measured():
    """Float32 sums of large squares: values contradict slopes, and the run follows slopes."""
    t, y = decays(200, np.float32)
    noise = jax.jit(
        jax.vmap(lambda y: minimize(misfit, jnp.array([200, 0.3, 5], jnp.float32), (t, y)))
    )(y).state.measures.noise
    digits = np.asarray(noise) / (np.finfo(np.float32).eps * 240)
    assert np.sum(digits > 10) >= 5
    assert np.max(digits) < 200


# Newton's method


def scarp(v):
    x, y = v
    return -0.138 * jnp.log(x) + 143.4 * x**2 + 23.9 * x * y - 291.9 * x + y**2 - 24.4 * y


def test_newton_takes_as_many_steps_in_float32(dtype):
    """Eigenvalues four decades apart are no rounding, in units of the diagonal."""
    b, c = 2 * (143.4 - 23.9**2 / 4), -291.9 + 23.9 * 24.4 / 2
    x = (-c + np.sqrt(c**2 + 4 * b * 0.138)) / (2 * b)
    for start in ([100.0, -3.0], [1.0, 0.0]):
        result = minimize(scarp, jnp.asarray(start, dtype), method="newton")
        assert status(result) == Status.CONVERGED
        assert int(result.nfev) <= 12
        single = dtype == np.float32  # a change of x by 0.6 % is one of the last digit of f
        np.testing.assert_allclose(result.x[0], x, rtol=1e-2 if single else 1e-9)


def stationary(x, kind):
    """Functions with a slope of zero where they have no minimum."""
    functions = [
        lambda x: jnp.sum(jnp.cos(x)),
        lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4,
        lambda x: 1e6 * (x[0] * x[1] + x[0] ** 4 + x[1] ** 4),
    ]
    return jax.lax.switch(kind, functions, x)


@pytest.mark.parametrize(
    ("kind", "value"), [(0, -2.0), (1, -0.25), (2, -1.25e5)], ids=["maximum", "saddle", "crossed"]
)
def test_newton_leaves_saddles_and_maxima(kind, value, dtype):
    """Others believe a stationary start: they know gradients only."""
    x0 = jnp.zeros(2, dtype)
    result = minimize(stationary, x0, (kind,), method="newton")
    assert status(result) == Status.CONVERGED
    np.testing.assert_allclose(result.fun, value, rtol=1e-5)
    assert int(minimize(stationary, x0, (kind,)).nfev) == 1


# Units


def peak(p, t, y):
    return jnp.sum((p[0] * jnp.exp(-0.5 * ((t - p[1]) / p[2]) ** 2) - y) ** 2)


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs"])
@pytest.mark.parametrize("amplitude", [1e-16, 0.0, 3e-15])
def test_units_of_small_parameters(amplitude, method, dtype):
    """Beside a mean of 1.3, an amplitude of 1e-16 is no rounded zero; nor is 0 of size 1."""
    t, truth = np.linspace(1, 2, 100), np.array([1.2e-15, 1.4, 0.11])
    y = truth[0] * np.exp(-0.5 * ((t - truth[1]) / truth[2]) ** 2)
    data = t.astype(dtype), y.astype(dtype)
    result = minimize(peak, jnp.asarray([amplitude, 1.3, 0.2], dtype), data, method=method)
    assert status(result) == Status.CONVERGED
    np.testing.assert_allclose(np.abs(result.x), truth, rtol=1e-3)


def test_units_of_zeros(dtype):
    z, g = jnp.asarray([0, 0, 1, 6e-17, 0], dtype), jnp.asarray([1e12, 1, 1e12, 1, 0], dtype)
    units = units_of_zeros(z, jnp.asarray(1.0, dtype), g)
    np.testing.assert_array_equal(units, [2.0**-40, 1, 1, 1, 1])


# Ends without a minimum, and at one


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs"])
def test_a_kink_where_the_value_is_zero_ends(method, dtype):
    """Digits of f never end there; what is left is nothing on the scale of the start."""
    result = minimize(jnp.linalg.norm, jnp.asarray([20.0, 20.0], dtype), method=method)
    assert int(result.nfev) < 1000
    assert float(result.fun) < 1e-10


def valley_or_fit(w, is_fit, A, b):
    """Rosenbrock's valley of the first two parameters, or a linear fit of all."""
    return jnp.where(is_fit, jnp.sum((A @ w - b) ** 2), rosenbrock(w[:2]))


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs", "newton"])
def test_a_run_from_its_own_solution_says_converged(method, dtype):
    draws = np.random.default_rng(0)
    A = draws.normal(size=(100, 5)).astype(dtype)
    b = (A @ np.ones(5) + 0.1 * draws.normal(size=100)).astype(dtype)
    for is_fit, x0 in ((False, [-1.2, 1.0, 0, 0, 0]), (True, np.zeros(5))):
        call = functools.partial(minimize, valley_or_fit, args=(is_fit, A, b), method=method)
        x0 = np.asarray(x0, dtype)
        first = call(x0)
        again = call(first.x)
        assert (status(first), status(again)) == (Status.CONVERGED, Status.CONVERGED)
        resumed = call(x0, state=first.state)
        assert (status(resumed), int(resumed.nfev)) == (Status.CONVERGED, int(first.nfev))


def test_a_batch_says_what_its_singles_say(dtype):
    t, y = decays(12, dtype)
    start = jnp.asarray([200.0, 0.3, 5.0], dtype)
    batch = minimize_batch(misfit, start, (t, y), in_axes=(None, None, 0))
    one = functools.partial(minimize, misfit, start)
    singles = [one((t, row)) for row in y]
    assert [status(r).name for r in singles] == [Status(int(s)).name for s in batch.status]


# Errors for what cannot be traced


@pytest.mark.parametrize(
    ("fun", "args", "options", "words"),
    [
        (lambda x, flag: jnp.sum(x) if flag else x[0], (True,), {}, "jnp.where"),
        (lambda x, n: jnp.sum(x) + jnp.zeros(n)[0], (3,), {}, "functools.partial"),
        (lambda x: float(jnp.sum(x)), (), {}, "needs the value"),
        (lambda x: np.linalg.norm(x), (), {}, "jax.numpy"),
        (lambda x, n: jnp.sum(x[:n]), (1,), {}, "a slice"),
        (lambda x: jnp.sum(x[x > 0]), (), {}, "jnp.where"),
        (lambda x, n: {1: jnp.sum(x)}[n], (1,), {}, "functools.partial"),
        (lambda x, a: jnp.sum(a * x), ([1.0, 2.0],), {}, r"'list'.*pytree.*jnp.array\("),
        (lambda x: (jnp.sum(x), {"name": "a"}), (), {"has_aux": True}, r"aux\['name'\]"),
        (lambda x: jnp.sum(x), (), {"has_aux": True}, r"\(value, aux\), but it returned one"),
    ],
    ids=[
        *("if", "shape", "float", "numpy", "slice", "mask", "key", "list"),
        *("string in aux", "no aux"),
    ],
)
def test_what_cannot_be_traced_is_said_in_a_sentence(fun, args, options, words):
    with pytest.raises(TypeError, match=words):
        jaxqn.minimize(fun, jnp.ones(2), args, **options)


@pytest.mark.parametrize(
    ("fun", "args", "error"),
    [
        (lambda x, a: jnp.sum(a(x)), (2.0,), "is not callable"),
        (lambda x: jnp.sum(x) + jnp.zeros(2)[0, 0], (), "[Tt]oo many ind"),
        (lambda x: jnp.sum(x) * [1.0], (), "'list'|sequence"),
    ],
    ids=["called", "indices", "its own list"],
)
def test_other_errors_of_fun_are_left_alone(fun, args, error):
    with pytest.raises((TypeError, IndexError), match=error) as caught:
        jaxqn.minimize(fun, jnp.ones(2), args)
    assert "functools.partial" not in str(caught.value)
    assert "pytree" not in str(caught.value)
