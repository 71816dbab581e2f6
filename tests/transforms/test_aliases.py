"""Whole optimisers, in optax's own loop and inside optax's own wrappers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import rosenbrock

import jaxqn
from jaxqn import backtracking, wolfe
from jaxqn.transforms import (
    aliases,
    scale_by_bfgs,
    scale_by_broyden,
    scale_by_linesearch,
    scale_by_ssbroyden,
)

ALIASES = {name: getattr(aliases, name) for name in aliases.__all__}
each_alias = pytest.mark.parametrize("name", ALIASES)
bfgs = aliases.bfgs

TREE = {"a": jnp.asarray([3.0, -1.0]), "b": jnp.asarray([[0.5], [2.0]])}
WEIGHTS = {"a": jnp.asarray([1.0, 4.0]), "b": jnp.asarray([[2.0], [0.5]])}
SEARCH = optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")


def bowl(tree):
    """A convex quadratic of two leaves, least at 1; its leaves do not interact."""
    weights = {name: jnp.asarray(WEIGHTS[name], leaf.dtype) for name, leaf in tree.items()}
    return sum(jnp.sum(weights[name] * (tree[name] - 1) ** 2) for name in tree) / 2


slope = jax.jit(jax.grad(bowl))


def same(tree, other, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13), tree, other)


def descend(solver, params, steps, grad=slope):
    """A loop with nothing but gradients: the points it went through, and the last state."""
    state, points = solver.init(params), []
    for _ in range(steps):
        updates, state = solver.update(grad(params), state, params)
        params = optax.apply_updates(params, updates)
        points.append(params)
    return points, state


def compiled(solver):
    """Wrappers with a ``cond`` compile anew at every eager call, so all at once."""
    return optax.GradientTransformationExtraArgs(solver.init, jax.jit(solver.update))


@functools.cache
def alone(steps, lr=0.1):
    """What plain ``bfgs(lr)`` does, the answer that most wrappers must reproduce."""
    return descend(bfgs(lr), TREE, steps)[0]


def searched(solver, fun, x, steps):
    """The loop that optax documents for its L-BFGS, unchanged."""
    value_and_grad = optax.value_and_grad_from_state(fun)

    def step(carry, _):
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=fun)
        params = optax.apply_updates(params, updates)
        return (params, state), value

    return jax.lax.scan(step, (x, solver.init(x)), length=steps)


# --- The chains ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bfgs", "dfp", "osbfgs", "sr1", "ssbroyden"])
def test_the_documented_loop_solves(name):
    (x, state), values = jax.jit(lambda x: searched(ALIASES[name](), rosenbrock, x, 60))(
        jnp.asarray([-1.2, 1.0])
    )
    np.testing.assert_allclose(values[0], 24.2)
    assert np.all(np.diff(values) <= 1e-14)
    assert int(optax.tree.get(state, "count")) == 60
    np.testing.assert_allclose(optax.tree.get(state, "value"), rosenbrock(x), atol=1e-20)
    # DFP crawls along this valley: with so loose a search it takes the driver 432 iterations.
    error = 3.0 if name == "dfp" else 1e-6
    np.testing.assert_allclose(x, np.ones(2), rtol=error)


@pytest.mark.parametrize("name", [name for name in ALIASES if name != "newton"])
def test_a_learning_rate_needs_only_gradients(name):
    """Newton's method needs the objective, for its Hessian: see test_newton."""
    points, _ = descend(ALIASES[name](0.4), TREE, 25)
    scale_by = getattr(aliases, f"scale_by_{name}")()
    expected, _ = descend(optax.chain(scale_by, optax.scale(-0.4)), TREE, 25)
    same(points, expected)
    assert float(bowl(points[-1])) < 1e-3 * float(bowl(TREE))


def test_a_schedule():
    schedule = optax.exponential_decay(0.5, transition_steps=1, decay_rate=0.8)
    points, _ = descend(bfgs(schedule), TREE, 5)
    (first, second, *_), state = points, scale_by_bfgs().init(TREE)
    same(first, jax.tree.map(lambda p, g: p - 0.5 * g, TREE, slope(TREE)))
    for params in (TREE, first):
        direction, state = scale_by_bfgs().update(slope(params), state, params)
    same(second, jax.tree.map(lambda p, d: p - 0.4 * d, first, direction), rtol=1e-6)


@pytest.mark.parametrize(
    ("linesearch", "by_hand"),
    [
        (wolfe(c2=0.1), scale_by_linesearch(wolfe(c2=0.1))),
        (backtracking(), scale_by_linesearch(backtracking())),
        (SEARCH, SEARCH),
    ],
    ids=["wolfe", "backtracking", "zoom"],
)
def test_any_line_search(linesearch, by_hand):
    x0 = jnp.asarray([-1.2, 1.0])
    solvers = [
        aliases.ssbroyden(linesearch=linesearch),
        optax.chain(scale_by_ssbroyden(), optax.scale(-1.0), by_hand),
    ]
    (x, state), _ = jax.jit(lambda x: searched(solvers[0], rosenbrock, x, 60))(x0)
    np.testing.assert_allclose(x, np.ones(2), rtol=1e-5)
    assert jax.tree.structure(state) == jax.tree.structure(solvers[1].init(x0))


def test_without_a_search_the_step_is_the_direction():
    points, _ = descend(bfgs(linesearch=None), TREE, 4)
    same(points, alone(4, lr=1.0))


def test_a_rate_with_a_search_scales_the_direction_first():
    params, grad = TREE, slope(TREE)
    given = {"value": bowl(params), "grad": grad, "value_fn": bowl}
    solver, search = bfgs(0.5, linesearch=wolfe()), scale_by_linesearch()
    updates, state = solver.update(grad, solver.init(params), params, **given)
    halved = optax.tree.scale(-0.5, grad)
    expected, by_hand = search.update(halved, search.init(params), params, **given)
    same(updates, expected)
    same(state[-1], by_hand)


def test_auxiliary_output():
    def with_aux(tree):
        return bowl(tree), {"leaves": len(tree)}

    grad, results = slope(TREE), []
    for solver, fun in [(bfgs(), bowl), (bfgs(has_aux=True), with_aux)]:
        state = solver.init(TREE)
        results.append(solver.update(grad, state, TREE, value=bowl(TREE), grad=grad, value_fn=fun))
    same(*results)


@pytest.mark.parametrize("wrong", ["zoom", wolfe, 0.1])
def test_no_line_search(wrong):
    with pytest.raises(TypeError, match=r"linesearch must be a jaxqn line search .*, but it is a"):
        bfgs(linesearch=wrong)


# --- Inside other transformations ------------------------------------------------------------


def test_masked():
    mask = {"a": True, "b": False}
    frozen = optax.masked(optax.set_to_zero(), {"a": False, "b": True})
    points, _ = descend(optax.chain(optax.masked(bfgs(0.1), mask), frozen), TREE, 6)
    only_a, _ = descend(bfgs(0.1), {"a": TREE["a"]}, 6)
    same([point["a"] for point in points], [point["a"] for point in only_a])
    same([point["b"] for point in points], [TREE["b"]] * 6)


@pytest.mark.parametrize("combine", [optax.partition, optax.multi_transform])
def test_a_method_per_part(combine):
    parts = {"qn": bfgs(0.1), "sgd": optax.sgd(0.05), "nobody": aliases.sr1(0.1)}
    points, _ = descend(combine(parts, {"a": "qn", "b": "sgd"}), TREE, 6)
    only_a, _ = descend(bfgs(0.1), {"a": TREE["a"]}, 6)
    only_b, _ = descend(optax.sgd(0.05), {"b": TREE["b"]}, 6)
    same(points, [{**a, **b} for a, b in zip(only_a, only_b, strict=True)])


def test_the_search_goes_outside_the_mask():
    mask = {"a": True, "b": False}
    with pytest.raises(ValueError, match=r"put it outside, for instance optax.chain\(optax.masked"):
        optax.masked(bfgs(), mask).init(TREE)
    solver = optax.chain(
        optax.masked(scale_by_bfgs(), mask),
        optax.masked(optax.set_to_zero(), {"a": False, "b": True}),
        optax.scale(-1.0),
        scale_by_linesearch(),
    )
    (params, _), values = searched(solver, bowl, TREE, 8)
    np.testing.assert_allclose(params["a"], np.ones(2), rtol=1e-7)
    same(params["b"], TREE["b"])
    assert np.all(np.diff(values) <= 0)


def test_multi_steps():
    """Two unequal halves make one gradient; in float32, which is what optax accumulates in."""
    start = optax.tree.cast(TREE, jnp.float32)
    halves = iter([0.5, 1.5] * 5)

    def half(params):
        return optax.tree.cast(optax.tree.scale(next(halves), slope(params)), jnp.float32)

    multi_steps = optax.MultiSteps(bfgs(0.1), every_k_schedule=2)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps divides by an integer
        points, state = descend(compiled(multi_steps), start, 10, half)
    same(points[1::2], alone(5), rtol=1e-4)
    same(points[::2], [start, *points[1:-1:2]])
    assert int(state.gradient_step) == 5


def test_inject_hyperparams():
    solver = optax.inject_hyperparams(bfgs)(learning_rate=0.1)
    points, state = descend(solver, TREE, 4)
    same(points, alone(4), rtol=1e-9)
    state.hyperparams["learning_rate"] = jnp.asarray(0.0)
    updates, _ = solver.update(slope(TREE), state, points[-1])
    same(updates, optax.tree.zeros_like(TREE))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_inject_hyperparams_into_the_class_parameter(wrap):
    plain = optax.chain(scale_by_broyden(0.25), optax.scale(-0.1))
    solver = optax.inject_hyperparams(aliases.broyden)(learning_rate=0.1, phi=0.25)
    jitted = optax.GradientTransformationExtraArgs(solver.init, wrap(solver.update))
    same(descend(jitted, TREE, 4)[0], descend(plain, TREE, 4)[0], rtol=1e-9)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("transform", "fixed"),
    [
        (jaxqn.scale_by_kronecker, ("every", "max_side")),
        (jaxqn.scale_by_corrected_adam, ("memory",)),
        (jaxqn.scale_by_stochastic_lbfgs, ("memory", "every")),
    ],
)
def test_inject_hyperparams_into_all_that_adam_has(transform, fixed, wrap):
    W = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    solver = optax.inject_hyperparams(transform, static_args=fixed)(b2=0.9)
    updates, state = wrap(solver.update)(W, solver.init(W), W)
    np.testing.assert_allclose(updates, transform(b2=0.9).update(W, transform().init(W), W)[0])
    assert state.hyperparams["b2"] == 0.9


@pytest.mark.parametrize(
    "transform",
    [
        jaxqn.scale_by_bfgs,
        jaxqn.scale_by_corrected_adam,
        jaxqn.scale_by_kronecker,
        jaxqn.scale_by_lbfgs,
        jaxqn.scale_by_linesearch,
        jaxqn.scale_by_lsr1,
        jaxqn.scale_by_newton,
        jaxqn.scale_by_spectral_correction,
        jaxqn.scale_by_stochastic_lbfgs,
    ],
)
def test_a_label_that_no_parameter_has(transform):
    """It has nothing to do; nor have the placeholders that optax looks through states with."""
    solver = optax.partition({"none": transform(), "all": optax.sgd(0.1)}, {"w": "all"})
    x = {"w": jnp.ones(4)}
    given = {"value": jnp.array(2.0), "grad": x, "value_fn": lambda x: jnp.sum(x["w"] ** 2) / 2}
    updates, _ = solver.update(x, solver.init(x), x, **given)
    np.testing.assert_allclose(updates["w"], -0.1)
    state = transform().init(x)
    assert_same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    assert_same(optax.tree_map_params(transform(), lambda leaf: leaf, state), state)


def test_apply_if_finite():
    """A broken gradient now and then leaves no trace."""
    factors = iter([1, 1, np.nan, 1, np.inf, np.nan, 1, 1])

    def grad(params):
        return optax.tree.scale(next(factors), slope(params))

    points, state = descend(compiled(optax.apply_if_finite(bfgs(0.1), 3)), TREE, 8, grad)
    same([points[k] for k in (0, 1, 3, 6, 7)], alone(5), rtol=1e-9)
    same(points[2], points[1])
    assert int(state.total_notfinite) == 3


def test_clipping_on_both_sides():
    """Before it, clipping reaches H only by the gradient; after it, only by the step."""
    solver = optax.chain(
        optax.clip_by_global_norm(1.0),
        scale_by_bfgs(),
        optax.scale(-1.0),
        optax.clip_by_global_norm(0.3),
    )
    (before, *rest), _ = descend(solver, TREE, 15)
    for after in rest:
        assert float(optax.tree.norm(optax.tree.sub(after, before))) < 0.3 + 1e-12
        before = after
    assert float(bowl(before)) < 1e-2 * float(bowl(TREE))


def test_clipping_before_a_search():
    solver = optax.chain(optax.clip_by_global_norm(1.0), bfgs())
    (params, _), values = searched(solver, bowl, TREE, 12)
    same(params, jax.tree.map(jnp.ones_like, TREE), rtol=1e-3)
    assert np.all(np.diff(values) <= 0)


def test_a_batch_is_its_members():
    """Also beside a member that starts at a minimum, and one that starts nowhere."""
    starts = jnp.asarray([[-1.2, 1.0], [2.0, 2.0], [0.0, -1.0], [1.0, 1.0], [np.nan, 0.0]])

    def run(x):
        (x, (_, _, search)), values = searched(aliases.ssbfgs(), rosenbrock, x, 12)
        return x, search, values

    batch, alone = jax.jit(jax.vmap(run))(starts), jax.jit(run)
    for k, x in enumerate(starts):
        same(jax.tree.map(lambda leaf, k=k: leaf[k], batch), alone(x), rtol=1e-6)
    failed = batch[1].info.failed
    assert failed.tolist() == [False, False, False, False, True]  # a minimum is no failure


def test_state_tools():
    state = bfgs().init(TREE)
    assert int(optax.tree.get(state, "count")) == 0
    changed = optax.tree.set(state, count=jnp.int32(3))
    assert int(optax.tree.get(changed, "count")) == 3
    doubled = optax.tree.map_params(bfgs(), lambda p: 2 * p, state)
    same(doubled[-1].grad, optax.tree.scale(2.0, state[-1].grad))
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
