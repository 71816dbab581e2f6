"""Bounds: never outside, true ends, and the same decisions in every setting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import Bounds

import jaxqn
from jaxqn import Status, minimize, minimize_batch
from jaxqn.linalg import vectors
from jaxqn.loop.box import Box, bent, inside
from jaxqn.loop.state import Point

METHODS = ["osbfgs", "lbfgs", "newton"]
INF = np.inf


def rosenbrock(x, c=1.0):
    return c * jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def status(result):
    return Status(int(result.status))


# Faults of other solvers: problem by problem, the same program


def log_barrier(x):
    """Infinite at the bound 0, where a first trial along the gradient ends."""
    return jnp.sum(2 * x - jnp.log(x))


def nan_outside(x):
    return jnp.sum(jnp.sqrt(x)) + jnp.sum((x - 2) ** 2)


def two_poles(x):
    return -jnp.sum(jnp.log(1 - x**2)) - jnp.sum(x)


def falls_until_a_bound(x):
    return -jnp.sum(x**3) * 1e12


FAULTS = {
    "upper bound": (rosenbrock, [-1.2, 1.0], (None, 0.5), 0.25, 40),
    "multipliers of 0": (rosenbrock, [-1.2, 1.0], (None, 1.0), 0.0, 70),
    "infinite at a bound": (log_barrier, [1.0, 2, 3, 4, 5], (0.0, None), 8.46573590, 40),
    "NaN outside": (nan_outside, [1.0, 0.1, 3], (0.0, None), 4.14433206, 20),
    "poles at both": (two_poles, [0.0, 0.3], (-1.0, 1.0), -0.451974312, 20),
    "linear from its bound": (jnp.sum, [0.0, 0, 0], (0.0, 1.0), 0.0, 1),
    "start outside": (rosenbrock, [-5.0, 9.0], (-2.0, 2.0), 0.0, 80),
    "one fixed": (rosenbrock, [-1.2, 1.0], ([-INF, 0.7], [INF, 0.7]), 3.36122042, 20),
    "all fixed": (rosenbrock, [-1.2, 1.0], (0.5, 0.5), 6.5, 1),
    "large below": (falls_until_a_bound, [1e-4, 1e-4], (0.0, 100.0), -2e18, 20),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_other_solvers(fault, method):
    fun, x0, bounds, best, most = FAULTS[fault]
    bounds = tuple(np.array(b) if isinstance(b, list) else b for b in bounds)
    result = minimize(fun, jnp.array(x0), bounds=bounds, method=method)
    assert status(result) is Status.CONVERGED
    assert float(result.fun) == pytest.approx(best, rel=1e-8, abs=1e-12)
    assert int(result.nfev) <= most


def test_an_infinite_slope_that_a_bound_holds():
    """√x at 0: the value is finite, and the bound holds whatever the slope is."""
    result = minimize(lambda x: jnp.sqrt(x[0]) + (x[1] - 1) ** 2, jnp.ones(2), bounds=(0.0, None))
    assert status(result) is Status.CONVERGED
    np.testing.assert_allclose(result.x, [0, 1], atol=1e-8)
    assert result.active.tolist() == [-1, 0]


# Never outside


@functools.cache
def watched():
    """Rosenbrock's function, and how often it was called outside of its bounds."""
    calls = []

    def note(x, low, up):
        calls.append(bool(np.any((x < low) | (x > up))))

    def fun(x, box):
        jax.debug.callback(note, x, *box)
        return rosenbrock(x)

    return fun, calls


@pytest.mark.parametrize("method", METHODS)
def test_no_evaluation_outside_to_the_last_bit(method, dtype, rng):
    """Units whose quotients round, bounds of all sizes, starts inside and outside."""
    fun, calls = watched()
    calls.clear()
    for scale in (1e-3, 1.0, 30.0):
        low = -rng.uniform(0, 1.5, 4).astype(dtype)
        up = rng.uniform(0.1, 1.5, 4).astype(dtype)
        low[1], up[2] = -INF, INF
        x0 = rng.normal(size=4).astype(dtype) * dtype(scale)
        result = minimize(
            fun, x0, ((low, up),), bounds=(low, up), method=method, x_scale=dtype(0.7), maxfun=60
        )
        assert np.all((result.x >= low) & (result.x <= up))
    jax.effects_barrier()
    assert len(calls) > 30
    assert not any(calls)


def test_wider_bounds_are_rounded_into_the_box():
    """0.1 in double precision lies between two numbers of single precision."""
    third = np.float64(1) / 3
    result = minimize(
        lambda x: jnp.sum((x - 9) ** 2), jnp.zeros(2, jnp.float32), bounds=(-third, third)
    )
    assert np.all(np.asarray(result.x, np.float64) <= third)
    fixed = minimize(jnp.sum, jnp.zeros(1, jnp.float32), bounds=(third, third))
    assert fixed.x[0] == np.float32(third)


# The same in every setting


CASES = 9


@functools.cache
def cases(dtype):
    rng = np.random.default_rng(5)
    x0 = rng.normal(size=(CASES, 3)).astype(dtype)
    low, up = -rng.uniform(0, 2, (CASES, 3)), rng.uniform(0.2, 1.5, (CASES, 3))
    return x0, low.astype(dtype), up.astype(dtype)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_singles(method):
    x0, low, up = cases(np.float64)
    batch = minimize_batch(rosenbrock, x0, in_axes=(0, 0), bounds=(low, up), method=method)
    singles = jax.lax.map(
        lambda each: minimize(rosenbrock, each[0], bounds=each[1:], method=method)[:-2],
        (x0, low, up),
    )
    np.testing.assert_allclose(batch.x, singles[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(batch.status, Status.CONVERGED)
    np.testing.assert_array_equal(batch.nfev, singles[5])
    at = np.where(batch.x <= low, -1, np.where(batch.x >= up, 1, 0))
    np.testing.assert_array_equal(batch.active, at)
    # Where no bound holds the gradient vanishes; elsewhere it points out of the box.
    assert np.max(np.abs(np.where(at == 0, batch.jac, 0))) < 1e-5
    assert np.all(at * np.asarray(batch.jac) <= 0)


def test_bounds_shared_by_problems_and_by_sides():
    x0, low, _ = cases(np.float64)
    shared = minimize_batch(rosenbrock, x0, bounds=(-0.5, 0.5))
    mapped = minimize_batch(rosenbrock, x0, in_axes=(0, (0, None)), bounds=(low * 0 - 0.5, 0.5))
    np.testing.assert_allclose(shared.x, mapped.x, rtol=1e-12)
    one_each = minimize_batch(
        rosenbrock, x0, in_axes=(0, (None, 0)), bounds=(-0.5, np.full(CASES, 0.5))
    )
    np.testing.assert_allclose(shared.x, one_each.x, rtol=1e-12)
    nested = jax.vmap(
        jax.vmap(lambda x, u: minimize(rosenbrock, x, bounds=(-0.5, u)).x, (0, None)), (None, 0)
    )(x0, jnp.array([0.5, 0.4]))
    np.testing.assert_allclose(nested[0], shared.x, rtol=1e-9)
    assert float(jnp.max(nested[1])) == 0.4


def test_a_broken_lane_poisons_no_other():
    x0, low, up = cases(np.float64)
    whole = minimize_batch(rosenbrock, x0, in_axes=(0, 0), bounds=(low, up))
    x0 = np.where(np.arange(CASES)[:, None] == 2, np.nan, x0)
    broken = minimize_batch(rosenbrock, x0, in_axes=(0, 0), bounds=(low, up))
    others = np.arange(CASES) != 2
    np.testing.assert_array_equal(np.asarray(whole.x)[others], np.asarray(broken.x)[others])
    assert int(broken.status[2]) == Status.NON_FINITE


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_f_changes_no_decision(method, dtype):
    x0, bounds = jnp.full(4, -1.2, dtype), (dtype(-1.5), jnp.array([0.5, 2, 0.8, 2], dtype))
    counts = {
        int(minimize(rosenbrock, x0, (dtype(2.0**k),), bounds=bounds, method=method).nfev)
        for k in (-27, 0, 27)
    }
    assert len(counts) == 1


def test_new_numbers_compile_nothing():
    traces = []

    def fun(x):
        traces.append(1)
        return rosenbrock(x)

    for up in (0.5, 0.7):
        minimize(fun, jnp.zeros(2), bounds=(None, up))
    first = len(traces)
    minimize(fun, jnp.zeros(2), bounds=(np.array([-1.0, -INF]), np.array([0.4, 1.0])))
    minimize(fun, jnp.zeros(2), bounds=[(None, 1.0), (0.3, 0.3)])
    assert len(traces) == first


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs"])
def test_a_run_goes_on_and_is_watched(method):
    """state=, callback, has_aux and x_scale with bounds."""

    def fun(x):
        return rosenbrock(x), x[0]

    options = {"bounds": (-2.0, 0.5), "method": method, "has_aux": True, "x_scale": 4.0}
    x0, seen = jnp.array([-1.2, 1.0]), []
    whole = minimize(fun, x0, **options, callback=lambda result: seen.append(result.active))
    half = minimize(fun, x0, **options, maxfun=7)
    rest = minimize(fun, x0, bounds=(-2.0, 0.5), method=method, has_aux=True, state=half.state)
    np.testing.assert_array_equal(whole.x, rest.x)
    assert int(whole.nfev) == int(rest.nfev)
    assert float(whole.aux) == 0.5
    assert seen[-1].tolist() == [1, 0]
    again = minimize(fun, x0, bounds=(-2.0, 0.5), method=method, has_aux=True, state=whole.state)
    assert status(again) is Status.CONVERGED


def test_a_problem_without_bounds_has_no_active():
    assert minimize(rosenbrock, jnp.zeros(2)).active is None


def test_infinite_bounds_change_no_step(dtype):
    x0 = jnp.full(3, -1.2, dtype)
    free, loose = (minimize(rosenbrock, x0, maxfun=15, **b) for b in ({}, {"bounds": (None, None)}))
    assert int(free.nit) == int(loose.nit)
    np.testing.assert_allclose(free.x, loose.x, rtol=1e-3 if dtype == jnp.float32 else 1e-9)


@pytest.mark.parametrize("search", [jaxqn.wolfe(c2=0.5), jaxqn.backtracking()])
@pytest.mark.parametrize(
    "method", ["bfgs", "sr1", "ssbroyden", jaxqn.dense(panel=2), jaxqn.lsr1_memory()]
)
def test_other_methods_and_searches(method, search):
    result = minimize(
        rosenbrock, jnp.array([-1.2, 1.0, 0.3]), bounds=(-2, 0.6), method=method, linesearch=search
    )
    best = minimize(rosenbrock, jnp.array([0.5, 0.3, 0.1]), bounds=(-2, 0.6))
    assert float(result.fun) == pytest.approx(float(best.fun), rel=1e-6)


# The path


def test_the_path_bends():
    box = Box(jnp.array([0.0, -INF, -1.0]), jnp.array([INF, 1.0, 1.0]))
    path = bent(box)
    x, d = jnp.array([0.5, 0.5, 0.0]), jnp.array([1.0, -1.0, 0.25])
    plan = path.join(d, d)
    z = path.at(x, jnp.array(2.0), plan)
    np.testing.assert_array_equal(z, [0, 1, -0.5])
    trial = Point(z, jnp.array(0.0), jnp.array([1.0, 1.0, 1.0]), None)
    np.testing.assert_array_equal(path.tangent(trial, plan), [0, 0, 0.25])
    np.testing.assert_array_equal(vectors.masked(path.free(trial), trial.g), [0, 1, 1])
    bend = path.bend(x, trial, plan, lambda: jnp.array(-1.0))
    assert bool(bend.clips)
    # The bounds are met at 0.5 and, by the third, at 4.
    landed = [
        float(bend.landed(jnp.array(lo), jnp.array(2.0), jnp.array(wanted)))
        for lo, wanted in [(0.0, True), (0.0, False), (0.48, True), (0.5, True)]
    ]
    assert landed == [0.5, 2.0, 2.0, 2.0]
    assert not bool(bend.endless())
    up = path.join(d, jnp.array([-1.0, 0, 0]))
    assert bool(path.bend(x, trial, up, lambda: jnp.array(-1.0)).endless())
    np.testing.assert_array_equal(path.gradient(trial), [0, 1, 1])


def test_a_refused_trial_in_a_corner_ends_no_search():
    """There every variable is held; the next trial is shorter, and moves them again."""
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    B, c = Q * np.logspace(0, 3, 20) @ Q.T, rng.normal(size=20)
    result = minimize(lambda x: 0.5 * (x - c) @ (B @ (x - c)), jnp.zeros(20), bounds=(-0.3, 0.3))
    assert status(result) is Status.CONVERGED
    assert float(result.fun) == pytest.approx(1227.9214, rel=1e-6)


def test_a_step_out_of_range_meets_its_own_bound():
    path = bent(Box(jnp.array([-1.0, -1.0]), jnp.array([INF, 2.0])))
    d = jnp.array([-1e300, -1e300])
    z = path.at(jnp.zeros(2), jnp.array(1e300), path.join(d, d))
    np.testing.assert_array_equal(z, [INF, 2])


def test_a_bound_next_to_a_trial_is_met():
    """x + (u − x) need not be u: within rounding of a bound the trial is that bound."""
    rng = np.random.default_rng(0)
    x, up = rng.uniform(-1, 0, 1000), rng.uniform(0, 1, 1000)
    path = bent(Box(jnp.full(1000, -INF), jnp.asarray(up)))
    d = -(up - x) / 3
    z = path.at(jnp.asarray(x), jnp.array(3.0), path.join(jnp.asarray(d), jnp.asarray(d)))
    np.testing.assert_array_equal(z, up)


def test_derivatives_pass_through_the_projection():
    box = Box(jnp.zeros(2), jnp.ones(2))
    g = jax.grad(lambda x: jnp.sum(inside(x, box) ** 2))(jnp.array([1.0, 0.5]))
    np.testing.assert_array_equal(g, [2, 1])


# Forms, and errors


TREE = {"a": jnp.zeros(2), "b": (jnp.zeros(()), jnp.zeros((2, 2)))}


def far(p):
    leaves = jax.tree.leaves(p)
    return sum(jnp.sum((leaf - 9) ** 2) for leaf in leaves)


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        (1.0, [1, 1, 1, 1, 1, 1, 1]),
        ({"a": 1, "b": None}, [1, 1, 9, 9, 9, 9, 9]),
        ({"a": np.array([1.0, INF]), "b": (2.0, 3.0)}, [1, 9, 2, 3, 3, 3, 3]),
    ],
)
def test_pytrees_and_prefixes_of_them(upper, expected):
    result = minimize(far, TREE, bounds=(None, upper))
    found = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(result.x)])
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    active = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(result.active)])
    np.testing.assert_array_equal(active, np.array(expected) < 9)


@pytest.mark.parametrize(
    "bounds",
    [
        (np.array([-INF, 0.0]), np.array([0.5, INF])),
        [(None, 0.5), (0, None)],
        Bounds([-INF, 0], [0.5, INF]),
    ],
)
def test_the_forms_of_other_libraries(bounds):
    result = minimize(rosenbrock, jnp.array([-1.2, 1.0]), bounds=bounds)
    np.testing.assert_allclose(result.x, [0.5, 0.25], rtol=1e-6)


def test_two_lists_are_two_sides():
    """As curve_fit has them; for two parameters they might be SciPy's pairs as well."""
    result = minimize(far, jnp.zeros(3), bounds=([0, 0, None], [1, 2, None]))
    np.testing.assert_allclose(result.x, [1, 2, 9], rtol=1e-8)
    with pytest.raises(ValueError, match="two sides or two pairs"):
        minimize(far, jnp.zeros(2), bounds=((0, 1), (2, 3)))


@pytest.mark.parametrize(
    ("error", "words", "bounds"),
    [
        (ValueError, r"above the upper one at entry \[1\].*2.0 > 1.0", (np.array([0, 2.0]), 1.0)),
        (ValueError, r"bounds\[0\] is NaN at entry \[0\]", (np.array([np.nan, 0]), None)),
        (ValueError, r"bounds\[1\] has shape \(3,\), but x0 has \(2,\)", (None, np.ones(3))),
        (ValueError, "2 pairs, but x0 has|3 pairs, but x0 has 2", [(0, 1), (0, 1), (0, 1)]),
        (TypeError, r"bounds\[0\] has dtype int64", (np.array([0, 0]), None)),
        (TypeError, "must be .lower, upper.", 3.0),
        (TypeError, "must be .lower, upper.", "positive"),
        (TypeError, r"bounds\[1\] is a str", (0.0, "1")),
        (TypeError, "entry 1 of bounds is 'x'", [(0, 1), ("x", 1)]),
        (TypeError, r"bounds\[0\] is a dict", ({"a": 0}, None)),
    ],
)
def test_bad_bounds(error, words, bounds):
    with pytest.raises(error, match=words):
        minimize(rosenbrock, jnp.zeros(2), bounds=bounds)


def test_bounds_of_another_structure():
    with pytest.raises(ValueError, match=r"bounds\[0\] is not like x0"):
        minimize(far, TREE, bounds=({"a": 0.0, "c": 1.0}, None))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("takes no bounds", {"method": jaxqn.damped(jaxqn.dense())}),
        ("bends=False", {"linesearch": jaxqn.wolfe()._replace(bends=False)}),
    ],
)
def test_methods_without_bounds_say_so(words, options):
    with pytest.raises(TypeError, match=words):
        minimize(rosenbrock, jnp.zeros(2), bounds=(0, 1), **options)


def test_batches_say_what_is_wrong():
    x0 = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match="differ in size"):
        minimize_batch(rosenbrock, x0, in_axes=(0, 0), bounds=(np.zeros((3, 2)), None))
    with pytest.raises(ValueError, match="they are numbers"):
        minimize_batch(rosenbrock, x0, in_axes=(0, 0), bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="need an entry of in_axes"):
        minimize_batch(rosenbrock, x0, bounds=(np.zeros((4, 2)), None))
