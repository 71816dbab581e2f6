"""The spectral correction in an optax chain: scale_by_spectral_correction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import TraceCounter

import jaxqn

CURVATURES = np.array([100.0, 40.0, 5.0, 1.0, 0.5, -2.0])
N = CURVATURES.size
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))[0]
HESSIAN = (ROTATION * CURVATURES) @ ROTATION.T
UPDATES = np.random.default_rng(1).normal(size=N)
EXACT = {"tol": 1e-6, "max_products": 60}


def quadratic(x, scale):
    return 0.5 * scale * x @ jnp.asarray(HESSIAN, x.dtype) @ x


def corrected(dtype, updates=UPDATES, scale=1.0, **options):
    transform, x = jaxqn.scale_by_spectral_correction(**options), jnp.zeros(N, dtype)
    return transform.update(
        jnp.asarray(updates, dtype),
        transform.init(x),
        x,
        value_fn=quadratic,
        scale=jnp.asarray(scale, dtype),
    )


def preconditioner(which, rank, floor):
    """The matrix P, in NumPy, by its definition."""
    size = np.abs(CURVATURES)
    order = np.argsort({"largest": -CURVATURES, "smallest": CURVATURES}.get(which, size))
    reference = size[order[rank]] if which == "largest" else size.max()
    P = np.eye(N)
    for i in order[:rank]:
        v = ROTATION[:, i]
        P += (reference / max(size[i], floor * size.max()) - 1) * np.outer(v, v)
    return P


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("which", ["largest", "smallest", "smallest_magnitude"])
def test_it_multiplies_by_its_definition(which, rank, dtype):
    actual, state = corrected(dtype, which=which, rank=rank, floor=0.01, **EXACT)
    expected = preconditioner(which, rank, 0.01) @ UPDATES
    tol = 1e-3 if dtype == jnp.float32 else 1e-6
    np.testing.assert_allclose(actual, expected, rtol=tol, atol=tol * np.abs(expected).max())
    assert actual.dtype == dtype
    assert state.count == 1
    assert 0 < state.products <= 60
    assert jnp.all(state.residuals <= 1e-3 * 100)


@pytest.mark.parametrize("c", [1e-8, 1e8])
def test_the_scale_of_the_objective_is_no_matter(c, dtype):
    plain, state = corrected(dtype, **EXACT)
    scaled, scaled_state = corrected(dtype, scale=c, **EXACT)
    np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-5)
    assert state.products == scaled_state.products
    np.testing.assert_allclose(scaled_state.values, c * state.values, rtol=1e-4)


@pytest.mark.parametrize("which", ["largest", "smallest", "smallest_magnitude"])
def test_it_is_positive_and_bounded(which):
    """u·P u > 0 and ‖P u‖ ≤ ‖u‖/floor, however rough the eigenpairs are."""
    floor = 0.05
    transform = jaxqn.scale_by_spectral_correction(which=which, floor=floor, max_products=4)
    x = jnp.zeros(N)

    @jax.jit
    @jax.vmap
    def correct(u, key):
        B = jax.random.normal(key, (N, N))
        B = B + B.T

        def fun(x):
            return 0.5 * x @ B @ x

        return transform.update(u, transform.init(x), x, value_fn=fun)[0]

    U = jax.random.normal(jax.random.key(0), (100, N))
    PU = correct(U, jax.random.split(jax.random.key(1), 100))
    assert jnp.all(jnp.sum(U * PU, axis=1) > 0)
    lengths = jnp.linalg.norm(PU, axis=1) / jnp.linalg.norm(U, axis=1)
    assert jnp.all(lengths <= (1 + 1e-12) / floor)
    assert jnp.any(jnp.abs(lengths - 1) > 0.1)


def test_steep_directions_no_longer_limit_the_learning_rate():
    """Gradient descent at 2.5 times the plain limit 2/λ₁ diverges, and converges with rank 2."""
    x0 = jnp.asarray(ROTATION[:, :5].sum(axis=1))

    def fun(x):
        convex = jnp.asarray((ROTATION * np.abs(CURVATURES)) @ ROTATION.T)
        return 0.5 * x @ convex @ x

    def descend(*before):
        optimizer = optax.chain(*before, optax.scale_by_learning_rate(0.05))

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(jax.grad(fun)(x), state, x, value_fn=fun)
            return (optax.apply_updates(x, updates), state), None

        start = (x0, optimizer.init(x0))
        return fun(jax.lax.scan(step, start, None, length=500)[0][0])

    plain = optax.with_extra_args_support(optax.identity())
    assert not descend(plain) < 1e10
    assert descend(jaxqn.scale_by_spectral_correction(rank=2, **EXACT)) < 1e-6


def test_eigenpairs_are_renewed_on_time_and_from_the_last_ones():
    transform, x = jaxqn.scale_by_spectral_correction(every=3, tol=0.01), jnp.zeros(N)
    state, products = transform.init(x), []
    update = jax.jit(
        lambda u, state: transform.update(u, state, x, value_fn=quadratic, scale=jnp.float64(1))
    )
    for _ in range(7):
        _, state = update(jnp.asarray(UPDATES), state)
        products.append(int(state.products))
    assert state.count == 7
    assert products[0] == products[1] == products[2] < products[3] == products[5] < products[6]
    first, second, third = products[0], products[3] - products[0], products[6] - products[3]
    assert second < first
    assert third <= second


@pytest.mark.parametrize(
    "before", [optax.scale_by_adam(), optax.trace(0.9), optax.identity()], ids=["adam", "m", "sgd"]
)
def test_it_corrects_whatever_comes_before_it_on_mini_batches(before):
    """Every update is P times what the first link makes of the gradient, on a changing batch."""
    rng = np.random.default_rng(2)
    X, t = rng.normal(size=(5, 8, 3)), rng.normal(size=(5, 8))
    params = {"w": jnp.ones(3), "b": jnp.zeros(())}

    def loss(params, X, t):
        return jnp.mean((X @ params["w"] + params["b"] - t) ** 2)

    correction = jaxqn.scale_by_spectral_correction(rank=1, every=2)
    both = optax.chain(before, correction)

    def step(carry, batch):
        params, state, alone = carry
        X, t = batch
        grads = jax.grad(loss)(params, X, t)
        raw, alone = before.update(grads, alone, params)
        updates, state = both.update(grads, state, params, value_fn=loss, X=X, t=t)
        weights, vectors = state[1].weights, state[1].vectors
        shares = weights * jax.vmap(lambda v: optax.tree.vdot(v, raw))(vectors)
        expected = jax.tree.map(lambda u, v: u + jnp.tensordot(shares, v, axes=1), raw, vectors)
        change = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
        return (change, state, alone), (updates, expected)

    carry = (params, both.init(params), before.init(params))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its counter with floats
        (_, state, _), (updates, expected) = jax.lax.scan(step, carry, (X, t))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), updates, expected)
    assert state[1].count == 5
    assert state[1].weights[0] < -0.1


def test_a_batch_equals_its_singles():
    transform = jaxqn.scale_by_spectral_correction(**EXACT)

    def correct(u, scale):
        x = jnp.zeros(N)
        return transform.update(u, transform.init(x), x, value_fn=quadratic, scale=scale)

    scales = jnp.array([1.0, -3.0, jnp.nan, 0.0])
    U = jnp.stack([jnp.asarray(UPDATES)] * 4)
    batch, states = jax.vmap(correct)(U, scales)
    for i in range(4):
        single, state = correct(U[i], scales[i])
        np.testing.assert_allclose(batch[i], single, rtol=1e-9, atol=1e-12)
        assert states.products[i] == state.products
    np.testing.assert_array_equal(batch[2], UPDATES)  # no Hessian, no correction
    np.testing.assert_array_equal(batch[3], UPDATES)  # no curvature, no correction


def test_after_a_bad_batch_the_last_vectors_are_kept():
    transform, x = jaxqn.scale_by_spectral_correction(every=1), jnp.zeros(N)
    _, good = corrected(jnp.float64, every=1)
    u = jnp.asarray(UPDATES)
    out, bad = transform.update(u, good, x, value_fn=quadratic, scale=jnp.array(jnp.nan))
    np.testing.assert_array_equal(out, u)
    np.testing.assert_array_equal(bad.vectors, good.vectors)
    np.testing.assert_array_equal(bad.weights, 0)
    _, again = transform.update(u, bad, x, value_fn=quadratic, scale=jnp.array(1.0))
    assert again.weights[0] < -0.1


def test_an_eager_loop_compiles_once():
    fun = TraceCounter(lambda x: jnp.sum(jnp.cosh(x)))
    transform, x = jaxqn.scale_by_spectral_correction(rank=1), jnp.arange(4.0)
    state = transform.init(x)
    for _ in range(3):
        traces = fun.traces
        _, state = transform.update(x, state, x, value_fn=fun)
    assert fun.traces == traces


def test_half_precision_parameters():
    x = {"w": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(2)}
    transform = jaxqn.scale_by_spectral_correction(rank=1)

    def fun(p):
        return 50.0 * jnp.sum(p["w"].astype(jnp.float64) ** 2) + jnp.sum(p["b"] ** 2)

    updates, state = transform.update(x, transform.init(x), x, value_fn=fun)
    assert updates["w"].dtype == jnp.bfloat16
    assert state.values.dtype == jnp.float64
    assert float(state.values[0]) == pytest.approx(100, rel=0.02)


def test_has_aux():
    transform, x = jaxqn.scale_by_spectral_correction(rank=1, has_aux=True), jnp.ones(3)
    updates, _ = transform.update(
        x, transform.init(x), x, value_fn=lambda x: (jnp.sum(x**2), "aux")
    )
    np.testing.assert_allclose(updates, x)


def test_the_steepest_are_never_amplified():
    """Where all but one curve down, the next largest eigenvalue is the largest magnitude."""

    def saddle(x):
        return 0.5 * x[0] ** 2 - 50 * x[1] ** 2

    transform, x = jaxqn.scale_by_spectral_correction(rank=1), jnp.ones(2)
    updates, _ = transform.update(x, transform.init(x), x, value_fn=saddle)
    np.testing.assert_array_equal(updates, x)


def test_errors():
    x = jnp.ones(3)
    transform = jaxqn.scale_by_spectral_correction()
    with pytest.raises(TypeError, match=r"but value_fn= is missing: call update\(grads, state"):
        transform.update(x, transform.init(x), x)
    with pytest.raises(ValueError, match="needs the parameters"):
        transform.update(x, transform.init(x), value_fn=jnp.sum)
    with pytest.raises(ValueError, match="needs 3 eigenpairs, but the parameters have 2 entries"):
        transform.init(jnp.ones(2))
    with pytest.raises(TypeError, match="int"):
        transform.init({"a": np.arange(5)})
    for bad in ({"rank": 0}, {"every": 0}, {"max_products": 0}, {"rank": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a whole number"):
            jaxqn.scale_by_spectral_correction(**bad)
    with pytest.raises(ValueError, match="which"):
        jaxqn.scale_by_spectral_correction(which="middle")
    for floor in (0.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match="floor"):
            jaxqn.scale_by_spectral_correction(floor=floor)
    masked = optax.masked(transform, {"a": True, "b": False})
    params = {"a": x, "b": x}
    with pytest.raises(ValueError, match="masked parameters"):
        masked.update(params, masked.init(params), params, value_fn=lambda p: jnp.sum(p["a"]))
