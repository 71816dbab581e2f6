"""Bounds inside optax: searches that stay in the box, and directions over what may move."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chains import same
from problems import rosenbrock
from scipy.optimize import Bounds

from jaxqn import LineSearch, backtracking, damped, dense, lbfgs_memory
from jaxqn.formulas import bfgs_rule
from jaxqn.quasi_newton import inverse_hessian, stored_pairs
from jaxqn.transforms import (
    scale_by_bfgs,
    scale_by_lbfgs,
    scale_by_linesearch,
    scale_by_quasi_newton,
)

INF = np.inf


def outside(x, bounds):
    return bool(np.any((np.asarray(x) < bounds[0]) | (np.asarray(x) > bounds[1])))


def searched(direction, bounds):
    return optax.chain(direction, optax.scale(-1.0), scale_by_linesearch(bounds=bounds))


def walk(solver, fun, x, steps):
    """The documented loop as a scan: the points, and the states of the search."""

    def step(carry, _):
        x, state, value, grad = carry
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        x, search = optax.apply_updates(x, updates), state[-1]
        return (x, state, search.value, search.grad), (x, search)

    start = (x, solver.init(x), *jax.value_and_grad(fun)(x))
    return jax.lax.scan(step, start, length=steps)[1]


# --- Never outside ---------------------------------------------------------------------------


def watched(fun):
    """A function, and the points where it is evaluated."""
    seen = []

    def value_fn(x):
        jax.debug.callback(seen.append, x)
        return fun(x)

    return value_fn, seen


def test_every_trial_is_in_the_box_and_the_minimum_is_found():
    """Also along directions that are made from the whole gradient."""
    fun, seen = watched(rosenbrock)
    box = (-1.5, np.array([0.5, INF], np.float32))
    run = jax.jit(lambda x: walk(searched(scale_by_bfgs(), box), fun, x, 30))
    points, searches = run(jnp.asarray([-1.2, 1.0], jnp.float32))
    jax.effects_barrier()
    assert len(seen) == 1 + int(searches.info.nfev.sum()) > 25
    assert [x for x in [*seen, *points] if outside(x, box)] == []
    assert points[-1, 0] == 0.5
    np.testing.assert_allclose(points[-1], [0.5, 0.25], rtol=1e-4)
    np.testing.assert_allclose(searches.value[-1], 0.25, rtol=1e-6)
    assert np.all(np.diff(searches.value) <= 0)


def test_every_lane_has_a_box_of_its_own():
    """The minimum of Rosenbrock's function where x ≤ u < 1 is (1 − u)², at (u, u²)."""
    fun, seen = watched(rosenbrock)
    upper = np.array([0.5, 0.2, -0.3])

    @jax.jit
    @jax.vmap
    def run(x, upper):
        box = (None, jnp.stack([upper, jnp.inf]))
        return walk(searched(scale_by_quasi_newton(dense(), bounds=box), box), fun, x, 30)

    points, searches = run(jnp.asarray([[-1.2, 1.0], [0.1, 3.0], [-2.0, -2.0]]), upper)
    jax.effects_barrier()
    assert max(x[0] for x in seen) <= 0.5
    assert np.all(points[..., 0] <= upper[:, None])
    np.testing.assert_allclose(points[:, -1], np.stack([upper, upper**2], 1), rtol=1e-9)
    np.testing.assert_allclose(searches.value[:, -1], (1 - upper) ** 2, rtol=1e-12)


def test_leaves_of_every_dtype_have_bounds_from_a_prefix():
    target = jnp.linspace(-1.0, 2.0, 6)
    tree = {
        "layer": {"w": jnp.ones((2, 1), jnp.bfloat16), "b": jnp.full((), 1.1, jnp.float32)},
        "rate": jnp.full(3, 0.9),
    }

    def fun(tree):
        leaves = [leaf.astype(target.dtype).ravel() for leaf in jax.tree.leaves(tree)]
        error = jnp.concatenate(leaves) - target
        return jnp.sum(error**2) + jnp.sum(error) ** 2

    bounds = ({"layer": 0.7, "rate": None}, {"layer": None, "rate": np.array([1.0, 1.1, 1.2])})
    direction = scale_by_quasi_newton(lbfgs_memory(1), bounds=bounds)
    points, searches = jax.jit(lambda x: walk(searched(direction, bounds), fun, x, 8))(tree)
    assert jax.tree.map(lambda p: p.dtype, points) == jax.tree.map(lambda p: p.dtype, tree)
    assert float(jnp.float32(0.7)) < 0.7  # so that the bound is the next number
    for leaf in jax.tree.leaves(points["layer"]):
        assert np.all(leaf.astype(float) >= 0.7)
        assert leaf[-1].min() == np.nextafter(leaf.dtype.type(0.7), leaf.dtype.type(1))
    assert np.all(np.asarray(points["rate"]) <= bounds[1]["rate"])
    assert np.all(np.diff(searches.value) <= 1e-12)
    assert not np.any(searches.info.failed)


def numbers(rng, n):
    """Of many sizes and both signs, some of them whole, or powers of two."""
    x = rng.normal(size=n) * 10 ** rng.uniform(-4, 4, n)
    kind = rng.integers(0, 4, n)
    x = np.where(kind == 0, np.round(x), x)
    return np.where(kind == 1, np.copysign(2.0 ** rng.integers(-12, 12, n), x), x)


@jax.jit
def step_at(target, x, lower, upper):
    """Parameters after a step straight at the target, as far as the box goes."""
    transform = scale_by_linesearch(backtracking(max_trials=1), bounds=(lower, upper))

    def fun(x):
        return jnp.mean((x - target) ** 2)

    state = transform.init(x)._replace(value=jnp.zeros((), x.dtype))
    given = {"value": fun(x), "grad": jax.grad(fun)(x), "value_fn": fun}
    updates, state = transform.update(target - x, state, x, **given)
    return optax.apply_updates(x, updates), state.learning_rate


def test_no_sum_is_outside(dtype, rng):
    """Also where x + (b − x) is not b but beyond."""
    n = 20_000
    lower, upper = np.sort(np.stack([numbers(rng, n), numbers(rng, n)]).astype(dtype), axis=0)
    upper = np.where(rng.random(n) < 0.2, np.nextafter(lower, dtype(INF)), upper)
    x = np.clip(numbers(rng, n).astype(dtype), lower, upper)
    target = np.where(rng.random(n) < 0.5, lower - 1, upper + 1).astype(dtype)
    bound = np.clip(target, lower, upper)
    assert outside(x + (bound - x), (lower, upper))

    end, alpha = step_at(*map(jnp.asarray, (target, x, lower, upper)))
    assert alpha == 1
    assert not outside(end, (lower, upper))
    assert np.mean(end == bound) > 0.8


# --- One search ------------------------------------------------------------------------------


def bowl(x, c):
    return x @ x / 2 + c @ x


def search_from(x, c, direction, bounds, linesearch=None):
    """One search, not the first of its run: updates and state. The gradient is x + c."""
    x, c = jnp.asarray(x), jnp.asarray(c)
    transform = scale_by_linesearch(linesearch, bounds=bounds)
    state = transform.init(x)._replace(value=jnp.zeros(()))
    given = {"value": bowl(x, c), "grad": x + c, "value_fn": bowl, "c": c}
    return transform.update(jnp.asarray(direction), state, x, **given)


@pytest.mark.parametrize(
    ("c", "direction", "end"),
    [
        ([1.0, 0.0], [5.0, -1.0], [0.0, 0.0]),
        ([-1.0, 0.0], [-5.0, -1.0], [0.0, 0.0]),
        ([1.0, 0.0], [-9.0, 1.0], [0.0, 0.0]),
        ([-1.0, 0.0], [0.5, -0.5], [0.5, 0.5]),
    ],
    ids=["the gradient", "the direction", "what remains ascends", "none"],
)
def test_bounds_hold_what_is_pushed_out(c, direction, end):
    x = np.array([0.0, 1.0])
    updates, state = search_from(x, c, direction, (0.0, 10.0))
    np.testing.assert_allclose(x + updates, end, atol=1e-12)
    np.testing.assert_allclose(state.value, bowl(x + updates, np.array(c)), atol=1e-12)
    assert not bool(state.info.failed)


@pytest.mark.parametrize("direction", [[1.0, 1.0], [0.0, 0.0], [-1.0, np.nan]])
def test_a_direction_that_does_not_descend_is_not_taken(direction):
    updates, state = search_from([0.0, 1.0], [1.0, 0.0], direction, (0.0, 10.0))
    assert same(updates, jnp.zeros(2))
    assert bool(state.info.failed)
    assert int(state.info.nfev) == 0


def test_nothing_fails_at_a_bounded_minimum():
    updates, state = search_from([0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], (0.0, 10.0))
    assert same(updates, jnp.zeros(2))
    assert not bool(state.info.failed)


def test_parameters_outside_go_into_the_box_without_a_search():
    x = np.array([-3.0, 20.0])
    updates, state = search_from(x, [1.0, 0.0], [0.0, 0.0], (0.0, 10.0))
    assert (x + updates).tolist() == [0.0, 10.0]
    assert int(state.info.nfev) == 0
    assert np.isinf(state.value)  # optax.value_and_grad_from_state evaluates anew
    assert not bool(state.info.failed)


@pytest.mark.parametrize(
    "bounds",
    [(np.zeros(2), 10.0), Bounds(0.0, 10.0), [(0, 10), (0, 10)], (jnp.zeros(2), np.full(2, 10.0))],
)
def test_all_forms_of_bounds_are_the_same(bounds):
    x, c, d = [0.0, 1.0], [-1.0, 0.0], [0.5, -0.5]
    assert same(search_from(x, c, d, bounds), search_from(x, c, d, (0.0, 10.0)))


def test_free_bounds_change_nothing():
    x, c, d = [0.0, 1.0], [-1.0, 0.5], [3.0, -0.5]
    free, plain = (search_from(x, c, d, bounds) for bounds in ((None, INF), None))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-14), free, plain)


def test_a_slope_may_be_infinite_at_a_bound():
    def root(x):
        return jnp.sqrt(x[0]) + (x[1] - 1) ** 2

    x, grad = jnp.zeros(2), jnp.asarray([INF, -2.0])
    transform = scale_by_linesearch(bounds=(0.0, None))
    given = {"value": root(x), "grad": grad, "value_fn": root}
    updates, state = transform.update(-grad, transform.init(x), x, **given)
    np.testing.assert_allclose(updates, [0.0, 1.0])
    assert not bool(state.info.failed)


# --- Directions, and steps without a search --------------------------------------------------


QUADRATIC = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 3.0]])
LINEAR = np.array([-2.0, 2.0, -1.0])  # for x ≥ 0 the minimum is at (1, 0, 1/3)


def projected_steps(direction, steps, start=(3.0, 3.0, 3.0)):
    """Points, gradients, updates and states of steps of one half, projected to x ≥ 0."""
    solver, x = optax.chain(direction, optax.scale(-0.5)), jnp.asarray(start)
    state = solver.init(x)
    for _ in range(steps):
        g = QUADRATIC @ x + LINEAR
        updates, state = solver.update(g, state, x)
        yield x, g, updates, state[0]
        x = optax.projections.projection_non_negative(optax.apply_updates(x, updates))


def test_the_direction_is_that_of_two_metric_projection():
    direction = scale_by_quasi_newton(dense(bfgs_rule), bounds=(0.0, None))
    held = []
    for x, g, updates, state in projected_steps(direction, 25):
        x, g = np.asarray(x), np.asarray(g)
        free = ~((x <= 0) & (g >= 0))
        H = np.asarray(inverse_hessian(state.approx)) * free[:, None] * free
        d = H @ g
        np.testing.assert_allclose(updates, -0.5 * np.where((x <= 0) & (d > 0), 0, d), atol=1e-12)
        held.append(int(np.sum(~free)))
    assert held[-1] == 1
    np.testing.assert_allclose(x, [1.0, 0.0, 1 / 3], atol=1e-6)


def test_the_pair_is_of_the_projected_step():
    steps = list(projected_steps(scale_by_lbfgs(), 4))
    bent = 0
    for (x, g, updates, _), (x_new, g_new, _, state) in itertools.pairwise(steps):
        s, y = stored_pairs(state.approx)[:2]
        np.testing.assert_allclose(s[-1], x_new - x, atol=1e-15)
        np.testing.assert_allclose(y[-1], g_new - g, atol=1e-15)
        bent += not np.allclose(updates, x_new - x)
    assert bent > 0


def test_a_projection_alone_comes_to_rest_at_a_wrong_point():
    """Why ``scale_by_quasi_newton`` takes bounds."""
    *_, (x, g, *_) = projected_steps(scale_by_lbfgs(), 60)
    assert np.max(np.abs(np.maximum(x - g, 0) - x)) > 0.01


# --- Errors ----------------------------------------------------------------------------------


def test_a_search_or_an_approximation_may_take_no_bounds():
    search = LineSearch(*backtracking()[:2])
    with pytest.raises(TypeError, match="bounds need a linesearch whose step takes a Bend"):
        scale_by_linesearch(search, bounds=(0.0, None))
    with pytest.raises(TypeError, match="this method takes no bounds"):
        scale_by_quasi_newton(damped(dense()), bounds=(0.0, None))


@pytest.mark.parametrize(
    ("bounds", "error", "says"),
    [
        ((1.0, 0.0), ValueError, "the lower bound is above the upper one"),
        ((np.nan, 1.0), ValueError, "is NaN"),
        ((np.zeros(3), None), ValueError, r"bounds\[0\] has shape \(3,\)"),
        (1.0, TypeError, "bounds must be"),
    ],
)
@pytest.mark.parametrize(
    "transform",
    [scale_by_linesearch, functools.partial(scale_by_quasi_newton, lbfgs_memory())],
    ids=["search", "direction"],
)
def test_wrong_bounds_are_found_at_init(transform, bounds, error, says):
    with pytest.raises(error, match=says):
        transform(bounds=bounds).init(jnp.ones(2))
