"""Limited memory in optax chains: L-BFGS, L-SR1, and Adam's diagonal corrected by rank 2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from problems import rosenbrock

import jaxqn

RNG = np.random.default_rng(0)
POINTS = np.cumsum(RNG.normal(size=(7, 4)), axis=0)
B = np.diag([1.0, 3.0, 10.0, 30.0])
GRADIENTS = POINTS @ B + 0.1 * np.sin(POINTS)
MAKERS = {
    "lbfgs": jaxqn.scale_by_lbfgs,
    "lsr1": jaxqn.scale_by_lsr1,
    "corrected adam": jaxqn.scale_by_corrected_adam,
}
each_transform = pytest.mark.parametrize("name", MAKERS)


def tree(x):
    """Four numbers as a pytree of mixed shapes."""
    return {"a": x[:2], "b": {"c": x[2:3].reshape(1, 1), "d": x[3]}}


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def directions(transform, points, gradients, dtype=np.float64):
    """What a transformation makes of a sequence of gradients at given points."""
    points, gradients = jnp.asarray(points, dtype), jnp.asarray(gradients, dtype)

    @jax.jit
    def run(points, gradients):
        def step(state, at):
            updates, state = transform.update(tree(at[1]), state, tree(at[0]))
            return state, updates

        return jax.lax.scan(step, transform.init(tree(points[0])), (points, gradients))

    state, updates = run(points, gradients)
    return rows(updates), state


def rows(batch):
    """Every vector of a batch of pytrees, flat."""
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(batch)], 1)


@pytest.mark.parametrize("memory", [1, 3, 10])
def test_adam_corrected_by_rank_two(memory, dtype):
    """Adam's diagonal in NumPy, then one BFGS update of that matrix per pair in memory."""
    transform = jaxqn.scale_by_corrected_adam(b2=0.9, eps=1e-3, memory=memory)
    actual, _ = directions(transform, POINTS, GRADIENTS, dtype)
    S, Y = np.diff(POINTS, axis=0), np.diff(GRADIENTS, axis=0)
    nu = np.zeros(4)
    for k, g in enumerate(GRADIENTS):
        nu = 0.9 * nu + 0.1 * g**2
        H = np.diag(1 / (np.sqrt(nu / (1 - 0.9 ** (k + 1))) + 1e-3))
        for i in range(max(0, k - memory), k):
            H = oracles.bfgs(H, S[i], Y[i])
        tol = 2e-4 if dtype == np.float32 else 1e-9
        np.testing.assert_allclose(actual[k], H @ g, rtol=tol, atol=tol * np.abs(H @ g).max())


def test_without_pairs_it_is_adam_without_momentum():
    """Where the parameters do not move there is no pair."""
    here = np.tile(POINTS[:1], (5, 1))
    actual, state = directions(jaxqn.scale_by_corrected_adam(), here, GRADIENTS[:5])
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = directions(optax.scale_by_adam(b1=0.0), here, GRADIENTS[:5])
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert state.pairs.approx.absorbed == 0


@pytest.mark.parametrize("memory", [1, 4])
def test_lbfgs_is_the_dense_recursion_over_its_memory(memory, dtype):
    actual, _ = directions(jaxqn.scale_by_lbfgs(memory), POINTS, GRADIENTS, dtype)
    S, Y = np.diff(POINTS, axis=0), np.diff(GRADIENTS, axis=0)
    for k, g in enumerate(GRADIENTS):
        newest = range(max(0, k - memory), k)
        H = np.eye(4) * (S[k - 1] @ Y[k - 1] / (Y[k - 1] @ Y[k - 1]) if k else 1)
        for i in newest:
            H = oracles.bfgs(H, S[i], Y[i])
        tol = 2e-4 if dtype == np.float32 else 1e-9
        np.testing.assert_allclose(actual[k], H @ g, rtol=tol, atol=tol * np.abs(H @ g).max())


def test_a_diagonal_given_by_the_caller():
    d = np.array([1.0, 0.3, 0.1, 0.03])
    transform = jaxqn.scale_by_lbfgs(2, hess_inv0=tree(jnp.asarray(d)))
    actual, _ = directions(transform, POINTS[:3], GRADIENTS[:3])
    H = np.diag(d)
    np.testing.assert_allclose(actual[0], d * GRADIENTS[0], rtol=1e-12)
    for k in (1, 2):
        H = oracles.bfgs(H, POINTS[k] - POINTS[k - 1], GRADIENTS[k] - GRADIENTS[k - 1])
        np.testing.assert_allclose(actual[k], H @ GRADIENTS[k], rtol=1e-9)


@each_transform
def test_a_gradient_that_is_not_finite_changes_nothing(name):
    transform = MAKERS[name]()
    params = tree(jnp.asarray(POINTS[0]))
    state = transform.init(params)
    _, state = transform.update(tree(jnp.asarray(GRADIENTS[0])), state, params)
    bad = tree(jnp.array([1.0, jnp.nan, 2.0, 3.0]))
    updates, after = transform.update(bad, state, tree(jnp.asarray(POINTS[1])))
    jax.tree.map(np.testing.assert_array_equal, updates, bad)
    jax.tree.map(np.testing.assert_array_equal, after, state)


@each_transform
def test_half_precision_and_mixed_dtypes(name):
    """Parameters of several dtypes keep them; what is remembered is in float32 or wider."""
    params = {"w": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(3, jnp.float32)}
    transform = MAKERS[name]()
    state = transform.init(params)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)
    for scale in (1.0, 0.5):
        grads = optax.tree.scale(scale, params)
        updates, state = transform.update(grads, state, params)
        params = jax.tree.map(lambda p, u: (p - 0.5 * u).astype(p.dtype), params, updates)
        assert jax.tree.map(lambda leaf: leaf.dtype, updates) == {
            "w": jnp.bfloat16,
            "b": jnp.float32,
        }
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == dtypes
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert jnp.dtype(jnp.bfloat16) not in kinds


@each_transform
@pytest.mark.parametrize("where", ["masked", "partition", "MultiSteps", "chain and clip"])
def test_it_composes(name, where):
    """It solves a quadratic with a learning rate, its state donated, wherever it stands."""
    chain = optax.chain(MAKERS[name](), optax.scale_by_learning_rate(0.3))
    optimizer = {
        "masked": lambda: optax.masked(chain, {"a": True, "b": True}),
        "partition": lambda: optax.partition(
            {"quick": chain, "slow": optax.sgd(0.05)}, {"a": "quick", "b": "slow"}
        ),
        "MultiSteps": lambda: optax.MultiSteps(chain, 1),
        "chain and clip": lambda: optax.chain(chain, optax.clip_by_global_norm(1.0)),
    }[where]()
    params = {"a": jnp.array([1.0, -2.0], jnp.float32), "b": jnp.array([[0.5]], jnp.float32)}

    def loss(p):
        return 2 * jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    first = float(loss(params))
    # MultiSteps itself mixes its counter with floats.
    with jax.numpy_dtype_promotion("standard" if where == "MultiSteps" else "strict"):
        for _ in range(60):
            params, state = step(params, state)
    assert float(loss(params)) < 0.05 * first


@pytest.mark.parametrize("alias", [jaxqn.lbfgs, jaxqn.lsr1], ids=["lbfgs", "lsr1"])
def test_the_loop_that_optax_documents(alias):
    solver, x = alias(), jnp.array([-1.2, 1.0])
    state = solver.init(x)
    value_and_grad = optax.value_and_grad_from_state(rosenbrock)

    @jax.jit
    def step(x, state):
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(
            grad, state, x, value=value, grad=grad, value_fn=rosenbrock, unknown=1
        )
        return optax.apply_updates(x, updates), state

    for _ in range(60):
        x, state = step(x, state)
    np.testing.assert_allclose(x, [1, 1], atol=1e-6)


def test_a_batch_of_chains():
    transform = jaxqn.scale_by_corrected_adam(memory=2)
    scales = jnp.array([1.0, 5.0])

    def last(scale):
        params = [tree(jnp.asarray(p)) for p in POINTS[:3]]
        grads = [tree(scale * jnp.asarray(g)) for g in GRADIENTS[:3]]
        state = transform.init(params[0])
        for p, g in zip(params, grads, strict=True):
            updates, state = transform.update(g, state, p)
        return updates

    batch = jax.vmap(last)(scales)
    for scale, actual in zip(scales, rows(batch), strict=True):
        np.testing.assert_allclose(actual, flat(last(scale)), rtol=1e-9)


@pytest.mark.parametrize("c", [1e-6, 1.0, 1e6])
def test_the_drivers_pairs_have_the_objectives_units(c):
    """y = c B s for a quadratic c xᵀB x/2, whatever unit the run measured gradients in."""
    matrix = jnp.asarray(B)
    result = jaxqn.minimize(
        lambda x, c: 0.5 * c * x @ matrix @ x, jnp.arange(1.0, 5.0), (c,), method="lbfgs"
    )
    S, Y, valid = (np.asarray(part) for part in result.pairs)
    assert valid.sum() > 2
    expected = c * S[valid] @ B
    np.testing.assert_allclose(Y[valid], expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
    s, y = S[valid][-1], Y[valid][-1]
    np.testing.assert_allclose(result.hess_inv_product(jnp.asarray(y)), s, rtol=1e-6)
    with pytest.raises(ValueError, match="hess_inv"):
        _ = jaxqn.minimize(rosenbrock, jnp.ones(2), method="bfgs").pairs
    with pytest.raises(ValueError, match="pairs is for one problem"):
        _ = result._replace(status=result.status[None]).pairs


def test_errors():
    with pytest.raises(ValueError, match="b2"):
        jaxqn.scale_by_corrected_adam(b2=1.0)
    with pytest.raises(ValueError, match="eps"):
        jaxqn.scale_by_corrected_adam(eps=0.0)
    with pytest.raises(TypeError, match="limited memory, but it is a DenseState"):
        jaxqn.inverse_hessian_product(jaxqn.dense().init(jnp.ones(2)), jnp.ones(2))
    with pytest.raises(ValueError, match="m must be at least 1"):
        jaxqn.scale_by_lbfgs(0)
    transform = jaxqn.scale_by_corrected_adam()
    with pytest.raises(ValueError, match="need the parameters"):
        transform.update(jnp.ones(2), transform.init(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"hess_inv0.*shape \(3,\)"):
        jaxqn.scale_by_lbfgs(hess_inv0=jnp.ones(3)).init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"hess_inv0 .*positive"):
        jaxqn.scale_by_lbfgs(hess_inv0=jnp.zeros(2)).init(jnp.ones(2))
    with pytest.raises(ValueError, match="pytree like x0"):
        jaxqn.minimize(rosenbrock, jnp.ones(2), method="lbfgs", hess_inv0={"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="limited-memory method has no matrix"):
        _ = jaxqn.minimize(rosenbrock, jnp.ones(2), method="lbfgs").hess_inv
