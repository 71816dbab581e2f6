"""A batch is its problems: the same points, counts and statuses as one by one, lane by lane."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from programs import bodies, count, marked

from jaxqn import Status
from jaxqn.drivers import minimize


def valley(x, data):
    """Rosenbrock's function with its own width and bottom for every lane; NaN if asked for."""
    value = data["width"] * jnp.sum((x[1:] - x[:-1] ** 2) ** 2) + jnp.sum((1 - x[:-1]) ** 2)
    return value + data["offset"] + jnp.where(x[0] < data["edge"], jnp.nan, 0)


LANES = 8


def problems(lanes=LANES):
    """Easy and hard ones, so that their runs are of very different lengths."""
    rng = np.random.default_rng(0)
    data = {
        "width": np.geomspace(1, 300, lanes),
        "offset": np.linspace(0, 1, lanes),
        "edge": np.full(lanes, -np.inf),
    }
    return jnp.asarray(rng.uniform(-2, 2, size=(lanes, 3))), jax.tree.map(jnp.asarray, data)


def lane(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


@functools.cache
def batched(method="osbfgs"):
    """One compiled program; the tolerance and the budgets are per lane."""

    def solve(x, data, gtol, maxiter, maxfun):
        return minimize(
            valley, x, (data,), method=method, gtol=gtol, maxiter=maxiter, maxfun=maxfun
        )

    return jax.jit(jax.vmap(solve))


def options(gtol=1e-8, maxiter=500, maxfun=2000):
    """Per-lane tolerances and budgets, from numbers or from one number a lane."""
    full = functools.partial(np.broadcast_to, shape=(LANES,))
    return full(np.float64(gtol)), full(np.int32(maxiter)), full(np.int32(maxfun))


def assert_lane_is_single(batch, number, single, tol=1e-9, more=0):
    """Points and values up to rounding; status exactly; counters but for so many at the end."""
    together = lane(batch, number)
    assert int(together.status) == int(single.status)
    for field in ("nit", "nfev"):
        assert abs(int(getattr(together, field)) - int(getattr(single, field))) <= more, field
    np.testing.assert_allclose(together.x, single.x, rtol=tol, atol=tol)
    np.testing.assert_allclose(together.fun, single.fun, rtol=tol, atol=tol)


# Rounding is not the same in a batch. On short paths it must not decide anything; at the end of
# long ones it may say which gradient is the first within the tolerance.
@pytest.mark.parametrize(
    ("method", "maxiter"), [("osbfgs", 500), ("osbfgs", 20), ("ssbroyden", 20), ("sr1", 12)]
)
def test_a_batch_is_its_singles(method, maxiter):
    x, data = problems()
    batch = batched(method)(x, data, *options(maxiter=maxiter))
    assert len(set(batch.nfev.tolist())) > 2, "lanes should differ in length"
    assert (maxiter < 500) or bool(jnp.all(batch.success))
    for k in range(LANES):
        single = minimize(valley, x[k], (lane(data, k),), method=method, gtol=1e-8, maxiter=maxiter)
        assert_lane_is_single(batch, k, single, tol=1e-6, more=2 if maxiter == 500 else 0)


def test_a_batch_of_float32():
    x, data = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), problems())
    gtol, maxiter, maxfun = options(gtol=1e-4, maxiter=6)
    batch = batched()(x, data, np.float32(gtol), maxiter, maxfun)
    assert batch.x.dtype == batch.fun.dtype == batch.jac.dtype == jnp.float32
    for k in range(LANES):
        single = minimize(valley, x[k], (lane(data, k),), gtol=1e-4, maxiter=6)
        assert_lane_is_single(batch, k, single, tol=1e-3)


def test_one_lane_that_is_not_finite_poisons_no_other():
    x, data = problems()
    clean = batched()(x, data, *options())
    edge = data["edge"].at[2].set(jnp.inf).at[5].set(float(x[5, 0]) - 0.01)
    ill = batched()(x, data | {"edge": edge}, *options())
    assert Status(int(ill.status[2])) == Status.NON_FINITE
    assert int(ill.nfev[2]) == 1
    assert np.isfinite(ill.fun[5])
    others = [k for k in range(LANES) if k not in (2, 5)]
    for field in ("x", "fun", "jac", "status", "nit", "nfev"):
        np.testing.assert_array_equal(
            np.asarray(getattr(ill, field))[others], np.asarray(getattr(clean, field))[others]
        )


def test_a_lane_does_not_depend_on_its_neighbours():
    """Bit for bit: a finished lane keeps everything it has while others go on."""
    x, data = problems()
    whole = batched()(x, data, *options())
    order = np.array([3, 3, 0, 7, 3, 1, 0, 3])
    other = batched()(x[order], lane(data, order), *options())
    jax.tree.map(np.testing.assert_array_equal, other, lane(whole, order))


def test_tolerances_and_budgets_are_per_lane():
    x, data = problems()
    gtol = np.geomspace(1e-1, 1e-9, LANES)
    maxiter = np.array([500, 500, 500, 500, 500, 500, 3, 500])
    maxfun = np.array([2000, 2000, 2000, 2000, 2000, 2000, 2000, 5])
    batch = batched()(x, data, *options(gtol, maxiter, maxfun))
    slopes = np.max(np.abs(batch.jac), axis=1)
    assert np.all(slopes[:6] <= gtol[:6])
    assert [Status(s) for s in batch.status.tolist()[5:]] == [
        Status.CONVERGED,
        Status.MAX_ITER,
        Status.MAX_FUN,
    ]
    assert (int(batch.nit[6]), int(batch.nfev[7])) == (3, 5)
    for k in range(LANES):
        single = minimize(
            valley,
            x[k],
            (lane(data, k),),
            gtol=gtol[k],
            maxiter=int(maxiter[k]),
            maxfun=int(maxfun[k]),
        )
        assert_lane_is_single(batch, k, single, tol=1e-6)


def test_a_batch_continues_where_it_stopped():
    """Lane by lane, each from its own counters, bit for bit."""
    x, data = problems()
    whole = batched()(x, data, *options(maxfun=40))

    @jax.jit
    @jax.vmap
    def continued(x, data, state, gtol, maxiter, maxfun):
        return minimize(valley, x, (data,), state=state, gtol=gtol, maxiter=maxiter, maxfun=maxfun)

    part = batched()(x, data, *options(maxfun=np.arange(1, LANES + 1)))
    rest = continued(x, data, part.state, *options(maxfun=40))
    for field in ("status", "nit", "nfev"):
        np.testing.assert_array_equal(getattr(rest, field), getattr(whole, field))
    np.testing.assert_allclose(rest.x, whole.x, rtol=1e-9)


def test_a_batch_of_batches():
    """Starts × problems, with the problems' data shared by all starts."""
    x, data = problems(4)
    starts = jnp.stack([x, x[::-1], 0 * x])

    def solve(x, d):
        return minimize(valley, x, (d,), gtol=1e-8)

    nested = jax.jit(jax.vmap(jax.vmap(solve), (0, None)))(starts, data)
    assert nested.x.shape == (3, 4, 3)
    assert bool(jnp.all(nested.success))
    for i, k in ((0, 0), (1, 2), (2, 3)):
        single = minimize(valley, starts[i, k], (lane(data, k),), gtol=1e-8)
        assert_lane_is_single(lane(nested, i), k, single, tol=1e-6)


def test_a_batch_has_its_inverse_hessians():
    """With the batch's axis in front, under JAX's strict settings too."""
    x, data = problems()
    batch = batched()(x, data, *options(maxiter=10))
    single = minimize(valley, x[1], (lane(data, 1),), gtol=1e-8, maxiter=10)
    assert batch.hess_inv.shape == (LANES, 3, 3)
    np.testing.assert_allclose(batch.hess_inv[1], single.hess_inv, rtol=1e-5)


@pytest.mark.parametrize("method", ["osbfgs", "sr1"])
def test_a_batch_is_one_loop_with_one_objective_site(method):
    """No loop in the loop: no lane waits for another's line search, but for its evaluations."""
    solve = functools.partial(minimize, marked(lambda x: jnp.sum((x - 1) ** 4)), method=method)
    jaxpr = jax.make_jaxpr(jax.vmap(solve))(jnp.zeros((5, 3))).jaxpr
    (body,) = bodies(jaxpr)
    multiplier = method == "sr1"  # found by factors, without an evaluation
    assert count(body, "while") == multiplier
    assert count(jaxpr, "marker") == 1


def test_a_batch_may_be_spread_over_devices():
    """Sharded over eight devices, with no change but where the lanes live."""
    mesh = Mesh(np.array(jax.devices()), ("lanes",))
    sharding = NamedSharding(mesh, PartitionSpec("lanes"))
    x, data = problems()
    arguments = (x, data, *options())
    spread = batched()(*jax.device_put(arguments, sharding))
    together = batched()(*arguments)
    assert spread.x.sharding.is_equivalent_to(sharding, spread.x.ndim)
    assert len(spread.status.sharding.device_set) == 8
    for field in ("status", "nit", "nfev"):
        np.testing.assert_array_equal(getattr(spread, field), getattr(together, field))
    np.testing.assert_allclose(spread.x, together.x, rtol=1e-6)
