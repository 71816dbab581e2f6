"""The line search as a transformation: its trials, its failures, and what it calls."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from chains import METHODS, close, make, same
from problems import by_name, rosenbrock
from programs import TraceCounter, count, marked

from jaxqn import LineSearch, backtracking, wolfe
from jaxqn.drivers import minimize
from jaxqn.transforms import (
    scale_by_linesearch,
)

# --- The line search -------------------------------------------------------------------------


def search_from(x, direction, value_fn, linesearch=None, *, used=False, **data):
    """One search from x: updates and state. ``used`` when it is not the first."""
    transform = scale_by_linesearch(linesearch)
    state = transform.init(x)
    if used:
        state = state._replace(value=jnp.zeros_like(state.value))
    value, grad = jax.value_and_grad(value_fn)(x, **data)
    return transform.update(direction, state, x, value=value, grad=grad, value_fn=value_fn, **data)


def solve(solver, fun, x, steps):
    """The documented loop: points, and the states of the search."""
    state, points, searches = solver.init(x), [x], []
    value, grad = jax.value_and_grad(fun)(x)
    for _ in range(steps):
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        x, value, grad = optax.apply_updates(x, updates), state[-1].value, state[-1].grad
        points.append(x)
        searches.append(state[-1])
    return points, searches


@pytest.mark.parametrize("name", ["sr1", "ssbroyden"])
def test_it_walks_the_path_of_minimize(name):
    steps = 18
    driver = []
    minimize(
        rosenbrock,
        jnp.asarray(by_name("rosenbrock").x0),
        method=name,
        linesearch=wolfe(),  # "sr1" steps along a line then
        maxiter=steps,
        callback=lambda result: driver.append((result.x, int(result.nfev))),
    )
    solver = optax.chain(METHODS[name][0](), optax.scale(-1.0), scale_by_linesearch())
    points, searches = solve(solver, rosenbrock, jnp.asarray(by_name("rosenbrock").x0), steps)
    nfev = 1 + np.cumsum([int(search.info.nfev) for search in searches])
    np.testing.assert_allclose(points[1:], [x for x, _ in driver], rtol=1e-6)
    assert nfev.tolist() == [evaluations for _, evaluations in driver]


@pytest.mark.parametrize("c", [1e-8, 1e8])
def test_the_scale_of_the_objective_changes_no_point(c):
    solver = optax.chain(make("bfgs", scale_init=True), optax.scale(-1.0), scale_by_linesearch())
    x0 = jnp.asarray([-1.2, 1.0], jnp.float32)
    plain, _ = solve(solver, rosenbrock, x0, 6)
    scaled, _ = solve(solver, lambda x: c * rosenbrock(x), x0, 6)
    np.testing.assert_allclose(scaled, plain, rtol=1e-3)


def test_accepted_steps_satisfy_the_wolfe_conditions():
    solver = optax.chain(make("bfgs"), optax.scale(-1.0), scale_by_linesearch(wolfe(c2=0.5)))
    points, states = solve(solver, rosenbrock, jnp.asarray([-1.2, 1.0]), 8)
    f, g = rosenbrock, jax.grad(rosenbrock)
    for x, x_next, state in zip(points, points[1:], states, strict=False):
        d = (x_next - x) / state.learning_rate
        phi0, dphi0, phi, dphi = map(float, (f(x), g(x) @ d, f(x_next), g(x_next) @ d))
        alpha = float(state.learning_rate)
        assert oracles.strong_wolfe(
            phi0, dphi0, alpha, phi, dphi, 1e-4, 0.5, slack=1e-12
        ) or oracles.approximate_wolfe(phi0, dphi0, phi, dphi, 1e-4, 0.5, 1e-14)
        assert not bool(state.info.failed)


def test_the_state_holds_value_and_gradient_of_the_new_point():
    x = jnp.asarray([-1.2, 1.0])
    updates, state = search_from(x, -jax.grad(rosenbrock)(x), rosenbrock)
    value, grad = jax.value_and_grad(rosenbrock)(x + updates)
    np.testing.assert_allclose(state.value, value, rtol=1e-12)
    np.testing.assert_allclose(state.grad, grad, rtol=1e-9)
    fun = TraceCounter(rosenbrock)
    stored = optax.value_and_grad_from_state(fun)(x + updates, state=state)
    assert same(stored, (state.value, state.grad))


def test_the_first_trial_is_one_and_at_first_a_short_step():
    x = jnp.asarray([-1.2, 1.0])
    g = jax.grad(rosenbrock)(x)
    exact = backtracking(max_trials=1)  # its only trial is the first one
    tiny = -1e-3 * g / jnp.linalg.norm(g)
    for d, used, expected in [
        (tiny, True, 1e-3),
        (tiny, False, min(1, 2 * 24.2 / np.linalg.norm(g))),
        (-g, True, min(1, 2 * 24.2 / np.linalg.norm(g))),
    ]:
        calls = []

        def value_fn(x, calls=calls):
            jax.debug.callback(lambda x: calls.append(x), x)
            return rosenbrock(x)

        search_from(x, d, value_fn, exact, used=used)
        jax.effects_barrier()
        np.testing.assert_allclose(np.linalg.norm(calls[-1] - x), expected, rtol=1e-9)


def test_reported_evaluations_are_counted_calls():
    calls = []

    def value_fn(x):
        jax.debug.callback(lambda: calls.append(1))
        return rosenbrock(x)

    x, transform = jnp.asarray([-1.2, 1.0]), scale_by_linesearch()
    value, grad = jax.value_and_grad(rosenbrock)(x)
    state = transform.init(x)._replace(value=value)  # not the first search, so alpha starts at 1
    _, state = transform.update(-0.1 * grad, state, x, value=value, grad=grad, value_fn=value_fn)
    jax.effects_barrier()
    assert len(calls) == int(state.info.nfev) > 2


def test_the_objective_stands_in_one_place_of_the_program():
    solver = optax.chain(make("bfgs"), optax.scale(-1.0), scale_by_linesearch())
    x, fun = jnp.asarray([-1.2, 1.0]), marked(rosenbrock)

    def step(x, state, value, grad):
        return solver.update(grad, state, x, value=value, grad=grad, value_fn=fun)

    jaxpr = jax.make_jaxpr(step)(x, solver.init(x), rosenbrock(x), x)
    assert count(jaxpr.jaxpr, "marker") == 1


def test_eager_updates_trace_the_objective_once():
    fun = TraceCounter(rosenbrock)
    solver = optax.chain(make("bfgs"), optax.scale(-1.0), scale_by_linesearch())
    x = jnp.asarray([-1.2, 1.0])
    state = solver.init(x)
    for k in range(3):
        value, grad = jax.value_and_grad(rosenbrock)(x)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        x = optax.apply_updates(x, updates)
        if k == 0:
            traces = fun.traces
    assert fun.traces == traces


def test_an_unhashable_objective_will_do():
    class Loss:
        __hash__ = None

        def __call__(self, x):
            return rosenbrock(x)

    x = jnp.asarray([-1.2, 1.0])
    d = -jax.grad(rosenbrock)(x)
    close(search_from(x, d, Loss()), search_from(x, d, rosenbrock))


# --- Searches that fail ----------------------------------------------------------------------


def bowl(x):
    return jnp.sum(x**2) + 3.0


@pytest.mark.parametrize("direction", [1.0, 0.0, np.nan, -np.inf])
def test_a_direction_that_does_not_descend_is_not_taken(direction):
    x = jnp.asarray([1.0, 2.0])
    updates, state = search_from(x, jnp.full(2, direction), bowl)
    assert np.array_equal(updates, np.zeros(2))
    assert bool(state.info.failed)
    assert int(state.info.nfev) == 0
    assert float(state.learning_rate) == 0
    assert same((state.value, state.grad), (bowl(x), 2 * x))


def test_a_failed_search_stays_where_nothing_is_lower():
    """A gradient of the wrong sign."""
    wrong = jax.custom_jvp(bowl)
    wrong.defjvp(lambda x, dx: (bowl(x[0]), -2 * x[0] @ dx[0]))
    x = jnp.asarray([1.0, 2.0])
    updates, state = search_from(x, 2 * x, wrong)
    assert np.array_equal(updates, np.zeros(2))
    assert bool(state.info.failed)
    assert int(state.info.nfev) > 5
    assert float(state.value) == float(bowl(x))


class Halving(NamedTuple):
    alpha: jax.Array
    trials: jax.Array


def never_content(trials):
    """Halves the step that many times, and gives up."""

    def step(state, *_):
        state = Halving(state.alpha / 2, state.trials + 1)
        return state, jnp.zeros((), bool), state.trials >= trials

    return LineSearch(lambda _phi0, _dphi0, alpha0: Halving(alpha0, jnp.int32(0)), step)


@pytest.mark.parametrize(("trials", "best"), [(1, 0.0), (2, 0.5), (3, 0.25), (4, 0.25)])
def test_a_failed_search_takes_its_lowest_trial(trials, best):
    x = jnp.asarray([1.0, 2.0])
    updates, state = search_from(x, -3.9 * x, bowl, never_content(trials), used=True)
    lowest = (1 - 3.9 * best) * x
    assert bool(state.info.failed)
    assert int(state.info.nfev) == trials
    np.testing.assert_allclose(state.learning_rate, best)
    np.testing.assert_allclose(x + updates, lowest, rtol=1e-12)
    close((state.value, state.grad), (bowl(lowest), 2 * lowest))


def test_no_step_ever_goes_up():
    """Over a rough landscape whose gradient is of little help."""

    def rough(x):
        return jnp.sum(x**2) + jnp.sum(jnp.abs(jnp.sin(50 * x)))

    solver = optax.chain(make("bfgs"), optax.scale(-1.0), scale_by_linesearch(wolfe(max_trials=4)))
    points, states = solve(solver, rough, jnp.asarray([1.3, -0.7, 2.1]), 25)
    values = [float(rough(x)) for x in points]
    assert any(bool(state.info.failed) for state in states)
    assert all(b <= a + 1e-13 * abs(a) for a, b in itertools.pairwise(values))
    assert values[-1] < values[0]


def test_a_value_that_is_not_finite_is_no_start():
    x, transform = jnp.asarray([1.0, 2.0]), scale_by_linesearch()
    updates, state = transform.update(
        -x, transform.init(x), x, value=jnp.nan, grad=x, value_fn=bowl
    )
    assert np.array_equal(updates, np.zeros(2))
    assert bool(state.info.failed)
    value, grad = optax.value_and_grad_from_state(bowl)(x, state=state)  # evaluates again
    assert same((value, grad), (bowl(x), 2 * x))


def test_trials_that_are_not_finite_are_too_far():
    def barrier(x):
        return jnp.sum(x - jnp.log(x))

    updates, state = search_from(jnp.asarray([2.0]), jnp.asarray([-8.0]), barrier, used=True)
    assert not bool(state.info.failed)
    assert 0 < float(2 + updates[0]) < 2


# --- What the objective is given -------------------------------------------------------------


def scaled(x, scale, shift=0.0):
    return scale * jnp.sum((x - shift) ** 2)


def any_keywords(x, **data):
    return scaled(x, **data)


def only_shift(x, *, shift):
    return scaled(x, 2.0, shift)


NAMED = {"scale": jnp.asarray(2.0), "shift": 1.0}


@pytest.mark.parametrize(
    ("value_fn", "data", "unused"),
    [
        (lambda x: scaled(x, 2.0, 1.0), {}, {"scale": 3.0, "other": "text"}),
        (scaled, NAMED, {"other": 1.0}),
        (any_keywords, NAMED, {"x": 5.0}),
        (only_shift, {"shift": 1.0}, {"scale": 7.0}),
        (functools.partial(scaled, scale=2.0), {"shift": 1.0}, {"other": None}),
        (jax.jit(scaled), NAMED, {"other": [1, "a"]}),
    ],
    ids=["nothing", "named", "keywords", "keyword-only", "partial", "jitted"],
)
def test_the_objective_gets_the_extra_arguments_it_can_take(value_fn, data, unused):
    x, transform = jnp.asarray([3.0]), scale_by_linesearch()
    given = {"value": jnp.asarray(8.0), "grad": jnp.asarray([8.0]), "value_fn": value_fn}
    updates, state = transform.update(-x, transform.init(x), x, **given, **data, **unused)
    np.testing.assert_allclose(state.value, 2 * (3 + updates[0] - 1) ** 2, rtol=1e-12)
    assert float(state.value) < 8


def test_extra_arguments_that_are_no_arrays_stay_what_they_are():
    def value_fn(x, *, power, kind, layers):
        assert (power, kind, layers) == (2, "sum", {"skip": True})
        return jnp.sum(x**power)

    x = jnp.asarray([3.0])
    updates, state = search_from(x, -x, value_fn, power=2, kind="sum", layers={"skip": True})
    np.testing.assert_allclose(state.value, (3 + updates[0]) ** 2, rtol=1e-12)


def test_a_search_starts_short_where_more_is_promised_than_there_is():
    """A direction 1e6 times too long down a slope: its model promises half of that."""
    x, grad = jnp.asarray([9.0]), jnp.asarray([1.0])
    transform = scale_by_linesearch(backtracking(max_trials=1))
    given = {"value": jnp.asarray(9.0), "grad": grad, "value_fn": jnp.sum}
    updates, state = transform.update(-grad, transform.init(x), x, **given)
    np.testing.assert_allclose(state.expected, 10 * 8.0)  # |f| after a step of length 1
    _, then = transform.update(-1e6 * grad, state, x + updates, **(given | {"value": state.value}))
    np.testing.assert_allclose(then.learning_rate, 2 * 80.0 / 1e6)


def test_new_data_traces_nothing():
    fun, x = TraceCounter(lambda x, shift: scaled(x, 1.0, shift)), jnp.asarray([3.0])

    def value_fn(x, shift):
        return fun(x, shift)

    transform, ends = scale_by_linesearch(), []
    for shift in (0.0, 1.0, 2.5):
        given = {"value": jnp.asarray(9.0), "grad": 2 * x, "value_fn": value_fn}
        _, state = transform.update(-x, transform.init(x), x, **given, shift=jnp.asarray(shift))
        ends.append(float(state.value))
        if shift == 0:
            traces = fun.traces
    assert fun.traces == traces
    assert len(set(ends)) == 3


def test_auxiliary_output_is_left_aside():
    x = jnp.asarray([-1.2, 1.0])
    value, grad = jax.value_and_grad(rosenbrock)(x)
    results = [
        transform.update(-grad, transform.init(x), x, value=value, grad=grad, value_fn=fun)
        for transform, fun in [
            (scale_by_linesearch(), rosenbrock),
            (scale_by_linesearch(has_aux=True), lambda x: (rosenbrock(x), {"n": x.size})),
        ]
    ]
    close(*results)


# --- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        (
            {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2)},
            ValueError,
            r"params\['a'\] is float32, params\['b'\] is float64: cast them, or .*optax.partition",
        ),
        (
            {"a": jnp.ones(2), "n": jnp.arange(3)},
            TypeError,
            r"params\['n'\] has dtype int64, .*masked",
        ),
        (jnp.ones(2, complex), TypeError, "params has dtype complex128, but only real"),
    ],
    ids=["mixed", "integer", "complex"],
)
def test_parameters_that_no_dense_method_takes(params, error, says):
    with pytest.raises(error, match=says):
        make("bfgs").init(params)


@pytest.mark.parametrize("transform", [make("bfgs"), scale_by_linesearch()], ids=["qn", "search"])
def test_parameters_are_needed(transform):
    x = jnp.ones(2)
    with pytest.raises(
        ValueError, match=r"needs the parameters: call update\(grads, state, params"
    ):
        transform.update(x, transform.init(x))


@pytest.mark.parametrize("missing", ["value", "grad", "value_fn"])
def test_the_search_needs_the_objective(missing):
    transform, x = scale_by_linesearch(), jnp.ones(2)
    given = {"value": 1.0, "grad": x, "value_fn": bowl}
    del given[missing]
    with pytest.raises(TypeError, match=f"but {missing}= is missing: call .*learning_rate"):
        transform.update(x, transform.init(x), x, **given)


def test_the_search_goes_outside_masks():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    mask = {"a": True, "b": False}
    with pytest.raises(ValueError, match=r"put it outside, for instance optax.chain\(optax.masked"):
        optax.masked(scale_by_linesearch(), mask).init(params)
    transform = scale_by_linesearch()
    hidden = {"a": jnp.ones(2), "b": optax.MaskedNode()}
    with pytest.raises(ValueError, match="masked parameters"):
        transform.update(
            hidden, transform.init(params), hidden, value=1.0, grad=hidden, value_fn=bowl
        )


@pytest.mark.parametrize(
    ("value_fn", "error", "says"),
    [
        (lambda x: (bowl(x), {}), TypeError, "pass has_aux=True"),
        (lambda x: x, ValueError, "must return a scalar"),
    ],
    ids=["aux", "vector"],
)
def test_the_objective_is_scalar(value_fn, error, says):
    transform, x = scale_by_linesearch(), jnp.ones(2)
    with pytest.raises(error, match=says):
        transform.update(-x, transform.init(x), x, value=1.0, grad=x, value_fn=value_fn)
