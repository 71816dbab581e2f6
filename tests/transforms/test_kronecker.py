"""Inverse Kronecker factors of gradients: roots, corrections by rank one, and the optax chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from jaxqn.formulas.kronecker import (
    inverse_root,
    inverse_root_update,
    kronecker_direction,
    side_by_factorisation,
    side_by_rank_one,
    white_side,
)
from jaxqn.transforms.kronecker import scale_by_kronecker

corrections = pytest.mark.parametrize("correction", ["exact", "rank_one"])


def tolerance(dtype):
    return 2e-4 if dtype == jnp.float32 else 1e-10


@pytest.mark.parametrize("c", [1e-20, 1.0, 1e20])
def test_a_root_of_a_damped_inverse(c, dtype, rng):
    A = oracles.random_spd(rng, 6)
    K = np.asarray(inverse_root(jnp.asarray(c * A, dtype), damping=0.3), np.float64)
    expected = np.linalg.inv(A / (np.trace(A) / 6) + 0.3 * np.eye(6))
    np.testing.assert_allclose(K @ K.T, expected, rtol=0, atol=tolerance(dtype))


def test_a_root_of_nothing_is_white():
    K = inverse_root(jnp.zeros((3, 3)), damping=0.25)
    np.testing.assert_allclose(K @ K.T, 4 * np.eye(3), rtol=1e-12)


def test_corrections_of_rank_one(dtype, rng):
    """Ten in a row, beside the inverse of the matrix that they have made."""
    A = oracles.random_spd(rng, 5)
    K = jnp.asarray(np.linalg.cholesky(np.linalg.inv(A)), dtype)
    correct = jax.jit(functools.partial(inverse_root_update, decay=0.9, weight=0.4))
    for u in rng.normal(size=(10, 5)) * np.geomspace(1e-9, 1e2, 10)[:, None]:
        A = 0.9 * A + 0.4 * np.outer(u, u)
        K = correct(K, jnp.asarray(u, dtype))
        product = np.asarray(K, np.float64) @ np.asarray(K, np.float64).T
        np.testing.assert_allclose(product @ A, np.eye(5), atol=100 * tolerance(dtype))
    np.testing.assert_allclose(correct(K, jnp.zeros(5, dtype)), K / 0.9**0.5, rtol=1e-6)


def test_the_direction_does_not_depend_on_the_choice_of_roots(rng):
    G = jnp.asarray(rng.normal(size=(4, 3)))
    L, R = oracles.random_spd(rng, 4), oracles.random_spd(rng, 3)
    roots = [np.linalg.cholesky(np.linalg.inv(A)) for A in (L, R)]
    turned = [K @ np.linalg.qr(rng.normal(size=K.shape))[0] for K in roots]
    expected = np.linalg.solve(L, G) @ np.linalg.inv(R)
    for pair in (roots, turned):
        np.testing.assert_allclose(kronecker_direction(G, *pair), expected, rtol=1e-9)
    np.testing.assert_allclose(
        kronecker_direction(G, None, roots[1]), G @ np.linalg.inv(R), rtol=1e-9
    )


def test_the_moment_is_a_running_mean(rng):
    side, moment = white_side(3, jnp.float64, factorised=True), np.zeros((3, 3))
    for k in range(4):
        X = rng.normal(size=(3, 2))
        moment = 0.8 * moment + 0.2 * X @ X.T / 2
        side = side_by_factorisation(
            side, jnp.asarray(X), weight=jnp.array(0.2), damping=0.5, due=jnp.array(k == 2)
        )
        np.testing.assert_allclose(side.moment, moment, rtol=1e-12)
        if k == 2:
            expected = np.linalg.inv(moment / (np.trace(moment) / 3) + 0.5 * np.eye(3))
    np.testing.assert_allclose(side.root @ side.root.T, expected, rtol=1e-9)


def test_corrections_of_rank_one_find_the_second_moment(dtype):
    """From random samples of a known covariance, damping and all."""
    A = np.diag([10.0, 3.0, 1.0, 0.1]) + 0.05
    factor, damping, weight = jnp.asarray(np.linalg.cholesky(A), dtype), 0.1, 0.01

    @jax.jit
    def run(key):
        def step(side, key):
            sample, other = jax.random.split(key)
            X = factor @ jax.random.normal(sample, (4, 3), dtype)
            side = side_by_rank_one(
                side, X, weight=jnp.asarray(weight, dtype), damping=damping, key=other
            )
            return side, side.root @ side.root.T / jnp.sum(side.root**2)

        return jax.lax.scan(
            step, white_side(4, dtype, factorised=False), jax.random.split(key, 4000)
        )

    side, inverses = run(jax.random.key(1))
    mean = np.linalg.inv(np.asarray(inverses[1000:], np.float64).mean(0))
    expected = A + damping * np.trace(A) / 4 * np.eye(4)
    mean, expected = mean / np.trace(mean), expected / np.trace(expected)
    np.testing.assert_allclose(mean, expected, atol=0.02)
    np.testing.assert_allclose(side.scale, np.trace(A) / 4, rtol=0.3)


def chain_of(transform):
    """All updates of a sequence of gradients, a pytree with a leading axis, and the last state."""

    @jax.jit
    def run(gradients):
        like = jax.tree.map(lambda g: g[0], gradients)

        def step(state, g):
            updates, state = transform.update(g, state, like)
            return state, updates

        return jax.lax.scan(step, transform.init(like), gradients)[::-1]

    return run


def test_the_transformation_step_by_step(rng):
    """Means, factors seen through each other, factorisation every other call, Nesterov, length."""
    gradients = rng.normal(size=(5, 4, 3)) * np.array([1.0, 5.0, 0.2])
    transform = scale_by_kronecker(0.8, 0.9, decay=0.7, damping=0.2, every=2, rms=0.5)
    actual, _ = chain_of(transform)(jnp.asarray(gradients))
    mu, nu = np.zeros((4, 3)), np.zeros((4, 3))
    L, R, Kl, Kr = np.zeros((4, 4)), np.zeros((3, 3)), np.eye(4), np.eye(3)

    def root(A):
        n = len(A)
        return np.linalg.cholesky(np.linalg.inv(A / (np.trace(A) / n) + 0.2 * np.eye(n)))

    for k, g in enumerate(gradients):
        mu, nu = 0.8 * mu + 0.2 * g, 0.9 * nu + 0.1 * g**2
        unit = g / np.sqrt(np.mean(nu / (1 - 0.9 ** (k + 1))))
        L = 0.7 * L + 0.3 * unit @ Kr @ Kr.T @ unit.T / 3
        R = 0.7 * R + 0.3 * unit.T @ Kl @ Kl.T @ unit / 4
        if k % 2 == 0:
            Kl, Kr = root(L), root(R)
        mean = 0.8 * mu / (1 - 0.8 ** (k + 1)) + 0.2 * g
        D = Kl @ Kl.T @ mean @ Kr @ Kr.T
        np.testing.assert_allclose(actual[k], 0.5 * D / np.sqrt(np.mean(D**2)), rtol=1e-7)


def test_what_is_no_matrix_follows_adam(rng):
    gradients = {
        "vector": jnp.asarray(rng.normal(size=(6, 3))),
        "scalar": jnp.asarray(rng.normal(size=6)),
        "row": jnp.asarray(rng.normal(size=(6, 1, 4))),
    }
    actual, _ = chain_of(scale_by_kronecker(0.9, 0.95))(gradients)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = chain_of(optax.scale_by_adam(0.9, 0.95))(gradients)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), actual, expected)


def test_a_kernel_is_a_matrix_and_a_long_side_has_no_factor(rng):
    kernels = jnp.asarray(rng.normal(size=(3, 2, 2, 3, 4)))
    run = chain_of(scale_by_kronecker(max_side=6))
    (as_kernel, state), (as_matrix, _) = run(kernels), run(kernels.reshape(3, 12, 4))
    np.testing.assert_allclose(as_kernel.reshape(3, 12, 4), as_matrix, rtol=1e-10)
    (sides,) = state.factors
    assert sides.left is None
    assert sides.right.root.shape == (4, 4)


@corrections
def test_the_unit_of_the_objective_does_not_matter(correction, dtype, rng):
    gradients = jnp.asarray(rng.normal(size=(4, 3, 3)), dtype)
    run = chain_of(scale_by_kronecker(correction=correction, eps=1e-30))
    expected, _ = run(gradients)
    for c in (1e-8, 1e8):
        actual, _ = run(c * gradients)
        tol = 1e-3 if dtype == jnp.float32 else 1e-9
        np.testing.assert_allclose(actual, expected, rtol=tol, atol=tol)


@corrections
def test_a_gradient_that_is_not_finite_changes_nothing(correction):
    transform = scale_by_kronecker(correction=correction, every=1)
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
    state = transform.init(params)
    for scale in (1.0, -2.0):
        _, state = transform.update(optax.tree.scale(scale, params), state, params)
    bad = {"a": params["a"].at[0, 1].set(jnp.inf), "b": params["b"]}
    updates, after = transform.update(bad, state, params)
    jax.tree.map(np.testing.assert_array_equal, updates, bad)
    jax.tree.map(np.testing.assert_array_equal, after, state)


@corrections
def test_zero_gradients_and_half_precision(correction):
    params = {"w": jnp.ones((2, 2), jnp.bfloat16), "none": None, "b": jnp.ones(3, jnp.float32)}
    transform = scale_by_kronecker(correction=correction)
    state = transform.init(params)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)
    for scale in (0.0, 1.0):
        updates, state = transform.update(optax.tree.scale(scale, params), state, params)
        assert updates["w"].dtype == jnp.bfloat16
        assert updates["none"] is None
        assert bool(jnp.any(updates["w"] != 0)) == (scale != 0)
        assert jax.tree.map(lambda leaf: leaf.dtype, state) == dtypes
    assert jnp.dtype(jnp.bfloat16) not in set(jax.tree.leaves(dtypes))


@corrections
def test_a_batch_of_chains(correction, rng):
    run = chain_of(scale_by_kronecker(correction=correction, every=2))
    gradients = jnp.asarray(rng.normal(size=(2, 3, 3, 2)))
    for g, actual in zip(gradients, jax.vmap(run)(gradients)[0], strict=True):
        np.testing.assert_allclose(actual, run(g)[0], rtol=1e-9)


@corrections
def test_it_beats_adam_where_features_and_outputs_are_scaled_and_mixed(correction, rng):
    """Mini-batch least squares, W from 12 mixed features to 8 mixed outputs, each at its best."""
    mix = [rng.normal(size=(n, n)) * np.geomspace(1, 0.05, n) for n in (12, 8)]
    left, right = (jnp.asarray(m @ np.linalg.qr(rng.normal(size=m.shape))[0]) for m in mix)
    truth = jnp.asarray(rng.normal(size=(12, 8)))

    def loss(W, features):
        return jnp.mean((features @ left @ (W - truth) @ right) ** 2)

    def final(make):
        def run(rate):
            steps = 200
            fall = optax.cosine_decay_schedule(1.0, steps)
            optimizer = optax.chain(make(), optax.scale_by_schedule(fall), optax.scale(-1.0))

            def step(carry, key):
                W, state = carry
                g = jax.grad(loss)(W, jax.random.normal(key, (32, 12)))
                updates, state = optimizer.update(g, state, W)
                return (W + rate * updates, state), None

            start = jnp.zeros((12, 8))
            keys = jax.random.split(jax.random.key(0), steps)
            (W, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
            return loss(W, jnp.eye(12))

        with jax.numpy_dtype_promotion("standard"):
            return float(jnp.nanmin(jax.jit(jax.vmap(run))(jnp.geomspace(0.01, 1.0, 7))))

    ours = final(functools.partial(scale_by_kronecker, correction=correction))
    assert ours < 0.5 * final(optax.scale_by_adam)


def as_lists(tree):
    """The tree with lists for tuples and named tuples; ``None`` is dropped."""
    if isinstance(tree, tuple | list):
        return [as_lists(part) for part in tree if part is not None]
    return tree


@corrections
@pytest.mark.parametrize("max_side", [2, 9])
def test_only_the_order_of_the_factors_counts(correction, max_side, rng):
    """A library that holds the state may bring its factors back in other containers."""
    params = {"a": jnp.asarray(rng.normal(size=(2, 3))), "b": jnp.ones(2), "c": jnp.ones((2, 2))}
    transform = scale_by_kronecker(correction=correction, max_side=max_side)
    state = held = transform.init(params)
    for step in (jax.jit(transform.update), transform.update):
        held = held._replace(factors=as_lists(held.factors))
        expected, state = step(params, state)
        updates, after = step(params, held)
        assert jax.tree.structure(after) == jax.tree.structure(held)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
        held = after
    for actual, wanted in zip(*map(jax.tree.leaves, (held, state)), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_optax_finds_the_parameters_in_a_state():
    """What is said of the parameters holds for the means, and the factors are no parameters."""
    params, transform = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, scale_by_kronecker()
    state = transform.init(params)
    names = optax.tree_map_params(
        transform, lambda _, name: name, state, {"a": "A", "b": "B"}, transform_non_params=type
    )
    assert names.mu == names.nu == {"a": "A", "b": "B"}
    assert names.factors is tuple
    kept = optax.tree_map_params(transform, lambda leaf: leaf, state)
    assert jax.tree.structure(kept) == jax.tree.structure(state)


@pytest.mark.parametrize("where", ["masked", "partition", "donated"])
def test_it_composes(where):
    chain = optax.chain(scale_by_kronecker(), optax.scale_by_learning_rate(0.2))
    optimizer = {
        "masked": lambda: optax.masked(chain, {"a": True, "b": False}),
        "partition": lambda: optax.partition(
            {"quick": chain, "slow": optax.sgd(0.05)}, {"a": "quick", "b": "slow"}
        ),
        "donated": lambda: chain,
    }[where]()
    params = {"a": jnp.array([[1.0, -2.0], [0.5, 1.0]]), "b": jnp.array([0.5])}

    def loss(p):
        return jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        if where == "masked":  # what is masked comes through as it is
            updates["b"] = -0.05 * updates["b"]
        return optax.apply_updates(params, updates), state

    state, first = optimizer.init(params), float(loss(params))
    for _ in range(100):
        params, state = step(params, state)
    assert float(loss(params)) < 0.01 * first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b1": 1.0}, "b1 must be a fraction"),
        ({"decay": 0.0}, "decay must be"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"every": 0}, "every must be a whole number"),
        ({"max_side": 1.5}, "max_side must be a whole number"),
        ({"correction": "rank-one"}, 'must be "exact" or "rank_one"'),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        scale_by_kronecker(**options)


def test_whole_numbers_cannot_be_whitened():
    with pytest.raises(TypeError, match="only real floating"):
        scale_by_kronecker().init({"a": jnp.ones((2, 2), jnp.int32)})


def test_rounding_does_not_end_the_whitening():
    """A second moment of rank 4, hardly damped: its factorisation fails in float32."""
    transform = scale_by_kronecker(damping=1e-9, every=1)
    state, rng = transform.init(jnp.zeros((64, 64), jnp.float32)), np.random.default_rng(3)
    for _ in range(8):
        g = rng.normal(size=(64, 4)) @ rng.normal(size=(4, 64))
        updates, state = transform.update(jnp.asarray(g, jnp.float32), state)
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(updates**2)), 0.3, rtol=1e-5)
    whitened = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.factors)]
    assert all(whitened)
    (sides,) = state.factors
    assert float(jnp.max(jnp.abs(sides.left.root - jnp.eye(64, dtype=jnp.float32)))) > 0.1


def test_a_matrix_without_entries_is_left_alone():
    transform, tree = scale_by_kronecker(), {"a": jnp.zeros((3, 0)), "b": jnp.ones((2, 2))}
    updates, _ = transform.update(tree, transform.init(tree))
    assert updates["a"].shape == (3, 0)
