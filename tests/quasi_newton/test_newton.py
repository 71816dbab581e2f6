"""Newton's method with the spectral correction: in the driver and as an optax transformation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmarks.newton import least_squares, logistic, saddle
from programs import TraceCounter, count, marked, product_shapes

import jaxqn
from jaxqn import Status
from jaxqn.drivers import minimize

RNG = np.random.default_rng(0)
TALL = RNG.normal(size=(30, 3))
RANK_DEFICIENT = np.column_stack([TALL, TALL[:, 0]])  # the last column repeats the first
TARGETS = RNG.normal(size=30)
SEPARABLE = RNG.normal(size=(40, 3))
LABELS = np.sign(SEPARABLE[:, 0] + 0.2 * SEPARABLE[:, 1])


def plain_newton(fun, x, *args, steps):
    """Newton's method with a solve, in NumPy."""
    gradient, hessian = jax.jit(jax.grad(fun)), jax.jit(jax.hessian(fun))
    for _ in range(steps):
        g, B = np.asarray(gradient(x, *args)), np.asarray(hessian(x, *args))
        try:
            x = x - np.linalg.solve(B, g).astype(x.dtype)
        except np.linalg.LinAlgError:
            return np.full_like(x, np.nan)
    return x


def newton(fun, x0, args=(), **options):
    return minimize(fun, x0, args, method="newton", **options)


# The driver


@pytest.mark.parametrize("mode", ["reflect", "clip", "drop"])
def test_it_leaves_a_saddle(mode, dtype):
    """Plain Newton goes to the saddle, where it converges; the correction goes round it."""
    x0 = np.array([1.0, 1e-3], dtype)
    assert np.abs(plain_newton(saddle, x0, steps=20)).max() < 1e-6
    result = minimize(saddle, x0, method=jaxqn.corrected_newton(mode=mode))
    assert result.status == Status.CONVERGED
    np.testing.assert_allclose(np.abs(result.x), [0, np.sqrt(0.5)], atol=1e-3)
    assert float(result.fun) == pytest.approx(-0.25, abs=1e-6)
    approx = result.state.approx
    plain, corrected = approx.absorbed, approx.refused
    assert corrected >= 1
    assert plain + corrected == result.nit + 1  # one Hessian at x0, and one per step


def test_a_rank_deficient_least_squares_problem(dtype):
    """In two iterations or so to the residual of NumPy's lstsq; a solve with AᵀA is impossible."""
    A, b = RANK_DEFICIENT.astype(dtype), TARGETS.astype(dtype)
    result = newton(least_squares, np.ones(4, dtype), (A, b), gtol=1e-3)
    assert bool(result.success)
    assert result.nit <= 4
    w, *_ = np.linalg.lstsq(RANK_DEFICIENT, TARGETS, rcond=None)
    assert float(result.fun) == pytest.approx(0.5 * np.sum((RANK_DEFICIENT @ w - TARGETS) ** 2))
    plain = plain_newton(least_squares, np.ones(4, dtype), A, b, steps=1)
    assert np.all(np.isnan(plain))


def test_separable_data(dtype):
    """The infimum 0 is at infinity and the Hessian vanishes on the way; plain Newton overshoots."""
    x0, args = np.full(3, -1, dtype), (SEPARABLE.astype(dtype), LABELS.astype(dtype))
    result = newton(logistic, x0, args)
    assert int(result.status) in (
        jaxqn.Status.CONVERGED,
        jaxqn.Status.STALLED,
    )  # to the smallest numbers
    assert float(result.fun) < 1e-5 * np.log(2)
    assert np.all(np.isfinite(result.x))
    assert np.all(np.sign(SEPARABLE @ np.asarray(result.x, np.float64)) == LABELS)
    assert np.all(np.isnan(plain_newton(logistic, x0, *args, steps=10)))


def test_quadratic_convergence():
    """Digits double once it is close: the last gradient is about the square of the one before."""
    norms = []
    newton(
        lambda x: jnp.sum(jnp.exp(x) - x) + 0.1 * jnp.sum(x[1:] * x[:-1]),
        np.ones(5),
        callback=lambda result: norms.append(float(jnp.max(jnp.abs(result.jac)))),
    )
    small = [norm for norm in norms if norm < 1e-2]
    assert len(small) >= 2
    assert all(after < 10 * before**1.9 for before, after in itertools.pairwise(small))


def test_a_second_site_and_no_more():
    """Value and gradient in one place, the Hessian in another."""
    jaxpr = jax.make_jaxpr(functools.partial(newton, marked(saddle)))(jnp.zeros(2)).jaxpr
    quasi = jax.make_jaxpr(functools.partial(minimize, marked(saddle)))(jnp.zeros(2)).jaxpr
    hessian = jax.make_jaxpr(jax.hessian(marked(saddle)))(jnp.zeros(2)).jaxpr
    assert count(jaxpr, "marker") == count(quasi, "marker") + count(hessian, "marker")
    assert count(quasi, "marker") == 1
    assert count(quasi, "eigh") == 0
    assert any((2, 2) in shapes for shapes in product_shapes(jaxpr))


def test_a_batch_equals_its_singles():
    starts = jnp.array([[1.0, 1e-3], [0.5, -2.0], [0.0, 0.0], [jnp.nan, 1.0], [3.0, 0.1]])
    batch = jax.vmap(functools.partial(newton, saddle))(starts)
    for i, x0 in enumerate(starts):
        single = newton(saddle, x0)
        for field in ("status", "nit", "nfev"):
            assert getattr(batch, field)[i] == getattr(single, field), (i, field)
        np.testing.assert_allclose(batch.x[i], single.x, rtol=1e-12, atol=1e-12)
    assert batch.status[3] == Status.NON_FINITE


@pytest.mark.parametrize("c", [1e-8, 1e8])
def test_the_scale_of_the_objective_is_no_matter(c, dtype):
    x0 = np.array([1.0, 1e-3], dtype)
    plain, scaled = newton(saddle, x0), newton(lambda x: dtype(c) * saddle(x), x0)
    assert (plain.status, plain.nit, plain.nfev) == (scaled.status, scaled.nit, scaled.nfev)
    np.testing.assert_allclose(plain.x, scaled.x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(plain.hess_inv, c * scaled.hess_inv, rtol=1e-3, atol=1e-5)


def test_a_hessian_that_is_not_finite_counts_as_the_identity():
    """The second derivative of |x|^1.5 at 0 is infinite: the first step goes along −g."""

    def fun(x):
        return jnp.sum(jnp.abs(x) ** 1.5) + x[0] + 2 * x[1]

    first = newton(fun, jnp.zeros(2), maxiter=1)
    np.testing.assert_allclose(first.x[1], 2 * first.x[0])
    assert first.x[0] < 0
    last = newton(fun, jnp.zeros(2))
    assert last.status == Status.CONVERGED
    np.testing.assert_allclose(last.x, [-4 / 9, -16 / 9])


def test_it_continues_exactly():
    x0 = jnp.array([1.0, 1e-3])
    first = newton(saddle, x0, maxiter=2)
    then, whole = newton(saddle, x0, state=first.state), newton(saddle, x0)
    for a, b in zip(jax.tree.leaves(then), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", ["newton", jaxqn.newton_trust_region()], ids=["line", "region"])
def test_a_refused_trial_changes_no_curvature(method):
    """No Hessian is made there: the roots of the diagonal of the last one stay."""

    def banana(x):
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    refused, result = 0, minimize(banana, np.array([-1.2, 1.0]), method=method, maxfun=1)
    while result.status == Status.MAX_FUN:
        before = result
        again = dict(state=before.state, maxfun=before.nfev + 1)
        result = minimize(banana, before.x, method=method, **again)
        roots, old = (r.state.scales.curvature * r.state.g_scale**0.5 for r in (result, before))
        if result.nit == before.nit:
            refused += 1
            np.testing.assert_allclose(roots, old, rtol=1e-12)
        else:
            expected = np.sqrt(np.abs(np.diag(jax.hessian(banana)(result.x))))
            np.testing.assert_allclose(roots, expected, rtol=1e-6)
    assert refused > 0


def test_an_initial_inverse_is_for_quasi_newton_methods():
    with pytest.raises(ValueError, match="hess_inv0 starts a quasi-Newton method"):
        newton(saddle, jnp.ones(2), hess_inv0=np.eye(2))


@pytest.mark.parametrize("method", ["bfgs", "osbfgs", "sr1"])
def test_a_quasi_newton_method_starts_from_the_corrected_inverse(method):
    """It does not start along −g, and needs no more evaluations than from the identity."""

    def fun(x):
        return jnp.sum(jnp.array([1e-4, 1.0, 100.0]) * (jnp.cosh(x) - 1))

    x0 = jnp.array([2.0, -1.0, 0.5])
    H0 = jaxqn.spectral_inverse(jaxqn.derivatives.hessian(fun)(x0), rank="all")
    informed = minimize(fun, x0, method=method, hess_inv0=H0)
    plain = minimize(fun, x0, method=method)
    assert bool(informed.success)
    assert informed.nfev < plain.nfev


# The optax transformation


@pytest.mark.parametrize("c", [1e-8, 1.0, 1e8])
def test_the_transformation_is_the_corrected_inverse_times_the_updates(c, dtype):
    def fun(p, weight):
        return weight * (saddle(p["a"]) + p["b"] ** 2 + p["a"][0] * p["b"])

    params = {"a": jnp.array([1.0, 0.1], dtype), "b": jnp.array(2.0, dtype)}
    data = {"weight": jnp.array(c, dtype)}
    transform = jaxqn.scale_by_newton(mode="reflect")
    grads = jax.grad(fun)(params, **data)
    updates, state = transform.update(
        grads, transform.init(params), params, value_fn=fun, **data, unknown=3
    )
    B = np.asarray(jaxqn.derivatives.hessian(fun)(params, data["weight"]), np.float64)
    values, vectors = np.linalg.eigh(B)
    g = np.append(np.asarray(grads["a"]), np.asarray(grads["b"])).astype(np.float64)
    expected = vectors @ ((vectors.T @ g) / np.abs(values))
    actual = np.append(np.asarray(updates["a"]), np.asarray(updates["b"]))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert (int(state.corrected), int(state.dropped)) == (1, 0)
    np.testing.assert_allclose([state.smallest, state.largest], values[[0, -1]], rtol=1e-4)
    assert updates["a"].dtype == dtype


@pytest.mark.parametrize("linesearch", [None, ...], ids=["learning rate", "line search"])
def test_the_chain_solves_the_saddle(linesearch):
    solver = jaxqn.newton(1.0, linesearch=linesearch)

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(saddle)(x)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=saddle)
        return optax.apply_updates(x, updates), state

    x = jnp.array([1.0, 1e-2])
    state = solver.init(x)
    for _ in range(30):
        x, state = step(x, state)
    np.testing.assert_allclose(np.abs(x), [0, np.sqrt(0.5)], atol=1e-6)


def test_an_eager_loop_compiles_once():
    fun = TraceCounter(saddle)
    transform, x = jaxqn.scale_by_newton(), jnp.array([1.0, 0.5])
    state = transform.init(x)
    for _ in range(3):
        updates, state = transform.update(jax.grad(saddle)(x), state, x, value_fn=fun)
        x = x - updates
    assert fun.traces == 1


def test_updates_or_hessians_that_are_not_finite_pass():
    transform, x = jaxqn.scale_by_newton(), jnp.array([0.0, 2.0])
    bad = jnp.array([jnp.nan, 1.0])
    updates, _ = transform.update(bad, transform.init(x), x, value_fn=saddle)
    np.testing.assert_array_equal(updates, bad)
    good = jnp.array([3.0, 1.0])
    updates, state = transform.update(
        good, transform.init(x), x, value_fn=lambda x: jnp.sum(jnp.abs(x) ** 1.5)
    )
    np.testing.assert_array_equal(updates, good)
    assert np.isnan(state.smallest)


def test_half_precision_parameters():
    transform, x = jaxqn.scale_by_newton(), jnp.array([3.0, 4.0], jnp.bfloat16)
    updates, state = transform.update(
        jnp.array([6.0, 16.0], jnp.bfloat16),
        transform.init(x),
        x,
        value_fn=lambda x: x[0] ** 2 + 2 * x[1] ** 2,
    )
    assert updates.dtype == jnp.bfloat16
    assert state.largest.dtype == jnp.float32
    np.testing.assert_allclose(updates.astype(jnp.float32), [3.0, 4.0], rtol=1e-2)


def test_errors():
    x = jnp.ones(2)
    transform = jaxqn.scale_by_newton()
    state = transform.init(x)
    with pytest.raises(TypeError, match=r"but value_fn= is missing: call update\(grads, state"):
        transform.update(x, state, x)
    with pytest.raises(ValueError, match="needs the parameters"):
        transform.update(x, state, value_fn=saddle)
    with pytest.raises(ValueError, match="mode"):
        jaxqn.scale_by_newton(mode="ignore")
    with pytest.raises(ValueError, match="one dtype"):
        transform.init({"a": np.ones(2, np.float32), "b": np.ones(2)})
    with pytest.raises(ValueError, match=r"jaxqn\.scale_by_newton"):
        jaxqn.scale_by_quasi_newton(jaxqn.corrected_newton())
    masked = optax.masked(jaxqn.scale_by_newton(), {"a": True, "b": False})
    params = {"a": x, "b": x}
    with pytest.raises(ValueError, match="masked parameters"):
        masked.update(params, masked.init(params), params, value_fn=lambda p: jnp.sum(p["a"]))
