"""The problems are what they claim to be; a solver's test on a wrong problem proves nothing."""

import jax
import numpy as np
import pytest
from problems import (
    NAMES,
    PROBLEMS,
    QUADRATIC_HESSIAN,
    QUADRATIC_SOLUTION,
    SIZE,
    by_name,
    numbered,
    numbered_start,
)
from scipy.optimize import rosen, rosen_der, rosen_hess

# Published values at the published starts; the last three from the definitions, in NumPy.
START_VALUES = {
    "rosenbrock": 24.2,
    "rosenbrock10": 5 * 24.2 + 4 * 484,
    "beale": 14.203125,
    "wood": 19192.0,
    "powell_singular": 215.0,
    "logistic": np.log(2),
    "quartic": (0.0001 + 0.0016 + 0.0081 + 0.00000625) / 4 - (0.01 + 0.04 + 0.09 + 0.0025) / 2,
    "quadratic": QUADRATIC_SOLUTION @ QUADRATIC_HESSIAN @ QUADRATIC_SOLUTION / 2 - 7,
}
CONSTANT_HESSIAN = {"quadratic"}
SINGULAR_HESSIAN = {"powell_singular"}

value_and_grad = jax.jit(jax.value_and_grad(numbered))
hessian = jax.jit(jax.hessian(numbered))


def at(problem, x):
    """Value, gradient and Hessian of a problem at a point of its own size."""
    n = problem.x0.size
    args = (np.concatenate([x, np.zeros(SIZE - n)]), np.int32(NAMES.index(problem.name)), 1.0)
    value, grad = value_and_grad(*args)
    return float(value), np.asarray(grad)[:n], np.asarray(hessian(*args))[:n, :n]


each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=NAMES)


@each_problem
def test_value_at_the_start_is_the_published_one(problem):
    expected = START_VALUES[problem.name]
    assert at(problem, problem.x0)[0] == pytest.approx(expected, rel=1e-14)


@each_problem
def test_solution_is_a_minimum_of_the_stated_value(problem):
    value, gradient, curvature = at(problem, problem.solution)
    slope_at_start = np.max(np.abs(at(problem, problem.x0)[1]))
    assert value == pytest.approx(problem.minimum, abs=1e-14)
    assert np.max(np.abs(gradient)) <= 1e-13 * slope_at_start
    smallest, *_, largest = np.linalg.eigvalsh(curvature)
    if problem.name in SINGULAR_HESSIAN:
        assert abs(smallest) < 1e-12 * largest
    else:
        assert smallest > 1e-7 * largest


@each_problem
def test_gradient_is_the_slope_of_the_value(problem):
    rng = np.random.default_rng(0)
    direction = rng.normal(size=problem.x0.size)
    step = 1e-5
    forward, backward = (at(problem, problem.x0 + t * direction)[0] for t in (step, -step))
    slope = at(problem, problem.x0)[1] @ direction
    assert (forward - backward) / (2 * step) == pytest.approx(slope, rel=1e-6)


@each_problem
def test_hessian_is_constant_only_for_the_quadratic(problem):
    """The popular "Rosenbrock" without its inner square is a plain quadratic; this one is not."""
    here, there = at(problem, problem.x0)[2], at(problem, problem.solution)[2]
    change = np.max(np.abs(here - there)) / np.max(np.abs(here))
    assert (change < 1e-12) == (problem.name in CONSTANT_HESSIAN)


def test_the_quartic_starts_where_its_curvature_is_negative():
    problem = by_name("quartic")
    assert np.linalg.eigvalsh(at(problem, problem.x0)[2])[-1] < 0


def test_rosenbrock_beside_scipy():
    problem = by_name("rosenbrock10")
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=10)
        value, gradient, curvature = at(problem, x)
        assert value == pytest.approx(rosen(x), rel=1e-13)
        np.testing.assert_allclose(gradient, rosen_der(x), rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(curvature, rosen_hess(x), rtol=1e-12, atol=1e-10)


def test_problems_keep_the_dtype(dtype):
    for problem in PROBLEMS:
        x0, args = numbered_start(problem.name, dtype)
        assert jax.eval_shape(numbered, x0, *args).dtype == dtype
        assert jax.eval_shape(problem.fun, x0[: problem.x0.size]).dtype == dtype
