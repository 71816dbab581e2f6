"""Minimisation problems with known answers. `test_problems.py` tests them before they test solvers.

Start points, start values and minima are the published ones (Moré, Garbow & Hillstrom, ACM Trans.
Math. Softw. 7 (1981)) where the problem has a name, and NumPy's own arithmetic elsewhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """One problem.

    Attributes:
      name: what the tests call it.
      fun: objective, vector to scalar, in the dtype of its argument.
      x0: published start, float64.
      solution: a minimiser, float64.
      minimum: value there.
    """

    name: str
    fun: Callable[[jax.Array], jax.Array]
    x0: np.ndarray
    solution: np.ndarray
    minimum: float


def rosenbrock(x):
    """The banana valley, chained for n > 2."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(x):
    powers = jnp.stack([x[1], x[1] ** 2, x[1] ** 3])
    return jnp.sum((jnp.array([1.5, 2.25, 2.625], x.dtype) - x[0] * (1 - powers)) ** 2)


def wood(x):
    a, b, c, d = x
    valleys = 100 * (b - a**2) ** 2 + (1 - a) ** 2 + 90 * (d - c**2) ** 2 + (1 - c) ** 2
    return valleys + 10 * (b + d - 2) ** 2 + 0.1 * (b - d) ** 2


def powell_singular(x):
    """Its Hessian at the solution has rank 2 of 4."""
    a, b, c, d = x
    return (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4


# An ill-conditioned quadratic: eigenvalues 1 to 1e5, eigenvectors along no axis.
_axis = np.arange(1.0, 11.0) / np.linalg.norm(np.arange(1.0, 11.0))
_reflection = np.eye(10) - 2 * np.outer(_axis, _axis)
QUADRATIC_HESSIAN = _reflection @ np.diag(np.logspace(0, 5, 10)) @ _reflection
QUADRATIC_SOLUTION = np.linspace(-1, 1, 10)


def quadratic(x):
    error = x - jnp.asarray(QUADRATIC_SOLUTION, x.dtype)
    return error @ jnp.asarray(QUADRATIC_HESSIAN, x.dtype) @ error / 2 - 7


# A logistic regression with an L2 penalty: 40 rows, 5 features on unlike scales.
_random = np.random.default_rng(2)
LOGISTIC_X = _random.normal(size=(40, 5)) * np.logspace(-1, 1, 5)
LOGISTIC_Y = np.where(_random.random(40) < 1 / (1 + np.exp(-LOGISTIC_X.sum(1))), 1.0, -1.0)


def logistic(w):
    margins = jnp.asarray(LOGISTIC_Y, w.dtype) * (jnp.asarray(LOGISTIC_X, w.dtype) @ w)
    return jnp.mean(jnp.logaddexp(jnp.zeros_like(margins), -margins)) + 0.005 * w @ w


def _logistic_solution():
    """Newton's method in NumPy."""
    w, signed = np.zeros(5), LOGISTIC_Y[:, None] * LOGISTIC_X
    for _ in range(20):
        p = 1 / (1 + np.exp(signed @ w))
        gradient = -signed.T @ p / 40 + 0.01 * w
        curvature = (signed.T * (p * (1 - p))) @ signed / 40 + 0.01 * np.eye(5)
        w = w - np.linalg.solve(curvature, gradient)
    return w, np.mean(np.logaddexp(0, -signed @ w)) + 0.005 * w @ w


def quartic(x):
    """Double wells: negative curvature at the start, 2^n equal minima at ±1."""
    return jnp.sum(x**4 / 4 - x**2 / 2)


_logistic_w, _logistic_f = _logistic_solution()

PROBLEMS = (
    Problem("rosenbrock", rosenbrock, np.array([-1.2, 1.0]), np.ones(2), 0.0),
    Problem("rosenbrock10", rosenbrock, np.tile([-1.2, 1.0], 5), np.ones(10), 0.0),
    Problem("beale", beale, np.ones(2), np.array([3.0, 0.5]), 0.0),
    Problem("wood", wood, np.array([-3.0, -1.0, -3.0, -1.0]), np.ones(4), 0.0),
    Problem("powell_singular", powell_singular, np.array([3.0, -1.0, 0.0, 1.0]), np.zeros(4), 0.0),
    Problem("quadratic", quadratic, np.zeros(10), QUADRATIC_SOLUTION, -7.0),
    Problem("logistic", logistic, np.zeros(5), _logistic_w, _logistic_f),
    Problem("quartic", quartic, np.array([0.1, -0.2, 0.3, 0.05]), np.array([1.0, -1, 1, 1]), -1.0),
)
NAMES = tuple(problem.name for problem in PROBLEMS)
SIZE = max(problem.x0.size for problem in PROBLEMS)


def by_name(name):
    return PROBLEMS[NAMES.index(name)]


def numbered(x, index, scale):
    """``scale`` times ``PROBLEMS[index]`` at the first entries of x.

    One objective, and so one compiled program, for the whole table at every scale.
    """
    branches = [
        lambda x, problem=problem: problem.fun(x[: problem.x0.size]) for problem in PROBLEMS
    ]
    return scale * jax.lax.switch(index, branches, x)


def numbered_start(name, dtype=np.float64, scale=1.0):
    """``(x0, args)`` that make ``numbered`` the problem of that name."""
    x0 = by_name(name).x0
    padded = np.concatenate([x0, np.zeros(SIZE - x0.size)])
    return jnp.asarray(padded, dtype), (np.int32(NAMES.index(name)), jnp.asarray(scale, dtype))
