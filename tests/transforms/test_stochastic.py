"""Pairs on mini-batches: how they are made, refused and damped, and the optax transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from jaxqn.quasi_newton.lbfgs import lbfgs_memory
from jaxqn.quasi_newton.noisy_pairs import (
    absorb_noisy_pair,
    bounded_direction,
    doubly_damped_pair,
    same_batch_pair,
    within_noise,
)
from jaxqn.quasi_newton.stored_pairs import stored_pairs
from jaxqn.transforms.stochastic import scale_by_stochastic_lbfgs

TARGETS = np.random.default_rng(0).normal(size=(12, 4))
B = oracles.random_spd(np.random.default_rng(1), 4, 30.0)


def tree(x):
    """Four numbers as a pytree of mixed shapes."""
    return {"a": x[:2], "b": {"c": x[2:3].reshape(1, 1), "d": x[3]}}


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def batch_loss(params, target, scale):
    """A quadratic whose least point and whose curvature depend on the batch."""
    x = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)]) - target
    return 0.5 * scale * x @ jnp.asarray(B) @ x


# ---------------------------------------------------------------------------------------- pairs


def test_a_pair_on_one_batch(dtype, rng):
    x, x_new, target = (jnp.asarray(v, dtype) for v in rng.normal(size=(3, 4)))

    def loss(params, target):
        v = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)]) - target
        return 0.5 * v @ jnp.asarray(B, dtype) @ v, "aux"

    s, y = same_batch_pair(loss, tree(x), tree(x_new), target, has_aux=True)
    np.testing.assert_allclose(flat(s), x_new - x, rtol=1e-6)
    tol = 1e-4 if dtype == jnp.float32 else 1e-12
    np.testing.assert_allclose(flat(y), B @ np.asarray(x_new - x, np.float64), rtol=tol, atol=tol)
    known = tree(jnp.zeros(4, dtype))
    _, y = same_batch_pair(loss, tree(x), tree(x_new), target, g_new=known, has_aux=True)
    np.testing.assert_allclose(flat(y), -B @ np.asarray(x - target), rtol=tol, atol=10 * tol)
    with pytest.raises(ValueError, match="must be alike"):
        same_batch_pair(loss, tree(x), x_new, target, has_aux=True)


@pytest.mark.parametrize("c", [1e-8, 1.0, 1e8])
def test_pure_noise_is_refused_as_often_as_normal_deviates_are_small(c, dtype, rng):
    n = 400
    s, y = (jnp.asarray(v, dtype) for v in rng.normal(size=(2, 4000, n)))
    y = jnp.asarray(c, dtype) * y
    test = jax.jit(jax.vmap(functools.partial(within_noise, size=n, sigmas=2.0)))
    refused = test(jnp.sum(s * s, 1), jnp.sum(s * y, 1), jnp.sum(y * y, 1))
    assert abs(float(np.mean(refused)) - 0.9545) < 0.015
    curved = test(jnp.sum(s * s, 1), c * jnp.sum(s * s, 1), c * c * jnp.sum(s * s, 1))
    assert not np.any(curved)


@pytest.mark.parametrize("products", [(0.0, 0.0, 0.0), (1.0, np.nan, 1.0), (1.0, np.inf, np.inf)])
def test_what_says_nothing_is_within_noise(products):
    assert bool(within_noise(*(jnp.asarray(v) for v in products), 10, sigmas=0.0))


@pytest.mark.parametrize("curvature", [-3.0, 0.0, 0.01, 2.0])
def test_damping_on_both_sides(curvature, rng):
    H = oracles.random_spd(rng, 3)
    s, floor = rng.normal(size=3), 0.1
    y = curvature * s + np.cross(s, [1.0, 2.0, 3.0])
    s2, y2 = doubly_damped_pair(
        jnp.asarray(s), jnp.asarray(y), jnp.asarray(floor * s), lambda v: jnp.asarray(H) @ v
    )
    np.testing.assert_allclose(y2, y + floor * s, rtol=1e-12)
    y2, s2 = np.asarray(y2), np.asarray(s2)
    enough = 0.2 * y2 @ H @ y2
    assert s2 @ y2 >= enough * (1 - 1e-9)
    if s @ y2 >= enough:
        np.testing.assert_array_equal(s2, s)
    else:
        np.testing.assert_allclose(s2 @ y2, enough, rtol=1e-9)
        np.testing.assert_allclose(np.cross(s2 - H @ y2, s - H @ y2), 0, atol=1e-9)


def test_a_pair_is_absorbed_in_units_of_the_diagonal(dtype, rng):
    """H is BFGS from D by (s, gamma y + floor s/D); noise and zeros change nothing."""
    d, s, v = np.array([1.0, 0.5, 2.0, 0.1]), *rng.normal(size=(2, 4))
    qn, D, s_ = lbfgs_memory(3), jnp.asarray(d, dtype), jnp.asarray(s, dtype)

    @jax.jit
    def absorb(state, pair, gamma):
        state, gamma = absorb_noisy_pair(
            qn, state, pair, gamma, D, theta=1e-6, floor=0.3, sigmas=0.1
        )
        return state, gamma, qn.apply(state, jnp.asarray(v, dtype), H0=D)

    tol = 1e-3 if dtype == jnp.float32 else 1e-9
    for c in (1e-8, 1.0, 1e8):
        y = c * (B @ s)
        y_ = jnp.asarray(y, dtype)
        state, gamma, product = absorb(qn.init(D), (s_, y_), jnp.zeros((), dtype))
        expected = s @ y / (y @ (d * y))
        np.testing.assert_allclose(gamma, expected, rtol=tol)
        H = oracles.bfgs(np.diag(d), s, expected * y + 0.3 * s / d)
        np.testing.assert_allclose(product, H @ v, rtol=tol, atol=tol)
        for nothing in ((0 * s_, 0 * y_), (s_, y_ * jnp.nan)):
            after, same, _ = absorb(state, nothing, gamma)
            jax.tree.map(np.testing.assert_array_equal, (after.s, after.y), (state.s, state.y))
            assert (same, after.absorbed) == (gamma, 1)


def test_no_pair_lengthens_a_direction(rng):
    qn, D = lbfgs_memory(3), jnp.asarray([1.0, 0.5, 2.0, 0.1])
    state = qn.init(D)
    for s in rng.normal(size=(3, 4)):
        state = qn.update(state, jnp.asarray(30 * s), jnp.asarray(s))
    for g in jnp.asarray(rng.normal(size=(2, 4))):
        Hg, d = np.asarray(qn.apply(state, g, H0=D)), np.asarray(D)
        long, base = np.sqrt(Hg @ (Hg / d)), np.sqrt(g @ (d * g))
        assert long > 2 * base
        np.testing.assert_allclose(
            bounded_direction(qn, state, g, D, clip=2.0), Hg * (2 * base / long), rtol=1e-9
        )
        np.testing.assert_allclose(bounded_direction(qn, state, g, D, clip=1e9), Hg, rtol=1e-9)
        np.testing.assert_array_equal(bounded_direction(qn, qn.init(D), g, D), D * g)


# ------------------------------------------------------------------------------- transformation


def run_chain(transform, source, steps=9, rate=0.05):
    """Points, directions and the last state over `TARGETS`; pairs from the source named."""

    @jax.jit
    def run():
        def step(carry, data):
            x, before, state = carry
            target, scale = data
            loss = functools.partial(batch_loss, target=target, scale=scale)
            extra = {}
            if source == "value_fn":
                extra = {"value_fn": batch_loss, "target": target, "scale": scale}
            elif source == "pair":
                extra = {"pair": same_batch_pair(loss, before, x)}
            u, state = transform.update(jax.grad(loss)(x), state, x, **extra)
            new = jax.tree.map(lambda a, b: a - rate * b, x, u)
            return (new, x, state), (x, u)

        x = tree(jnp.ones(4))
        data = (jnp.asarray(TARGETS[:steps]), jnp.linspace(0.5, 1.5, steps))
        return jax.lax.scan(step, (x, x, transform.init(x)), data)

    (_, _, state), (points, directions) = run()
    return rows(points), rows(directions), state


def rows(batch):
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(batch)], 1)


def oracle(points, source, *, every, average, decay, steps=9):
    """Every direction, and how many extra gradients: dense matrices, textbook updates."""
    scales = np.linspace(0.5, 1.5, steps)
    mu, nu, gamma, extra = np.zeros(4), np.zeros(4), 0.0, 0
    stored, mean, anchor, window, directions = [], [np.zeros(4)] * 2, None, [], []
    for k in range(steps):

        def gradient(x, k=k):
            return scales[k] * B @ (x - TARGETS[k])

        x, g = points[k], gradient(points[k])
        mu, nu = 0.8 * mu + 0.2 * g, 0.9 * nu + 0.1 * g**2
        D = 1 / (np.sqrt(nu / (1 - 0.9 ** (k + 1))) + 1e-8)
        window.append((x, g))
        pair = None
        if source == "pair":
            x0 = points[max(k - 1, 0)]
            pair = (x - x0, g - gradient(x0))
        elif len(window) == every:
            x1, g1 = (np.mean(part, 0) for part in zip(*window, strict=True))
            if source == "value_fn":
                x1 = x1 if average else x
            if anchor is not None:
                if source == "value_fn":
                    pair = (x1 - anchor[0], gradient(x1) - gradient(anchor[0]))
                    extra += 2 if average else 1
                else:
                    pair = (x1 - anchor[0], g1 - anchor[1])
            anchor, window = (x1, g1), []
        if pair is not None and pair[0].any():
            mean = [decay * old + (1 - decay) * new for old, new in zip(mean, pair, strict=True)]
            s, y = mean
            ss, sy, yy = s @ (s / D), s @ y, y @ (D * y)
            if abs(sy) > 0.1 * np.sqrt(ss * yy / 4):
                ratio = abs(sy) / yy
                if gamma == 0:
                    gamma = ratio
                elif sy > 0:
                    gamma = 0.9 * gamma + 0.1 * ratio
                H, y = matrix(D, stored), gamma * y + 0.5 * s / D
                sy, yHy = s @ y, y @ H @ y
                t = 1.0 if sy >= 0.2 * yHy else 0.8 * yHy / (yHy - sy)
                stored.append((t * s + (1 - t) * H @ y, y))
        m = mu / (1 - 0.8 ** (k + 1))
        Hm = matrix(D, stored) @ m
        directions.append(Hm * min(1, np.sqrt(m @ (D * m) / (Hm @ (Hm / D)))))
    return np.array(directions), extra, len(stored)


def matrix(D, pairs):
    return functools.reduce(lambda H, pair: oracles.bfgs(H, *pair), pairs, np.diag(D))


@pytest.mark.parametrize(
    ("source", "every", "average", "decay"),
    [
        ("value_fn", 1, False, 0.0),
        ("value_fn", 2, True, 0.0),
        ("value_fn", 3, False, 0.6),
        ("averages", 2, True, 0.0),
        ("pair", 1, True, 0.5),
    ],
)
def test_every_source_of_pairs_step_by_step(source, every, average, decay):
    transform = scale_by_stochastic_lbfgs(
        0.8, 0.9, memory=10, every=every, average=average, pair_decay=decay, floor=0.5, noise=0.1
    )
    points, actual, state = run_chain(transform, source)
    expected, extra, stored = oracle(points, source, every=every, average=average, decay=decay)
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-9)
    assert (int(state.gradients), int(state.approx.absorbed)) == (extra, stored)
    assert stored >= 2


@pytest.mark.parametrize("start", [None, tree(jnp.asarray([1.0, 0.5, 2.0, 0.1]))])
def test_without_pairs_it_is_adam_or_the_diagonal(start):
    transform = scale_by_stochastic_lbfgs(hess_inv0=start, every=100)
    _, actual, _ = run_chain(transform, "averages")
    peer = optax.scale_by_adam()
    if start is not None:
        bias = optax.ema(0.9)
        peer = optax.chain(bias, optax.stateless(lambda u, _: optax.tree.mul(u, start)))
    with jax.numpy_dtype_promotion("standard"):
        _, expected, _ = run_chain(peer, "averages")
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_extra_gradients_are_counted():
    """As many evaluations of value_fn as the state says, for plain gradients handed in."""
    calls = []

    def counted(params, target):
        jax.debug.callback(lambda: calls.append(1))
        return batch_loss(params, target, 1.0)

    transform = scale_by_stochastic_lbfgs(every=2)
    x = tree(jnp.ones(4))
    state = transform.init(x)
    for target in TARGETS[:7]:
        grads = jax.grad(batch_loss)(x, jnp.asarray(target), 1.0)
        u, state = transform.update(grads, state, x, value_fn=counted, target=jnp.asarray(target))
        x = jax.tree.map(lambda a, b: a - 0.1 * b, x, u)
    jax.effects_barrier()
    assert len(calls) == int(state.gradients) == 4


def test_it_is_no_worse_than_adam_where_adam_converges(rng):
    """A nonconvex regression, noisy labels, many rates, the mean of eight orders of the data."""
    truth = jnp.asarray(rng.normal(size=6))

    def loss(p, features, error):
        return jnp.mean(
            (jnp.tanh(features @ p["w"]) * p["c"] - jnp.tanh(features @ truth) - error) ** 2
        )

    def final(transform):
        def run(noise, rate, order):
            p = {"w": jnp.full(6, 0.1), "c": jnp.array(2.0)}

            def step(carry, key):
                p, state = carry
                keys = jax.random.split(key)
                data = (
                    jax.random.normal(keys[0], (16, 6)),
                    noise * jax.random.normal(keys[1], (16,)),
                )
                batch = functools.partial(loss, features=data[0], error=data[1])
                u, state = transform.update(jax.grad(batch)(p), state, p, value_fn=batch)
                return (jax.tree.map(lambda a, b: a - rate * b, p, u), state), None

            keys = jax.random.split(jax.random.key(order), 300)
            (p, _), _ = jax.lax.scan(step, (p, transform.init(p)), keys)
            return loss(p, jax.random.normal(jax.random.key(8), (500, 6)), jnp.zeros(500))

        with jax.numpy_dtype_promotion("standard"):
            rates, orders = np.geomspace(1e-3, 1.0, 7), np.arange(8)
            lanes = np.meshgrid([0.0, 3.0], rates, orders, indexing="ij")
            return np.asarray(jax.jit(jnp.vectorize(run))(*lanes)).mean(axis=2)

    adam = final(optax.with_extra_args_support(optax.scale_by_adam()))
    ours = final(scale_by_stochastic_lbfgs(every=5))
    assert np.all(np.isfinite(ours))
    assert np.all(ours <= 1.5 * adam + 0.01)
    assert np.all(adam.min(axis=1) < 0.3)


def test_the_unit_of_the_objective_does_not_matter():
    transform = scale_by_stochastic_lbfgs(eps=1e-30, every=2, memory=3)

    @jax.jit
    def run(c):
        def step(carry, target):
            x, state = carry
            loss = functools.partial(batch_loss, target=target, scale=c)
            u, state = transform.update(jax.grad(loss)(x), state, x, value_fn=loss)
            return (jax.tree.map(lambda a, b: a - 0.05 * b, x, u), state), u

        x = tree(jnp.ones(4))
        return jax.lax.scan(step, (x, transform.init(x)), jnp.asarray(TARGETS))

    _, expected = run(1.0)
    for c in (1e-8, 1e8):
        (_, state), actual = run(c)
        np.testing.assert_allclose(rows(actual), rows(expected), rtol=1e-6)
        assert int(jnp.sum(stored_pairs(state.approx)[2])) == 3


def test_a_gradient_that_is_not_finite_changes_nothing():
    transform, x = scale_by_stochastic_lbfgs(every=1), tree(jnp.ones(4))
    state = transform.init(x)
    for target in TARGETS[:3]:
        g = jax.grad(batch_loss)(x, jnp.asarray(target), 1.0)
        u, state = transform.update(g, state, x)
        x = jax.tree.map(lambda a, b: a - 0.1 * b, x, u)
    bad = tree(jnp.array([1.0, 2.0, jnp.nan, 3.0]))
    updates, after = transform.update(bad, state, x)
    jax.tree.map(np.testing.assert_array_equal, updates, bad)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_half_precision_and_holes():
    params = {"w": jnp.ones((2, 2), jnp.bfloat16), "none": None, "b": jnp.ones(3, jnp.float32)}
    transform = scale_by_stochastic_lbfgs(every=1)
    state = transform.init(params)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)

    def loss(p):
        w = p["w"].astype(jnp.float32)
        return jnp.sum(w**2) + jnp.sum(p["b"] ** 2)

    for _ in range(3):
        updates, state = transform.update(jax.grad(loss)(params), state, params, value_fn=loss)
        assert updates["w"].dtype == jnp.bfloat16
        assert jax.tree.map(lambda leaf: leaf.dtype, state) == dtypes
        params = jax.tree.map(lambda p, u: p - (0.1 * u).astype(p.dtype), params, updates)
    assert jnp.dtype(jnp.bfloat16) not in set(jax.tree.leaves(dtypes))
    assert int(state.approx.absorbed) == 2


def test_a_batch_of_chains():
    transform = scale_by_stochastic_lbfgs(every=2)

    @jax.jit
    def run(scale):
        x = tree(jnp.ones(4))
        state = transform.init(x)

        def step(carry, target):
            x, state = carry
            loss = functools.partial(batch_loss, target=target, scale=scale)
            u, state = transform.update(jax.grad(loss)(x), state, x, value_fn=loss)
            return (jax.tree.map(lambda a, b: a - 0.1 * b, x, u), state), u

        return jax.lax.scan(step, (x, state), jnp.asarray(TARGETS))

    scales = jnp.array([1.0, 5.0])
    (_, states), batch = jax.vmap(run)(scales)
    for i, scale in enumerate(scales):
        (_, state), alone = run(scale)
        for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-9)
        assert (states.gradients[i], states.approx.absorbed[i]) == (
            state.gradients,
            state.approx.absorbed,
        )


@pytest.mark.parametrize("where", ["schedule", "masked", "donated"])
def test_the_loop_that_everyone_writes(where):
    """Mini-batches, a schedule for the rate, value_fn or plain gradients; jitted or eager."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1e3),
        scale_by_stochastic_lbfgs(every=3),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.2, 60)),
    )
    if where == "masked":
        optimizer = optax.masked(optimizer, {"a": True, "b": True})

    def loss(p, target):
        return batch_loss(p, 0.01 * target, 1.0)

    def step(p, state, target):
        extra = {} if where == "masked" else {"value_fn": loss, "target": target}
        u, state = optimizer.update(jax.grad(loss)(p, target), state, p, **extra)
        return optax.apply_updates(p, u), state

    if where == "donated":
        step = jax.jit(step, donate_argnums=(0, 1))
    params = tree(jnp.ones(4))
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for k in range(60):
            params, state = step(params, state, jnp.asarray(TARGETS[k % 12]))
    assert float(loss(params, jnp.zeros(4))) < 1e-2 * float(loss(tree(jnp.ones(4)), jnp.zeros(4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b2": 1.0}, "b2 must be a fraction"),
        ({"pair_decay": -0.1}, "pair_decay must be a fraction"),
        ({"theta": 0.0}, "theta must be between"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"every": 2.5}, "every must be a whole number"),
        ({"memory": 0}, "m must be at least 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        scale_by_stochastic_lbfgs(**options)


def test_what_is_not_finite_changes_no_state():
    transform, x = scale_by_stochastic_lbfgs(every=2), jnp.ones(3)
    _, state = transform.update(x, transform.init(x), x)
    for grads, params, pair in (
        (x.at[0].set(jnp.nan), x, (x, 2 * x)),
        (x.at[0].set(jnp.nan), x, None),
        (x, x.at[0].set(jnp.inf), None),
    ):
        updates, after = transform.update(grads, state, params, pair=pair)
        jax.tree.map(np.testing.assert_array_equal, after, state)
        np.testing.assert_array_equal(updates, grads)


def test_errors():
    transform, x = scale_by_stochastic_lbfgs(), jnp.ones(2)
    with pytest.raises(ValueError, match="pairs need the parameters"):
        transform.update(x, transform.init(x))
    with pytest.raises(TypeError, match="only real floating"):
        transform.init({"a": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        scale_by_stochastic_lbfgs(hess_inv0=jnp.ones(3)).init(x)
    masked = {"a": x, "b": optax.MaskedNode()}
    with pytest.raises(ValueError, match="masked parameters"):
        transform.update(masked, transform.init(masked), masked, value_fn=batch_loss)
