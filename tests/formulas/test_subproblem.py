"""The step of a trust region beside one by eigenvalues, definite or not, in every setting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from programs import count

from jaxqn import trust_region_step
from jaxqn.formulas import hebden

step_of = jax.jit(trust_region_step, static_argnames="iterations")
KINDS = ["definite", "indefinite", "negative", "singular", "zero"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_size = pytest.mark.parametrize("n", [3, 20])


@functools.cache
def problem(kind, n, seed=0):
    """A matrix of that kind, and a gradient."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.geomspace(0.1, 10, n)
    if kind == "indefinite":
        values[:2] = -2, 0.5
    if kind == "negative":
        values = -values
    if kind == "singular":
        values[0] = 0
    B = Q * values @ Q.T if kind != "zero" else np.zeros((n, n))
    return (B + B.T) / 2, rng.normal(size=n)


def model(B, g, p):
    return g @ p + 0.5 * p @ B @ p


@each_kind
@each_size
def test_it_is_the_minimum_to_a_tenth_of_the_radius(kind, n, dtype):
    """Its equations hold, and its value lies between those of the exact steps around it."""
    tol = 2e-3 if dtype == jnp.float32 else 1e-9
    for seed in range(3):
        B, g = problem(kind, n, seed)
        for radius in (1e-3, 0.3, 1.0, 30.0):
            step = step_of(*(jnp.asarray(a, dtype) for a in (B, g, radius)))
            assert {leaf.dtype for leaf in (step.p, step.mu, step.length)} == {np.dtype(dtype)}
            p, mu = np.asarray(step.p, np.float64), float(step.mu)
            length = np.linalg.norm(p)
            assert np.linalg.norm(B @ p + mu * p + g) <= tol * (1 + mu) * (1 + length)
            assert np.linalg.eigvalsh(B)[0] + mu >= -tol
            assert length <= 1.1 * radius * (1 + tol)
            assert mu == 0 or length >= 0.9 * radius * (1 - tol)
            values = [model(B, g, oracles.trust_region(B, g, c * radius)[1]) for c in (0.9, 1.1)]
            slack = tol * abs(values[0])
            assert values[1] - slack <= model(B, g, p) <= values[0] + slack


def test_a_step_within_the_radius_is_the_full_one():
    B, g = problem("definite", 3)
    full = -np.linalg.solve(B, g)
    for radius in (1.01, 1e6):
        step = step_of(B, g, radius * np.linalg.norm(full))
        assert float(step.mu) == 0
        np.testing.assert_allclose(step.p, full, rtol=1e-12)
        np.testing.assert_allclose(step.length, np.linalg.norm(full), rtol=1e-12)


def test_an_infinite_radius_asks_for_the_damped_step():
    B, g = problem("definite", 3)
    step = step_of(B, g, np.inf, 0.5, iterations=1)
    np.testing.assert_allclose(step.p, -np.linalg.solve(B + 0.5 * np.eye(3), g), rtol=1e-12)
    assert float(step.mu) == 0.5


@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_a_warm_start_on_the_spot_needs_one_factorisation(kind):
    B, g = problem(kind, 3)
    mu, p = oracles.trust_region(B, g, 0.3)
    warm = step_of(B, g, 0.3, mu, iterations=1)
    assert float(warm.mu) == mu
    np.testing.assert_allclose(warm.p, p, rtol=1e-6)
    np.testing.assert_array_equal(step_of(B, g, 0.3, mu).mu, warm.mu)


@pytest.mark.parametrize("guess", [1e-6, 0.1, 3.0, 1e3, 1e9])
def test_any_first_multiplier_will_do(guess):
    for kind in KINDS[:3]:
        B, g = problem(kind, 3)
        p = np.asarray(step_of(B, g, 0.3, guess).p)
        exact = [model(B, g, oracles.trust_region(B, g, c * 0.3)[1]) for c in (0.9, 1.1)]
        assert 0.27 * (1 - 1e-9) <= np.linalg.norm(p) <= 0.33 * (1 + 1e-9)
        assert exact[1] - 1e-9 <= model(B, g, p) <= exact[0] + 1e-9


def test_with_one_iteration_a_long_step_is_shortened():
    B, g = problem("definite", 3)
    full = -np.linalg.solve(B, g)
    step = step_of(B, g, 0.1, iterations=1)
    np.testing.assert_allclose(step.p, 0.1 * full / np.linalg.norm(full), rtol=1e-12)
    np.testing.assert_allclose(step.length, np.linalg.norm(full), rtol=1e-12)
    slightly = np.linalg.norm(full) / 1.4  # left alone
    np.testing.assert_allclose(step_of(B, g, slightly, iterations=1).p, full, rtol=1e-12)


@each_size
def test_with_one_iteration_an_indefinite_matrix_leaves_the_gradient(n):
    B, g = problem("indefinite", n)
    step = step_of(B, g, 0.1, iterations=1)
    assert float(step.least) <= 0
    assert np.isinf(step.length)
    np.testing.assert_allclose(step.p, -0.1 * g / np.linalg.norm(g), rtol=1e-12)


def test_no_gradient_no_step():
    for kind in ("definite", "zero"):
        step = step_of(problem(kind, 3)[0], np.zeros(3), 1.0)
        np.testing.assert_array_equal(step.p, np.zeros(3))


@pytest.mark.parametrize("tilt", [0.0, 1e-14, 1e-6])
def test_the_hard_case_ends_downhill_within_the_radius(tilt):
    """The gradient hardly sees the direction of negative curvature."""
    B, g = np.diag([-1.0, 1.0, 2.0]), np.array([tilt, 1.0, 1.0])
    step = step_of(B, g, 5.0)
    assert float(jnp.linalg.norm(step.p)) <= 1.1 * 5
    assert model(B, g, np.asarray(step.p)) < -0.3
    assert float(step.mu) >= 1


@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize("power", [-26, 26])
def test_units(power, n):
    """B, g → c B, c g scales mu; p → c p with B/c, g, c Δ: the same digits."""
    c = 2.0**power
    for kind in ("definite", "indefinite"):
        B, g = problem(kind, n)
        plain = step_of(B, g, 0.3)
        scaled = step_of(c * B, c * g, 0.3)
        np.testing.assert_array_equal(scaled.p, plain.p)
        np.testing.assert_array_equal(scaled.mu, c * plain.mu)
        longer = step_of(B / c, g, 0.3 * c)
        np.testing.assert_array_equal(longer.p, c * plain.p)


def test_what_a_step_says_of_neighbouring_radii():
    """``fall`` is the derivative, and Hebden's formula finds their multipliers."""
    B, g = problem("definite", 3)
    mu, _ = oracles.trust_region(B, g, 0.3)
    at, beside = (step_of(B, g, 0.3, m, iterations=1) for m in (mu, mu * (1 + 1e-6)))
    slope = -(np.log(beside.length) - np.log(at.length)) / (mu * 1e-6)
    np.testing.assert_allclose(at.fall, slope, rtol=1e-4)
    for radius in (0.28, 0.33):
        found = hebden(at.mu, at.length, at.fall, jnp.asarray(radius))
        np.testing.assert_allclose(found, oracles.trust_region(B, g, radius)[0], rtol=0.01)
    full = step_of(B, g, 1e3)
    assert float(hebden(full.mu, full.length, full.fall, jnp.asarray(1e3))) < 0


@each_size
@pytest.mark.parametrize("radius", [0.1, 1e3])
def test_another_vector_is_solved_for(n, radius):
    B, g = problem("definite", n)
    h = np.arange(1.0, n + 1)
    plain, step = step_of(B, g, radius), step_of(B, g, radius, h=h)
    np.testing.assert_allclose(step.p, plain.p, rtol=1e-12)
    np.testing.assert_array_equal(plain.also, np.zeros(n))
    also = np.linalg.solve(B + float(step.mu) * np.eye(n), h)
    np.testing.assert_allclose(step.also, also, rtol=1e-9)
    L = np.linalg.cholesky(B + float(step.mu) * np.eye(n))
    np.testing.assert_allclose(step.least, np.min(np.diag(L)) ** 2, rtol=1e-9)


def test_few_factorisations():
    """From a cold start, for a matrix that is definite: with 4 iterations the step is the same."""
    for n in (3, 20):
        for seed in range(4):
            B, g = problem("definite", n, seed)
            for radius in (0.01, 0.3, 1.0, 30.0):
                few, many = (step_of(B, g, radius, iterations=i) for i in (4, 20))
                np.testing.assert_array_equal(few.p, many.p)


@each_size
def test_vmap_is_a_loop(n):
    """Lanes that need different numbers of iterations."""
    lanes = [problem(kind, n) for kind in KINDS]
    batch = [np.stack(part) for part in zip(*lanes, strict=True)]
    steps = jax.jit(jax.vmap(trust_region_step, (0, 0, None)))(*batch, 0.5)
    for i, (B, g) in enumerate(lanes):
        alone = step_of(B, g, 0.5)
        np.testing.assert_allclose(steps.p[i], alone.p, rtol=1e-8)
        np.testing.assert_allclose(steps.mu[i], alone.mu, rtol=1e-8)


def test_with_one_iteration_there_is_no_loop_over_multipliers():
    B, g = problem("definite", 20)
    one, more = (
        jax.make_jaxpr(functools.partial(trust_region_step, iterations=i))(B, g, 1.0)
        for i in (1, 3)
    )
    assert (count(one.jaxpr, "while"), count(more.jaxpr, "while")) == (0, 1)
