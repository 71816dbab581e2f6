"""Quasi-Newton approximations and line searches as optax transformations."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from jax.flatten_util import ravel_pytree
from problems import by_name, quartic, rosenbrock
from programs import TraceCounter, count, marked

from jaxqn import LineSearch, backtracking, wolfe
from jaxqn.drivers import minimize
from jaxqn.formulas.rules import bfgs_rule
from jaxqn.quasi_newton.dense import dense, inverse_hessian
from jaxqn.transforms import (
    scale_by_bfgs,
    scale_by_broyden,
    scale_by_dfp,
    scale_by_linesearch,
    scale_by_osbfgs,
    scale_by_quasi_newton,
    scale_by_sr1,
    scale_by_ssbfgs,
    scale_by_ssbroyden,
)

N, STEPS = 5, 12
# Each transformation, the textbook update it makes, and the one it makes after a bent step.
METHODS = {
    "bfgs": (scale_by_bfgs, oracles.bfgs, oracles.bfgs),
    "dfp": (scale_by_dfp, oracles.dfp, oracles.dfp),
    "sr1": (scale_by_sr1, oracles.sr1, oracles.sr1),
    "broyden": (scale_by_broyden, oracles.member(0.5), oracles.member(0.5)),
    "osbfgs": (scale_by_osbfgs, oracles.osbfgs, oracles.bfgs),
    "ssbfgs": (scale_by_ssbfgs, oracles.ssbfgs, oracles.bfgs),
    "ssbroyden": (scale_by_ssbroyden, oracles.ssbroyden, oracles.bfgs),
}
each_method = pytest.mark.parametrize("name", METHODS)
self_scaled = pytest.mark.parametrize("name", ["osbfgs", "ssbfgs", "ssbroyden"])

random = np.random.default_rng(0)
ROOT = random.normal(size=(N, N))
A = (ROOT @ ROOT.T + np.eye(N)) / 20
X0 = random.normal(size=N)
PATH = random.normal(size=(STEPS, N))
WELLS_X0 = np.array([0.1, -0.2, 0.3, 0.05, -0.15])


@functools.cache
def make(name, scale_init=False):
    return METHODS[name][0](scale_init=scale_init)


def convex(x):
    """Its curvatures are below 1, where H = I is too small and self-scaling sets in."""
    return x @ jnp.asarray(A) @ x / 2


def family(x, wells):
    """The convex quadratic, or with ``wells`` = 1 a quartic that curves down around 0."""
    return (1 - wells) * convex(x) + wells * quartic(x)


slope = jax.jit(jax.grad(convex))


@functools.cache
def _walk(name):
    """One program per method, for every walk below."""
    transform = make(name)

    def program(x0, wells, bend, lr):
        def step(carry, _):
            x, state = carry
            g = jax.grad(family)(x, wells)
            direction, state = transform.update(g, state, x)
            return (x - lr * direction + bend, state), (x, g, direction, state.approx)

        *path, approx = jax.lax.scan(step, (x0, transform.init(x0)), length=STEPS)[1]
        return *path, jax.vmap(inverse_hessian)(approx)

    return jax.jit(program)


def walk(name, x0, *, wells=0.0, bend=0.0, lr=0.5):
    """Points, gradients, directions and matrices of a walk: −lr times the direction, plus bend."""
    numbers = (np.float64(wells), np.full(N, bend), np.float64(lr))
    return map(np.asarray, _walk(name)(np.asarray(x0), *numbers))


def textbook(update, points, gradients):
    """H and H g along a walk, by NumPy; refused are only pairs that every update must refuse."""
    H, matrices, directions = np.eye(points.shape[1]), [], []
    for k in range(len(points)):
        if k:
            H = update(H, points[k] - points[k - 1], gradients[k] - gradients[k - 1])
        matrices.append(H)
        directions.append(H @ gradients[k])
    return np.array(matrices), np.array(directions)


def same(state, other):
    """Whether two trees are equal, leaf by leaf and bit by bit."""
    return jax.tree.structure(state) == jax.tree.structure(other) and all(
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state, other)), strict=True)
    )


def close(tree, other, rtol=1e-9, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), tree, other)


# --- The direction ---------------------------------------------------------------------------


@each_method
def test_a_walk_along_its_own_directions_makes_the_textbook_update(name):
    points, gradients, directions, matrices = walk(name, X0)
    H, expected = textbook(METHODS[name][1], points, gradients)
    early = slice(0, 5)  # before rounding decides what the pairs are
    np.testing.assert_allclose(directions[early], expected[early], rtol=1e-6)
    np.testing.assert_allclose(matrices[early], H[early], atol=1e-6)


@self_scaled
def test_a_bent_step_makes_the_plain_update(name):
    points, gradients, directions, matrices = walk(name, X0, bend=0.05, lr=0.2)
    _, expected = textbook(METHODS[name][2], points, gradients)
    np.testing.assert_allclose(directions, expected, rtol=1e-6, atol=1e-9)
    s, y = np.diff(points, axis=0), np.diff(gradients, axis=0)
    np.testing.assert_allclose(np.einsum("kij,kj->ki", matrices[1:], y), s, rtol=1e-6, atol=1e-9)


def taken_with(solver, steps):
    """Points, gradients and matrices of a chain whose first link is a quasi-Newton one."""
    x, points, gradients, matrices = jnp.asarray(X0), [], [], []
    state = solver.init(x)
    for _ in range(steps):
        updates, state = solver.update(slope(x), state, x)
        points.append(x)
        gradients.append(slope(x))
        matrices.append(inverse_hessian(state[0].approx))
        x = optax.apply_updates(x, updates)
    return np.array(points), np.array(gradients), np.array(matrices)


@pytest.mark.parametrize("name", ["ssbfgs", "ssbroyden"])
@pytest.mark.parametrize(
    "bending", [optax.clip(0.05), optax.add_decayed_weights(0.5)], ids=["clip", "decay"]
)
def test_after_transformations_that_bend_the_step_the_update_is_plain(name, bending):
    solver = optax.chain(make(name), optax.scale(-0.5), bending)
    points, gradients, matrices = taken_with(solver, 5)
    H, _ = textbook(METHODS[name][2], points, gradients)
    np.testing.assert_allclose(matrices, H, rtol=1e-7, atol=1e-9)
    s, y = np.diff(points, axis=0), np.diff(gradients, axis=0)
    np.testing.assert_allclose(np.einsum("kij,kj->ki", matrices[1:], y), s, rtol=1e-7)


@pytest.mark.parametrize("name", ["ssbfgs", "ssbroyden"])
def test_clipping_the_length_of_a_step_does_not_bend_it(name):
    solver = optax.chain(make(name), optax.scale(-0.5), optax.clip_by_global_norm(0.05))
    points, gradients, matrices = taken_with(solver, 5)
    H, _ = textbook(METHODS[name][1], points, gradients)
    plain, _ = textbook(METHODS[name][2], points, gradients)
    np.testing.assert_allclose(matrices, H, rtol=1e-7, atol=1e-9)
    assert not np.allclose(matrices, plain, rtol=1e-2)


@each_method
@pytest.mark.parametrize("lr", [0.1, 1.0])
def test_directions_descend_where_the_function_curves_down(name, lr):
    points, gradients, directions, _ = walk(name, WELLS_X0, wells=1.0, lr=lr)
    s, y = np.diff(points, axis=0), np.diff(gradients, axis=0)
    assert np.any(np.sum(s * y, axis=1) < 0), "the walk met no negative curvature"
    # Full steps without a search may run away: only the signs matter, as long as there are any.
    finite = np.all(np.isfinite(gradients), axis=1) & np.all(np.isfinite(directions), axis=1)
    d, g = (
        v[finite] / np.max(np.abs(v[finite]), axis=1, keepdims=True)
        for v in (directions, gradients)
    )
    assert np.sum(finite) > 8
    assert np.all(np.sum(d * g, axis=1) > 0)


def test_sr1_falls_back_to_the_gradient():
    points, gradients, directions, matrices = walk("sr1", WELLS_X0, wells=1.0)
    _, expected = textbook(oracles.sr1, points, gradients)
    first = np.argmax(np.sum(expected * gradients, axis=1) <= 0)
    assert first > 0, "SR1 never pointed uphill"
    np.testing.assert_array_equal(directions[first], gradients[first])
    np.testing.assert_array_equal(matrices[first], np.eye(N))


def test_the_first_pair_scales_the_identity():
    transform = scale_by_quasi_newton(dense(bfgs_rule))
    x, s, y = jnp.asarray(X0), PATH[0], A @ PATH[0]
    _, state = transform.update(jnp.zeros(N), transform.init(x), x)
    _, state = transform.update(jnp.asarray(y), state, x + s)
    expected = oracles.bfgs(s @ y / (y @ y) * np.eye(N), s, y)
    np.testing.assert_allclose(inverse_hessian(state.approx), expected, rtol=1e-9, atol=1e-12)


def test_deferring_corrections_changes_nothing():
    transforms = [scale_by_quasi_newton(dense(bfgs_rule, panel=panel)) for panel in (0, 2)]
    at_once, deferred = (transform.init(jnp.asarray(X0)) for transform in transforms)
    for point in PATH[:6]:
        x, g = jnp.asarray(point), slope(point)
        d, at_once = transforms[0].update(g, at_once, x)
        d_deferred, deferred = transforms[1].update(g, deferred, x)
        np.testing.assert_allclose(d_deferred, d, rtol=1e-9)
    _, after = transforms[1].update(g * np.nan, deferred, x)
    before_and_after = [inverse_hessian(state.approx) for state in (deferred, after)]
    np.testing.assert_array_equal(*before_and_after)


def test_transformations_before_it_reach_the_pair():
    solver = optax.chain(optax.clip_by_global_norm(0.5), make("bfgs"))
    x = jnp.asarray(X0)
    state, clipped, directions = solver.init(x), [], []
    for point in PATH[:4]:
        g = A @ point
        direction, state = solver.update(jnp.asarray(g), state, jnp.asarray(point))
        clipped.append(g * min(1, 0.5 / np.linalg.norm(g)))
        directions.append(direction)
    usable = [
        k == 0 or (PATH[k] - PATH[k - 1]) @ (clipped[k] - clipped[k - 1]) > 0 for k in range(4)
    ]
    assert all(usable)
    _, expected = textbook(oracles.bfgs, PATH[:4], np.array(clipped))
    np.testing.assert_allclose(directions, expected, rtol=1e-7, atol=1e-9)


# --- Pairs that are none ---------------------------------------------------------------------


def after_three_steps(name="bfgs"):
    """A state with some curvature in it, and the point and gradient it has seen last."""
    transform = make(name)
    state = transform.init(jnp.asarray(PATH[0]))
    for point in PATH[:3]:
        _, state = transform.update(jnp.asarray(A @ point), state, jnp.asarray(point))
    return transform, state, jnp.asarray(PATH[2]), jnp.asarray(A @ PATH[2])


@each_method
def test_a_step_of_zero_teaches_nothing(name):
    transform, state, x, g = after_three_steps(name)
    direction, after = transform.update(2 * g, state, x)
    assert same(after.approx, state.approx)
    np.testing.assert_allclose(direction, 2 * state.product, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_handed_on_and_forgotten(bad):
    transform, state, x, g = after_three_steps()
    broken = g.at[1].set(bad)
    direction, after = transform.update(broken, state, x + 1)
    assert np.array_equal(direction, broken, equal_nan=True)
    assert same(after, state)


def test_parameters_that_are_not_finite_change_no_state():
    transform, state, x, g = after_three_steps()
    direction, after = transform.update(g, state, x.at[0].set(jnp.nan))
    assert np.array_equal(direction, g)
    assert same(after, state)


def test_the_very_first_gradient_may_be_broken():
    transform, x = make("bfgs"), jnp.asarray(X0)
    _, state = transform.update(jnp.full(N, jnp.nan), transform.init(x), x)
    direction, state = transform.update(2 * x, state, x)
    assert int(state.count) == 1
    assert np.array_equal(direction, 2 * x)


def test_after_a_failed_search_the_curvature_is_forgotten():
    transform, state, x, g = after_three_steps()
    direction, after = transform.update(g, state, x, value_fn=convex)
    assert np.array_equal(direction, g)
    assert np.array_equal(inverse_hessian(after.approx), np.eye(N))
    direction, after = transform.update(g, state, x)  # no search, no verdict
    np.testing.assert_allclose(direction, state.product, rtol=1e-12)
    assert same(after.approx, state.approx)


def test_a_gradient_of_zero_keeps_the_curvature():
    transform, state, x, _ = after_three_steps()
    direction, after = transform.update(jnp.zeros(N), state, x, value_fn=convex)
    assert np.array_equal(direction, np.zeros(N))
    assert same(after.approx, state.approx)


# --- Trees, dtypes, buffers ------------------------------------------------------------------

TREE = {"b": jnp.arange(2.0), "w": (jnp.ones((1, 2)), jnp.asarray(-1.0))}


def test_a_tree_is_its_ravelled_vector():
    transform, (flat, unravel) = make("bfgs"), ravel_pytree(TREE)
    trees, vectors = transform.init(TREE), transform.init(flat)
    for k in range(3):
        x = flat + k**2 / 10
        g = x * jnp.arange(1.0, 6.0)
        in_tree, trees = transform.update(unravel(g), trees, unravel(x))
        in_vector, vectors = transform.update(g, vectors, x)
        assert same(in_tree, unravel(in_vector))
        assert same(trees, vectors)


def kinds(transform, params, **extra):
    """Shapes, dtypes and weak types of the state before and after an update."""

    def both(params):
        state = transform.init(params)
        return state, transform.update(params, state, params, **extra)[1]

    before, after = jax.make_jaxpr(both, return_shape=True)(params)[1]
    return [
        [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)]
        for state in (before, after)
    ]


@each_method
def test_state_kinds_are_a_fixed_point(name, dtype):
    before, after = kinds(make(name), jnp.ones(3, dtype))
    assert before == after


def test_state_kinds_are_never_weak():
    before, after = kinds(make("bfgs"), {"a": 1.0, "b": jnp.asarray(2.0)})
    assert before == after
    assert not any(weak for *_, weak in before)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_state_kinds_of_the_search_are_a_fixed_point(kind):
    def value_fn(x):
        return jnp.sum(x * x)

    params = jnp.ones(3, kind)
    extra = {"value": value_fn(params), "grad": params, "value_fn": value_fn}
    before, after = kinds(scale_by_linesearch(), params, **extra)
    assert before == after
    assert not any(weak for *_, weak in before)


def test_half_precision_keeps_its_curvature_in_float32():
    transform, low = make("bfgs"), lambda v: jnp.asarray(v, jnp.bfloat16)
    half, full = transform.init(low(X0)), transform.init(jnp.asarray(X0, jnp.float32))
    for point in PATH[:3]:
        x, g = low(point), low(A @ point)
        in_half, half = transform.update(g, half, x)
        in_full, full = transform.update(g.astype(jnp.float32), full, x.astype(jnp.float32))
        assert in_half.dtype == jnp.bfloat16
        assert same(half, full)
        assert np.array_equal(in_half, in_full.astype(jnp.bfloat16))


def test_mixed_dtypes_search_in_the_widest():
    params = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)}

    def value_fn(p):
        return jnp.sum(p["a"] ** 2).astype(jnp.float64) + jnp.sum(p["b"] ** 2)

    transform = scale_by_linesearch()
    value, grad = jax.value_and_grad(value_fn)(params)
    down = optax.tree.scale(-0.5, grad)
    updates, state = transform.update(
        down, transform.init(params), params, value=value, grad=grad, value_fn=value_fn
    )
    assert state.value.dtype == jnp.float64
    assert updates["a"].dtype == jnp.float32
    close(optax.apply_updates(params, updates), optax.tree.scale(0.5, params), rtol=1e-6)


def test_no_parameters_at_all():
    transform = make("ssbroyden")
    updates, state = transform.update({}, transform.init({}), {})
    assert updates == {}
    assert int(state.count) == 0, "without updates, nothing is done"


@pytest.mark.parametrize("transform", [make("bfgs"), scale_by_linesearch()], ids=["qn", "search"])
def test_every_leaf_of_a_fresh_state_is_its_own_buffer(transform):
    params = {"a": jnp.asarray(X0)}
    for init in (transform.init, jax.jit(transform.init)):
        leaves = jax.tree.leaves((init(params), params))
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_a_fresh_state_and_the_parameters_can_be_donated():
    solver = optax.chain(make("bfgs"), optax.scale(-1.0), scale_by_linesearch())

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(x, state):
        value, grad = jax.value_and_grad(convex)(x)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=convex)
        return optax.apply_updates(x, updates), state

    x = jnp.array(X0)
    x, state = step(x, solver.init(x))
    x, state = step(x, state)
    assert float(convex(x)) < convex(X0)
    assert int(state[0].count) == 2


def test_eager_updates_reuse_their_state_and_gradient():
    """What an eager update returns must not share memory with what it was given."""
    transform, x, g = make("bfgs"), jnp.asarray(X0), jnp.asarray(X0)
    direction, state = transform.update(g, transform.init(x), x)
    leaves = jax.tree.leaves((direction, state.params, state.updates, state.product, x, g))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


def test_other_extra_arguments_are_ignored():
    transform, state, x, g = after_three_steps()
    assert same(
        transform.update(g, state, x + 1, not_for_me=3, value=1.0),
        transform.update(g, state, x + 1),
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
