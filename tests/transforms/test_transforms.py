"""Quasi-Newton approximations and line searches as optax transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from chains import METHODS, close, make, same
from jax.flatten_util import ravel_pytree
from problems import quartic

from jaxqn.formulas.rules import bfgs_rule
from jaxqn.quasi_newton import dense, inverse_hessian
from jaxqn.transforms import (
    scale_by_linesearch,
    scale_by_quasi_newton,
)

N, STEPS = 5, 12
each_method = pytest.mark.parametrize("name", METHODS)
self_scaled = pytest.mark.parametrize("name", ["osbfgs", "ssbfgs", "ssbroyden"])

random = np.random.default_rng(0)
ROOT = random.normal(size=(N, N))
A = (ROOT @ ROOT.T + np.eye(N)) / 20
X0 = random.normal(size=N)
PATH = random.normal(size=(STEPS, N))
WELLS_X0 = np.array([0.1, -0.2, 0.3, 0.05, -0.15])


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
    points, gradients, directions, matrices = walk(name, WELLS_X0, wells=1.0, lr=lr)
    s, y = np.diff(points, axis=0), np.diff(gradients, axis=0)
    with np.errstate(over="ignore"):
        assert np.any(np.sum(s * y, axis=1) < 0), "the walk met no negative curvature"
    # Full steps without a search may run away: only the signs matter, as long as there are any,
    # and H g is more than the rounding of its terms.
    finite = np.all(np.isfinite(gradients), axis=1) & np.all(np.isfinite(directions), axis=1)
    size = np.max(np.abs(gradients[finite]), axis=1, keepdims=True)
    d, g = directions[finite] / size, gradients[finite] / size
    terms = np.einsum("kij,kj->ki", np.abs(matrices[finite]), np.abs(g))
    signed = np.max(np.abs(d), axis=1) > 10 * np.finfo(float).eps * np.max(terms, axis=1)
    assert np.sum(signed) > 8
    assert np.all(np.sum(d * g, axis=1)[signed] > 0)


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
