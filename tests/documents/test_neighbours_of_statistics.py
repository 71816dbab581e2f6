"""Neighbours beyond networks: statistics, solvers, differential equations, checkpoints, optax."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from neighbours import INPUTS, ROWS, START, TARGETS, largest, loss, minimum, network, row
from scipy.stats import multivariate_normal
from test_migration import table

import jaxqn


def bit_for_bit(tree, other):
    """Whether two trees are equal in structure, dtypes and every bit."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return jax.tree.structure(tree) == jax.tree.structure(other) and all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in pairs
    )


# --- Statistics ------------------------------------------------------------------------------


@row("NumPyro")
def test_numpyro_svi_of_a_linear_model():
    """Against the posterior in closed form: mean, and by Laplace's method covariance."""
    numpyro = pytest.importorskip("numpyro")
    infer = pytest.importorskip("numpyro.infer")
    x = np.linspace(-1, 2, 20)
    y = 2 + 3 * x + 0.3 * np.cos(9 * x)
    prior_scale, noise = 2.0, 0.5

    def model(x, y):
        prior = numpyro.distributions.Normal(0, prior_scale)
        a, b = numpyro.sample("a", prior), numpyro.sample("b", prior)
        numpyro.sample("y", numpyro.distributions.Normal(a + b * x, noise), obs=y)

    guide = infer.autoguide.AutoLaplaceApproximation(model)
    optimizer = numpyro.optim.optax_to_numpyro(jaxqn.bfgs(learning_rate=0.5))
    svi = infer.SVI(model, guide, optimizer, infer.Trace_ELBO())
    run = svi.run(jax.random.key(0), 60, jnp.asarray(x), jnp.asarray(y), progress_bar=False)

    design = np.stack([np.ones_like(x), x], axis=1)
    covariance = np.linalg.inv(design.T @ design / noise**2 + np.eye(2) / prior_scale**2)
    mean = covariance @ design.T @ y / noise**2
    median = guide.median(run.params)
    np.testing.assert_allclose([median["a"], median["b"]], mean, rtol=1e-8)
    found = jax.jit(lambda params: guide.get_posterior(params).covariance_matrix)(run.params)
    np.testing.assert_allclose(found, covariance, rtol=1e-8, atol=1e-12)


@row("NumPyro")
def test_numpyro_svi_of_a_constrained_parameter():
    """A gamma prior and Poisson counts: the mode of the posterior is (alpha − 1)/beta."""
    numpyro = pytest.importorskip("numpyro")
    infer = pytest.importorskip("numpyro.infer")
    counts = np.array([2, 5, 3, 4, 6, 1])

    def model(counts):
        rate = numpyro.sample("rate", numpyro.distributions.Gamma(3.0, 0.5))
        with numpyro.plate("observations", counts.size):
            numpyro.sample("counts", numpyro.distributions.Poisson(rate), obs=counts)

    guide = infer.autoguide.AutoDelta(model)
    optimizer = numpyro.optim.optax_to_numpyro(jaxqn.lbfgs(learning_rate=0.5))
    svi = infer.SVI(model, guide, optimizer, infer.Trace_ELBO())
    run = svi.run(jax.random.key(0), 60, jnp.asarray(counts), progress_bar=False)
    mode = (3.0 + counts.sum() - 1) / (0.5 + counts.size)
    np.testing.assert_allclose(guide.median(run.params)["rate"], mode, rtol=1e-8)


def curved(x):
    """A negative log density, not quite Gaussian."""
    A = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]])
    return x @ A @ x / 2 + 0.1 * jnp.sum((x - 1) ** 4)


@row("BlackJAX")
def test_blackjax_pathfinder_from_the_stored_pairs():
    """Pathfinder's normal: around x − H g, with covariance H, from BlackJAX's own factors."""
    pytest.importorskip("blackjax")
    from blackjax.optimizers import lbfgs
    from blackjax.vi import pathfinder

    result = jaxqn.minimize(curved, jnp.array([1.0, -2.0, 0.5]), method="lbfgs", maxiter=6)
    S, Y, valid = result.pairs
    # One factor for s and y changes no H. BlackJAX adds eps to R, whose diagonal is sᵀy.
    factor = 1 / jnp.sqrt(jnp.sum(S * Y, axis=1, keepdims=True))[valid]
    S, Y = factor * S[valid], factor * Y[valid]
    alpha = jnp.full(3, S[-1] @ Y[-1] / (Y[-1] @ Y[-1]))
    beta, gamma = lbfgs.lbfgs_inverse_hessian_factors(S.T, Y.T, alpha)

    H = jax.vmap(result.hess_inv_product)(jnp.eye(3))
    for formula in (
        lbfgs.lbfgs_inverse_hessian_formula_1,
        lbfgs.lbfgs_inverse_hessian_formula_2,
    ):
        np.testing.assert_allclose(formula(alpha, beta, gamma), H, rtol=1e-9)
    exact = np.linalg.inv(jax.hessian(curved)(result.x))
    np.testing.assert_allclose(H, exact, atol=0.1 * np.linalg.norm(exact, 2))

    state = pathfinder.PathfinderState(
        elbo=jnp.zeros(()),
        position=result.x,
        grad_position=-result.jac,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
    )
    with jax.numpy_rank_promotion("allow"):  # bfgs_sample adds (n, 1) to (samples, n, 1)
        draw = jax.jit(pathfinder.sample, static_argnums=2)
        draws, log_densities = map(np.asarray, draw(jax.random.key(0), state, 2000))
    normal = multivariate_normal(result.x - H @ result.jac, (H + H.T) / 2)
    np.testing.assert_allclose(log_densities, normal.logpdf(draws), rtol=1e-6, atol=1e-6)
    whitened = np.linalg.solve(np.linalg.cholesky(normal.cov), (draws - normal.mean).T)
    np.testing.assert_allclose(np.cov(whitened), np.eye(3), atol=0.15)


# --- Solvers, differential equations, checkpoints ----------------------------------------------


def valley(x, a):
    """Rosenbrock's function; its minimiser is (a, a²)."""
    return 100 * (x[1] - x[0] ** 2) ** 2 + (a - x[0]) ** 2


@row("Optimistix")
def test_optimistix_optax_minimiser():
    """It hands value, gradient and objective on, so that a search works; and it differentiates."""
    optimistix = pytest.importorskip("optimistix")
    solver = optimistix.OptaxMinimiser(jaxqn.bfgs(), rtol=1e-10, atol=1e-10)
    start = jnp.array([-1.2, 1.0])

    def solution(a):
        found = optimistix.minimise(valley, solver, start, a)
        return found.value, found.stats["num_steps"]

    (x, steps), (dx, _) = jax.jvp(solution, (jnp.array(1.5),), (jnp.array(1.0),))
    np.testing.assert_allclose(x, [1.5, 2.25], rtol=1e-8)
    np.testing.assert_allclose(dx, [1.0, 3.0], rtol=1e-6)
    assert steps < 60
    assert steps == steps_of_the_plain_loop(start, 1.5, x)


def steps_of_the_plain_loop(x, a, solution):
    """Steps of the same optimiser until it stands where Optimistix stopped, and one to notice."""
    optimizer = jaxqn.bfgs()

    def objective(x):
        return valley(x, a)

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(objective)(x)
        updates, state = optimizer.update(
            grad, state, x, value=value, grad=grad, value_fn=objective
        )
        return optax.apply_updates(x, updates), state

    state = optimizer.init(x)
    for count in range(1, 100):
        x, state = step(x, state)
        if np.array_equal(x, solution):
            return count
    raise AssertionError("the plain loop goes elsewhere")


CULTURES = np.array([0.1, 0.5, 1.0, 2.0, 4.0, 6.0])


def growth(params, adjoint):
    """Six cultures after a time of 1, by diffrax: logistic growth."""
    diffrax = pytest.importorskip("diffrax")

    def field(t, y, params):
        del t
        return params["rate"] * y * (1 - y / params["capacity"])

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        t0=0.0,
        t1=1.0,
        dt0=0.1,
        y0=jnp.asarray(CULTURES),
        args=params,
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
        max_steps=64,
        adjoint=getattr(diffrax, adjoint)(),
    )
    return solution.ys[0]


def fit_growth(method, adjoint):
    """A fit to the solution in closed form, for the rate 2 and the capacity 3."""

    def objective(params, data):
        return jnp.mean((growth(params, adjoint) - data) ** 2)

    data = 3 / (1 + (3 / CULTURES - 1) * np.exp(-2))
    start = {"rate": jnp.array(1.0), "capacity": jnp.array(2.0)}
    return jaxqn.minimize(objective, start, (jnp.asarray(data),), method=method)


@row("diffrax")
@pytest.mark.parametrize(
    ("method", "adjoint"),
    [
        ("osbfgs", "RecursiveCheckpointAdjoint"),  # diffrax's default
        ("lbfgs", "BacksolveAdjoint"),
        ("newton", "DirectAdjoint"),  # a Hessian is forward over reverse
    ],
)
def test_diffrax(method, adjoint):
    """The solver of the equation picks its steps: values are noisier than their rounding."""
    result = fit_growth(method, adjoint)
    assert result.status in (jaxqn.Status.CONVERGED, jaxqn.Status.STALLED)
    assert result.fun < 1e-10
    np.testing.assert_allclose([result.x["rate"], result.x["capacity"]], [2.0, 3.0], rtol=1e-4)


@row("diffrax")
@pytest.mark.parametrize(
    ("method", "adjoint", "error", "message"),
    [
        ("osbfgs", "ForwardMode", ValueError, "Reverse-mode differentiation does not work"),
        ("newton", "RecursiveCheckpointAdjoint", TypeError, "can't apply forward-mode"),
    ],
)
def test_the_adjoint_must_suit_the_method(method, adjoint, error, message):
    """Gradients are taken in reverse, Hessians forward over reverse; JAX says what does not go."""
    with pytest.raises(error, match=message):
        fit_growth(method, adjoint)


PLACED = jax.device_put(START, jax.devices()[0])
"""The start where Orbax restores to, so that no program is compiled again."""


def saved_and_restored(tree, path):
    """A tree after a journey through Orbax, restored from shapes and dtypes alone."""
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        restored = checkpointer.restore(path, like)
    assert bit_for_bit(restored, tree)
    return restored


@row("Orbax")
@pytest.mark.parametrize("method", ["lbfgs", "osbfgs"])
def test_orbax_saves_a_state_of_minimize(method, tmp_path):
    """Orbax refuses empty arrays, which no state has."""
    stopped = jaxqn.minimize(loss, PLACED, method=method, maxiter=12)
    state = saved_and_restored(stopped.state, tmp_path / "state")
    assert type(state) is type(stopped.state)
    continued = jaxqn.minimize(loss, PLACED, method=method, state=state)
    assert continued.success
    assert bit_for_bit(continued, jaxqn.minimize(loss, PLACED, method=method))


@row("Orbax")
def test_orbax_saves_a_chain_with_a_memory(tmp_path):
    optimizer = optax.chain(
        jaxqn.scale_by_lbfgs(4),
        optax.clip_by_global_norm(1.0),
        optax.scale_by_learning_rate(0.5),
    )

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def walk(params, state):
        for _ in range(10):
            params, state = step(params, state)
        return params, state

    halfway = walk(PLACED, jax.jit(optimizer.init)(PLACED))
    end = walk(*saved_and_restored(halfway, tmp_path / "state"))
    assert bit_for_bit(end, walk(*halfway))
    assert loss(end[0]) < loss(halfway[0]) < loss(START)


# --- Around an optimiser in optax --------------------------------------------------------------


CURVATURES = jnp.array([1.0, 10.0, 100.0])


@row("`optax.contrib.reduce_on_plateau`")
def test_reduce_on_plateau():
    """Twice Newton's step leads to the opposite slope, as high; half of that to the bottom."""
    exact = jaxqn.scale_by_quasi_newton(jaxqn.dense(), hess_inv0=1 / CURVATURES)

    def walk(*last):
        optimizer = optax.chain(exact, optax.scale(-2.0), *last)

        def step(carry, _):
            x, state = carry
            value, grad = jax.value_and_grad(lambda x: CURVATURES @ x**2 / 2)(x)
            updates, state = optimizer.update(grad, state, x, value=value)
            return (optax.apply_updates(x, updates), state), value

        x = jnp.array([1.0, -2.0, 3.0])
        return jax.lax.scan(step, (x, optimizer.init(x)), length=20)[1]

    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=5)
    with jax.numpy_dtype_promotion("standard"):  # it adds a float to an integer
        without, reduced = walk(), walk(plateau)
    np.testing.assert_allclose(without, without[0], rtol=1e-12)
    flat = int(np.argmax(reduced < 0.5 * reduced[0]))
    np.testing.assert_allclose(reduced[:flat], without[0], rtol=1e-12)
    assert 5 <= flat <= 7
    assert reduced[flat] < 1e-20 * reduced[0]


def batch_loss(params, x, t):
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean((network(params, x) - t) ** 2) + 0.1 * penalty


@row("`optax.MultiSteps`")
def test_gradient_accumulation():
    """Four small batches make the step of the large one. MultiSteps adds up in float32 by default:
    pairs in float64 need its ``accumulator_dtype``."""
    optimizer = jaxqn.lbfgs(learning_rate=0.8)
    accumulating = optax.MultiSteps(optimizer, every_k_schedule=4, accumulator_dtype=jnp.float64)
    batches = (
        jnp.asarray(INPUTS).reshape(4, 10, 3),
        jnp.asarray(TARGETS).reshape(4, 10, 1),
    )

    def small(carry, batch):
        params, state = carry
        grad = jax.grad(batch_loss)(params, *batch)
        updates, state = accumulating.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    def large(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), loss(params)

    def epoch(carry, _):
        carry, _ = jax.lax.scan(small, carry, batches)
        return carry, loss(carry[0])

    start = START, accumulating.init(START)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps divides by an integer
        _, accumulated = jax.jit(lambda: jax.lax.scan(epoch, start, length=70))()
    _, together = jax.jit(lambda: jax.lax.scan(large, (START, optimizer.init(START)), length=71))()
    np.testing.assert_allclose(accumulated, together[1:], rtol=1e-8)
    np.testing.assert_allclose(accumulated[-1], minimum().fun, rtol=1e-8)


@row("`optax.ema`, `optax.incremental_update`")
def test_moving_average_of_the_parameters():
    """Beside the optimiser, by either of optax's functions; it damps an oscillation, and the
    optimiser is not touched by it."""
    exact = jaxqn.scale_by_quasi_newton(jaxqn.dense(), hess_inv0=1 / CURVATURES)
    optimizer = optax.chain(exact, optax.scale(-1.9))
    averaging = optax.ema(0.8, accumulator_dtype=jnp.float64)
    start = jnp.array([1.0, -2.0, 3.0])

    def step(carry, _):
        x, state, average, debiased = carry
        updates, state = optimizer.update(CURVATURES * x, state, x)
        x = optax.apply_updates(x, updates)
        average = optax.incremental_update(x, average, step_size=0.2)
        with jax.numpy_dtype_promotion("standard"):  # ema takes a power with an integer
            shown, debiased = averaging.update(x, debiased)
        return (x, state, average, debiased), (x, average, shown)

    carry = (start, optimizer.init(start), start, averaging.init(start))
    _, (path, averages, shown) = jax.lax.scan(step, carry, length=12)
    expected, total = np.asarray(start), np.zeros(3)
    for k in range(12):
        x = (-0.9) ** (k + 1) * np.asarray(start)
        expected, total = 0.8 * expected + 0.2 * x, 0.8 * total + 0.2 * x
        np.testing.assert_allclose(path[k], x, rtol=1e-9)
        np.testing.assert_allclose(averages[k], expected, rtol=1e-9)
        np.testing.assert_allclose(shown[k], total / (1 - 0.8 ** (k + 1)), rtol=1e-9)
    assert largest(shown[-1]) < 0.2 * largest(path[-1])


def test_the_table_has_these_rows():
    """Each row has its tests, in the table's order, and names what exists."""
    rows = table("Neighbours")
    assert [cells[0] for cells in rows] == list(ROWS)
    names = re.findall(r"jaxqn\.(\w+)", " ".join(" ".join(cells) for cells in rows))
    assert [name for name in names if not hasattr(jaxqn, name)] == []
