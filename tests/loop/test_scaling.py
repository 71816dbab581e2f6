"""Units of the parameters: given, taken from x0, and nowhere to be seen in the results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqn
from jaxqn import Status
from jaxqn.drivers import minimize
from jaxqn.loop.units import MAX_AUTOMATIC, automatic

UNITS = np.array([2.0**10, 2.0**-10, 1.0, 2.0**-20])
"""Powers of two: a run over x / UNITS by hand then has the same digits."""


def valley(z):
    """The chained Rosenbrock function of four variables; its minimum is 0, at ones."""
    return jnp.sum(100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2)


def measured(x):
    """The same of parameters six decades apart."""
    return valley(x / jnp.asarray(UNITS, x.dtype))


def bowl(x, matrix):
    """A quadratic with parameters in these units."""
    z = x / jnp.asarray(UNITS, x.dtype)
    return 0.5 * z @ matrix.astype(x.dtype) @ z - jnp.sum(z)


MATRIX = jnp.asarray(np.diag([1.0, 2.0, 3.0, 4.0]) + 0.3)
SPREAD = 0.9 * UNITS  # the units that it gives are UNITS


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# The units that x0 gives


@pytest.mark.parametrize(
    ("x0", "expected"),
    [
        ([500.0, 1e-4], [512.0, 2.0**-13]),
        ([-500.0, 0.0, 1e-4], [512.0, 1.0, 2.0**-13]),
        # cos(π/2) of float64 beside 1, in whatever unit.
        ([1e3, 1e-3, 6e-17 * 1e3], [1024.0, 2.0**-10, 1.0]),
        ([1.0, 2.0, 30.0], [1.0, 1.0, 1.0]),
        # A softplus of free parameters beside the parameters themselves.
        ([200.0, -1.05, 5.0], [256.0, 1.0, 4.0]),
        # Less than two decades between two, or one parameter alone, tells nothing; nor do zeros.
        ([10.0, 0.2], [1.0, 1.0]),
        ([1e-9], [1.0]),
        ([0.0, 0.0, 1e7], [1.0, 1.0, 1.0]),
        ([0.0, 0.0], [1.0, 1.0]),
        ([np.nan, 1e-6, 1e6], [1.0, 1.0, 1.0]),
        ([np.inf, 1e-6, 1e6], [1.0, 1.0, 1.0]),
        ([1e7, 1e-8], [2.0**23, 2.0**-27]),
    ],
)
def test_units_from_a_start(x0, expected, dtype):
    units = automatic(jnp.asarray(x0, dtype))
    assert units.dtype == dtype
    np.testing.assert_array_equal(units, np.asarray(expected, dtype))


def test_units_are_those_of_all_leaves_together(dtype):
    x0 = {"a": jnp.full((), 3e4, dtype), "b": jnp.full((2, 2), 1e-3, dtype)}
    units = automatic(x0)
    assert_equal(units, {"a": np.float64(2.0**15), "b": np.full((2, 2), 2.0**-10)})
    assert_equal(automatic({"b": x0["b"]}), {"b": np.ones((2, 2))})


@pytest.mark.parametrize("n", [3, 10, 100])
def test_starts_of_one_unit_stay_as_they_are(n, rng):
    """Random ones of any size, ramps and alternations: none of them may change a run."""
    for size in (1e-5, 1.0, 1e5):
        starts = [rng.normal(size=n), rng.uniform(size=n), rng.uniform(-1, 1, size=n)]
        starts += [np.arange(1.0, n + 1), np.arange(n) / n, (-1.2) ** np.arange(n)][:2]
        for start in starts:
            np.testing.assert_array_equal(automatic(jnp.asarray(size * start)), 1)


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs"])
def test_the_default_is_for_models(method):
    """Of more parameters than a model has, no units are taken, and none are held."""

    def fun(x):
        return jnp.sum((x - 1) ** 2)

    many = jnp.geomspace(1e-4, 1e4, MAX_AUTOMATIC + 1)
    assert minimize(fun, many, method=method, maxiter=1).state.x_scale is None
    few = minimize(fun, many[1:], method=method, maxiter=1)
    np.testing.assert_array_equal(few.state.x_scale, automatic(many[1:]))
    assert float(jnp.max(few.state.x_scale)) == 2.0**13


# The run


def in_units(x, units):
    """The valley of x / units: one program, whatever they are."""
    return valley(x / units)


@pytest.mark.parametrize("method", ["osbfgs", "newton", "lbfgs"])
def test_a_run_in_units_is_the_run_over_z(method, dtype):
    """Digit by digit, whichever way it came by its units."""
    z0 = jnp.asarray([-1.2, 1.0, -1.2, 1.0], dtype)
    u = jnp.asarray(UNITS, dtype)
    by_hand = minimize(in_units, z0, (jnp.ones_like(u),), method=method, x_scale=1.0)
    assert by_hand.status == Status.CONVERGED
    assert by_hand.fun < 1e-9
    for options in ({"x_scale": UNITS}, {"x_scale": 1.2 * u}, {}):
        result = minimize(in_units, u * z0, (u,), method=method, **options)
        assert_equal(result.x / u, by_hand.x)
        assert_equal(result.jac * u, by_hand.jac)
        for field in ("fun", "status", "nit", "nfev"):
            assert_equal(getattr(result, field), getattr(by_hand, field))


def test_float32_needs_them():
    """Without, rounding in the steep direction hides what the others have to give."""
    x0 = jnp.asarray(UNITS * np.array([-1.2, 1.0, -1.2, 1.0]), jnp.float32)
    assert minimize(measured, x0, x_scale=1.0).fun > 1
    assert minimize(measured, x0).fun < 1e-9


def test_one_number_is_for_all():
    """It moves what float32 can see: changes below 1e-15 are none, as their squares are not."""

    def tiny(x):
        return valley(x * 1e22)

    x0 = jnp.asarray([-1.2e-22, 1e-22], jnp.float32)
    assert not minimize(tiny, x0, x_scale=1.0).success
    assert minimize(tiny, x0).success  # the first gradient shows the size of x
    result = minimize(tiny, x0, x_scale=1e-22)
    assert result.success
    np.testing.assert_allclose(result.x * 1e22, 1, rtol=1e-3)
    assert_equal(minimize(tiny, x0, x_scale=np.full(2, 1e-22)).x, result.x)


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs"])
@pytest.mark.parametrize("gtol", [1e2, 1e-3])
def test_gtol_is_in_the_users_units(method, gtol):
    """The steepest entry is a million times that of the others, and decides."""
    x0 = jnp.asarray(UNITS * np.array([-1.2, 1.0, -1.2, 1.0]))
    result = minimize(measured, x0, method=method, gtol=gtol)
    assert result.status == Status.CONVERGED
    np.testing.assert_allclose(result.jac, jax.grad(measured)(result.x), rtol=1e-9)
    assert jnp.max(jnp.abs(result.jac)) <= gtol
    before = minimize(measured, x0, method=method, gtol=gtol, maxiter=result.nit - 1)
    assert before.status == Status.MAX_ITER
    assert jnp.max(jnp.abs(before.state.point.g * before.state.g_scale / UNITS)) > gtol


# What a result says of curvature


@pytest.mark.parametrize("method", ["osbfgs", "bfgs", "sr1", "newton", "lbfgs"])
def test_the_inverse_hessian_is_in_the_users_units(method):
    result = minimize(bowl, jnp.asarray(SPREAD), (MATRIX,), method=method)
    assert_equal(automatic(jnp.asarray(SPREAD)), UNITS)
    assert result.success
    H = np.asarray(jax.vmap(result.hess_inv_product)(jnp.diag(1 / jnp.asarray(UNITS)))) / UNITS
    np.testing.assert_allclose(H, np.linalg.inv(MATRIX), atol=0.05)
    if method != "lbfgs":
        scaled = result.hess_inv / np.outer(UNITS, UNITS)
        np.testing.assert_allclose(scaled, H, rtol=1e-9, atol=1e-12)


def test_pairs_are_in_the_users_units():
    result = minimize(bowl, jnp.asarray(SPREAD), (MATRIX,), method="lbfgs")
    S, Y, valid = (np.asarray(part) for part in result.pairs)
    s, y = S[valid] / UNITS, Y[valid] * UNITS
    assert len(s) > 2
    np.testing.assert_allclose(y, s @ MATRIX, rtol=1e-6, atol=1e-9 * np.abs(y).max())


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs", "sr1"])
def test_a_product_of_any_structure(method):
    """Like x, of a pytree, and of a limited memory the same as from its pairs."""

    def fun(x):
        return bowl(jnp.concatenate([x["a"], x["b"].ravel()]), MATRIX)

    x0 = {"a": jnp.asarray(SPREAD[:2]), "b": jnp.asarray(SPREAD[2:]).reshape(1, 2)}
    result = minimize(fun, x0, method=method, maxiter=4)
    v = {"a": jnp.asarray([1.0, 1e3]), "b": jnp.asarray([[-1.0, 1e6]])}
    product = result.hess_inv_product(v)
    assert jax.tree.map(jnp.shape, product) == jax.tree.map(jnp.shape, x0)
    flat = jaxqn.minimize(bowl, jnp.asarray(SPREAD), (MATRIX,), method=method, maxiter=4)
    expected = flat.hess_inv_product(jnp.asarray([1.0, 1e3, -1.0, 1e6]))
    actual = jnp.concatenate([product["a"], product["b"].ravel()])
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="one problem"):
        result._replace(status=result.status[None]).hess_inv_product(v)


@pytest.mark.parametrize(
    ("method", "H0"),
    [
        ("osbfgs", np.linalg.inv(MATRIX) * np.outer(UNITS, UNITS)),
        ("bfgs", UNITS**2 / np.diag(MATRIX)),
        ("lbfgs", UNITS**2 / np.diag(MATRIX)),
    ],
)
def test_a_matrix_to_start_from_is_in_the_users_units(method, H0):
    """The same run with and without units: an exact inverse needs one step."""
    x0 = jnp.asarray(SPREAD)
    plain = minimize(bowl, x0, (MATRIX,), method=method, hess_inv0=H0)
    # Who gives a matrix says by it what the units are.
    if method != "lbfgs":
        assert_equal(plain.state.x_scale, np.ones(4))
    given = minimize(bowl, x0, (MATRIX,), method=method, hess_inv0=H0, x_scale=UNITS)
    assert given.success
    assert given.nit <= (1 if H0.ndim == 2 else 12)
    np.testing.assert_allclose(given.x, np.linalg.solve(MATRIX, np.ones(4)) * UNITS, rtol=1e-6)
    first = minimize(bowl, x0, (MATRIX,), method=method, hess_inv0=H0, x_scale=UNITS, maxiter=0)
    diagonal = np.diag(H0) if H0.ndim == 2 else H0
    actual = jax.vmap(first.hess_inv_product)(jnp.eye(4))
    np.testing.assert_allclose(np.diag(actual), diagonal, rtol=1e-9)


# Continuing, batches, streams


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs"])
def test_it_continues_in_its_units(method):
    x0 = jnp.asarray(UNITS * np.array([-1.2, 1.0, -1.2, 1.0]))
    whole = minimize(measured, x0, method=method)
    part = minimize(measured, x0, method=method, maxiter=7)
    assert_equal(minimize(measured, jnp.ones(4), method=method, state=part.state), whole)
    with pytest.raises(ValueError, match=r"x_scale.*continues"):
        minimize(measured, x0, method=method, state=part.state, x_scale=UNITS)


@pytest.fixture(scope="module")
def starts():
    """Starts that give units, others that give other ones, and one that gives none."""
    z = np.array([[-1.2, 1.0, -1.2, 1.0], [0.5, 2.0, 1.5, -0.5]])
    return jnp.asarray(np.concatenate([UNITS * z, 1e3 * UNITS * z, np.ones((1, 4))]))


SAME = ("x", "fun", "jac", "status", "nit", "nfev")


FEW = 12
"""Iterations after which rounding, which is not the same in a batch, has not grown much."""


def singles(starts, **options):
    runs = [minimize(measured, x0, maxiter=FEW, **options) for x0 in starts]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[r._replace(state=0) for r in runs])


@pytest.mark.parametrize("options", [{}, {"x_scale": UNITS}], ids=["their own", "given"])
def test_batches_and_vmap_have_the_units_of_every_problem(starts, options):
    expected = singles(starts, **options)
    solve = functools.partial(minimize, measured, maxiter=FEW, **options)
    batch = jaxqn.minimize_batch(measured, starts, maxiter=FEW, lanes=2, **options)
    for result in (batch, jax.vmap(solve)(starts)):
        assert_equal(result.nfev, expected.nfev)
        assert_equal(result.status, expected.status)
        np.testing.assert_allclose(result.x, expected.x, rtol=1e-6)
        scale = np.abs(expected.jac).max(axis=1, keepdims=True)
        np.testing.assert_allclose(result.jac / scale, expected.jac / scale, atol=1e-6)
    several = jaxqn.multi_start(measured, starts, maxiter=FEW, lanes=2, **options)
    for field in SAME:
        assert_equal(getattr(several.runs, field), getattr(batch, field))


def test_a_start_that_never_ran_is_itself(starts):
    several = jaxqn.multi_start(measured, starts, target=np.inf, lanes=1)
    never = several.runs.nfev == 0
    assert never.sum() >= 3
    assert_equal(several.runs.x[never], starts[never])


def test_a_stream_has_them_and_remembers_them(starts, tmp_path):
    numbers = np.asarray(starts)
    stream = functools.partial(jaxqn.minimize_stream, measured, numbers, chunk=2, maxiter=30)
    batch = jaxqn.minimize_batch(measured, starts, maxiter=30, x_scale=UNITS)
    streamed = stream(x_scale=UNITS, folder=tmp_path)
    for field in SAME:
        np.testing.assert_allclose(getattr(streamed, field), getattr(batch, field), rtol=1e-9)
    assert_equal(stream(x_scale=UNITS, folder=tmp_path).x, streamed.x)
    with pytest.raises(ValueError, match="holds the results of another call"):
        stream(x_scale=2 * UNITS, folder=tmp_path)
    with pytest.raises(ValueError, match=r"x_scale.*positive"):
        stream(x_scale=-UNITS)
