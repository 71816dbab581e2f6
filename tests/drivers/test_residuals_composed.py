"""Fits under transformations, in batches and streams, over devices, and in chains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fits import TIMES, exponential, peaks

import jaxqn
from jaxqn import Status, least_squares, minimize, minimize_batch, minimize_stream, sum_of_squares

FITS = 16
SQUARES = sum_of_squares(exponential)
METHODS = ["structured", "lm"]
MOST = 200
"""Evaluations, so that no mistake runs for ever."""


@functools.cache
def batch():
    """Starts and data of 16 fits, and bounds, of which some hold."""
    rng = np.random.default_rng(11)
    truth = rng.uniform(0.5, 3.0, (FITS, 3))
    y = truth[:, :1] * np.exp(-truth[:, 1:2] * TIMES) + truth[:, 2:]
    y += 0.01 * rng.normal(size=y.shape)
    low = np.where(rng.uniform(size=truth.shape) < 0.2, truth + 0.1, 0.0)
    return truth * rng.uniform(0.7, 1.4, (FITS, 3)), y, low, low + 5.0


@functools.cache
def singles(method="structured", bounded=False):
    """Every fit alone, one after the other, without the state."""
    x0, y, low, up = batch()

    def alone(case):
        x0, y, low, up = case
        bounds = (low, up) if bounded else None
        result = minimize(SQUARES, x0, (TIMES, y), method=method, bounds=bounds, maxfun=MOST)
        return result._replace(state=None)

    return jax.jit(functools.partial(jax.lax.map, alone))((x0, y, low, up))


def alike(result, expected):
    """Counters included."""
    np.testing.assert_allclose(result.x, expected.x, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(result.fun, expected.fun, rtol=1e-9)
    for name in ("status", "nit", "nfev"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


@pytest.mark.parametrize(("method", "lanes"), [("structured", None), ("structured", 3), ("lm", 5)])
def test_a_batch_is_its_singles(method, lanes):
    x0, y, _, _ = batch()
    options = {"in_axes": (0, None, 0), "method": method, "maxfun": MOST}
    result = minimize_batch(SQUARES, x0, (TIMES, y), lanes=lanes, **options)
    alike(result, singles(method))
    np.testing.assert_array_equal(result.status, Status.CONVERGED)


@pytest.mark.parametrize("method", METHODS)
def test_bounds_over_problems(method):
    x0, y, low, up = batch()
    options = {"in_axes": (0, None, 0, 0), "method": method, "maxfun": MOST}
    result = minimize_batch(SQUARES, x0, (TIMES, y), bounds=(low, up), **options)
    expected = singles(method, bounded=True)
    alike(result, expected)
    assert np.all((result.x >= low) & (result.x <= up))
    np.testing.assert_array_equal(result.active, expected.active)
    assert np.sum(result.active == -1) > 3


def test_a_broken_lane_poisons_no_other():
    x0, y, _, _ = batch()
    y = np.where(np.arange(FITS)[:, None] == 2, np.nan, y)
    result = minimize_batch(SQUARES, x0, (TIMES, y), in_axes=(0, None, 0))
    others = np.arange(FITS) != 2
    assert int(result.status[2]) == Status.NON_FINITE
    np.testing.assert_allclose(result.x[others], singles().x[others], rtol=1e-9)


def test_over_eight_devices():
    x0, y, _, _ = batch()
    mesh = jax.make_mesh((8,), ("fits",))
    result = minimize_batch(SQUARES, x0, (TIMES, y), in_axes=(0, None, 0), mesh=mesh)
    alike(result, singles())
    assert len(result.x.sharding.device_set) == 8


def test_many_starts():
    _, y, _, _ = batch()
    starts = np.random.default_rng(1).uniform(0.2, 4, (FITS, 3))
    found = jaxqn.multi_start(SQUARES, starts, (TIMES, y[0]))
    np.testing.assert_allclose(found.best.x, singles().x[0], rtol=1e-6)


def test_a_stream_is_a_batch():
    x0, y, _, _ = batch()
    result = minimize_stream(SQUARES, x0, (TIMES, y), in_axes=(0, None, 0), chunk=6)
    alike(result, singles())


def solved(x0, y):
    result = least_squares(exponential, x0, (TIMES, y))
    return result._replace(state=None)


def test_jit_vmap_and_vmap_of_vmap():
    """Every field has the axes of the batch, residuals too."""
    x0, y, _, _ = batch()
    once = jax.jit(jax.vmap(solved))(x0, y)
    np.testing.assert_array_equal(once.nfev, singles().nfev)
    np.testing.assert_allclose(once.x, singles().x, rtol=1e-9)
    assert once.residuals.shape == (FITS, TIMES.size)
    twice = jax.jit(jax.vmap(jax.vmap(solved)))(x0.reshape(4, 4, 3), y.reshape(4, 4, -1))
    np.testing.assert_array_equal(twice.nfev.ravel(), once.nfev)
    np.testing.assert_allclose(twice.x.reshape(FITS, 3), once.x, rtol=1e-9)
    assert twice.residuals.shape == (4, 4, TIMES.size)


def test_scan_carries_the_solution():
    """Every fit starts from the last one."""
    _, y, _, _ = batch()

    def step(x, y):
        result = solved(x, y)
        return result.x, (result.x, result.status)

    _, (x, status) = jax.jit(functools.partial(jax.lax.scan, step))(jnp.ones(3), y)
    np.testing.assert_array_equal(status, Status.CONVERGED)
    np.testing.assert_allclose(x, singles().x, rtol=1e-6)


def test_a_state_can_be_donated():
    """A few steps at a time, in place."""
    x0, y, _, _ = batch()
    data = (TIMES, y[0])
    first = least_squares(exponential, x0[0], data, maxiter=0).state

    @functools.partial(jax.jit, donate_argnums=0)
    def further(state, maxiter):
        return least_squares(exponential, x0[0], data, state=state, maxiter=maxiter).state

    state = first
    for maxiter in (2, 4, 100):
        state = further(state, maxiter)
    assert int(state.status) == Status.CONVERGED
    assert int(state.nfev) == int(singles().nfev[0])
    np.testing.assert_allclose(state.point.x, singles().x[0], rtol=1e-12)


def test_it_leaks_no_tracers():
    x0, y, low, up = batch()
    with jax.checking_leaks():
        result = least_squares(exponential, x0[0], (TIMES, y[0]), bounds=(low[0], up[0]))
    assert bool(result.success)


def test_it_makes_no_nan():
    """Neither alone nor among lanes that have ended."""
    x0, y, low, up = batch()
    with jax.debug_nans(True):
        for method in METHODS:
            result = least_squares(exponential, x0[0], (TIMES, y[0]), method=method)
            assert bool(result.success)
        bounds = {"in_axes": (0, None, 0, 0), "bounds": (low, up)}
        assert np.all(minimize_batch(SQUARES, x0, (TIMES, y), **bounds).success)


def test_two_peaks(dtype):
    """Six parameters, of which the centres are hard; all starts end at the same minimum."""
    rng = np.random.default_rng(2)
    t = np.linspace(0.0, 10.0, 60).astype(dtype)
    truth = np.array([2.0, 1.0, 3.0, 6.5, 0.8, 1.2], dtype)
    y = np.asarray(peaks(truth, t, 0)) + 0.01 * rng.normal(size=60).astype(dtype)
    x0 = (truth * rng.uniform(0.85, 1.15, (FITS, 6))).astype(dtype)
    result = minimize_batch(sum_of_squares(peaks), x0, (t, y), in_axes=(0, None, None))
    assert result.x.dtype == dtype
    np.testing.assert_array_equal(result.status, Status.CONVERGED)
    tol = 1e-3 if dtype == jnp.float32 else 1e-8
    np.testing.assert_allclose(result.x - result.x[:1], 0, atol=tol)
    assert int(jnp.max(result.nfev)) <= 25


# As a function in a chain


def valley(x):
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def hand_written(x):
    return 50 * (x[1] - x[0] ** 2) ** 2 + 0.5 * (1 - x[0]) ** 2


def test_a_chain_takes_it_for_its_function():
    """The points of the same function written by hand."""
    solver = optax.chain(jaxqn.scale_by_osbfgs(), optax.scale(-1.0), jaxqn.scale_by_linesearch())

    def walk(fun):
        def step(carry, _):
            x, state = carry
            value, grad = jax.value_and_grad(fun)(x)
            updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fun)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        x0 = jnp.array([-1.2, 1.0])
        return jax.lax.scan(step, (x0, solver.init(x0)), length=12)[1]

    np.testing.assert_allclose(walk(sum_of_squares(valley)), walk(hand_written), rtol=1e-8)
