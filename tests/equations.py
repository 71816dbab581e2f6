"""Classical systems of equations with their usual starts.

Numbers refer to Moré, Garbow & Hillstrom, ACM Trans. Math. Softw. 7 (1981).
"""

import jax.numpy as jnp
import numpy as np


def rosenbrock(x):
    """Problem 1."""
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def powell_singular(x):
    """Problem 13: the Jacobian is singular at the root."""
    return jnp.stack(
        [
            x[0] + 10 * x[1],
            5**0.5 * (x[2] - x[3]),
            (x[1] - 2 * x[2]) ** 2,
            10**0.5 * (x[0] - x[3]) ** 2,
        ]
    )


def powell_badly_scaled(x):
    """Problem 3."""
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def wood(x):
    """The gradient of problem 14, over some factors; in MINPACK's test of equations."""
    a, b = x[1] - x[0] ** 2, x[3] - x[2] ** 2
    return jnp.stack(
        [
            -200 * x[0] * a - (1 - x[0]),
            200 * a + 20.2 * (x[1] - 1) + 19.8 * (x[3] - 1),
            -180 * x[2] * b - (1 - x[2]),
            180 * b + 20.2 * (x[3] - 1) + 19.8 * (x[1] - 1),
        ]
    )


def helical_valley(x):
    """Problem 7."""
    theta = jnp.arctan2(x[1], x[0]) / (2 * np.pi)
    radius = jnp.sqrt(x[0] ** 2 + x[1] ** 2)
    return jnp.stack([10 * (x[2] - 10 * theta), 10 * (radius - 1), x[2]])


def watson(x):
    """The gradient of problem 20."""
    n = x.size
    t = jnp.arange(1, 30, dtype=x.dtype) / 29
    j = jnp.arange(n)
    powers = t[:, None] ** j[None].astype(x.dtype)
    slopes = jnp.concatenate([jnp.zeros((29, 1), x.dtype), j[None, 1:] * powers[:, :-1]], axis=1)
    sums = powers @ x
    r = slopes @ x - sums**2 - 1
    g = (slopes - 2 * sums[:, None] * powers).T @ r
    last = x[1] - x[0] ** 2 - 1
    return g.at[0].add(x[0] * (1 - 2 * last)).at[1].add(last)


def chebyquad(x):
    """Problem 35."""
    n = x.size
    now, before = 2 * x - 1, jnp.ones_like(x)
    means = []
    for i in range(1, n + 1):
        integral = 0.0 if i % 2 else -1.0 / (i**2 - 1)
        means.append(jnp.mean(now) - integral)
        now, before = 2 * (2 * x - 1) * now - before, now
    return jnp.stack(means)


def brown_almost_linear(x):
    """Problem 27."""
    n = x.size
    return (x + jnp.sum(x) - (n + 1)).at[-1].set(jnp.prod(x) - 1)


def discrete_boundary_value(x):
    """Problem 28."""
    n, h = x.size, 1 / (x.size + 1)
    t = h * jnp.arange(1, n + 1, dtype=x.dtype)
    left, right = shifted(x)
    return 2 * x - left - right + h**2 * (x + t + 1) ** 3 / 2


def discrete_integral(x):
    """Problem 29."""
    n, h = x.size, 1 / (x.size + 1)
    t = h * jnp.arange(1, n + 1, dtype=x.dtype)
    cubes = (x + t + 1) ** 3
    below = jnp.cumsum(t * cubes)
    above = jnp.sum((1 - t) * cubes) - jnp.cumsum((1 - t) * cubes)
    return x + h * ((1 - t) * below + t * above) / 2


def trigonometric(x):
    """Problem 26."""
    n = x.size
    i = jnp.arange(1, n + 1, dtype=x.dtype)
    return n - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)


def variably_dimensioned(x):
    """The gradient of problem 25, as in MINPACK."""
    j = jnp.arange(1, x.size + 1, dtype=x.dtype)
    total = jnp.sum(j * (x - 1))
    return x - 1 + j * total * (1 + 2 * total**2)


def broyden_tridiagonal(x):
    """Problem 30."""
    left, right = shifted(x)
    return (3 - 2 * x) * x - left - 2 * right + 1


def broyden_banded(x):
    """Problem 31."""
    n, bend = x.size, x * (1 + x)
    sums = sum(jnp.concatenate([jnp.zeros(k, x.dtype), bend[: n - k]]) for k in range(1, 6))
    return x * (2 + 5 * x**2) + 1 - sums - jnp.concatenate([bend[1:], jnp.zeros(1, x.dtype)])


def chandrasekhar(x, c=0.9999):
    """Chandrasekhar's H equation; Kelley, Solving Nonlinear Equations with Newton's Method."""
    n = x.size
    mu = (jnp.arange(n, dtype=x.dtype) + 0.5) / n
    kernel = mu[:, None] / (mu[:, None] + mu[None])
    return x - 1 / (1 - c / (2 * n) * (kernel @ x))


def shifted(x):
    """The neighbours to the left and to the right, 0 beyond the ends."""
    none = jnp.zeros(1, x.dtype)
    return jnp.concatenate([none, x[:-1]]), jnp.concatenate([x[1:], none])


def _inner_points(n):
    t = np.arange(1, n + 1) / (n + 1)
    return t * (t - 1)


CLASSICAL = [
    (rosenbrock, np.array([-1.2, 1.0])),
    (powell_singular, np.array([3.0, -1.0, 0.0, 1.0])),
    (powell_badly_scaled, np.array([0.0, 1.0])),
    (wood, np.array([-3.0, -1.0, -3.0, -1.0])),
    (helical_valley, np.array([-1.0, 0.0, 0.0])),
    (watson, np.zeros(6)),
    (watson, np.zeros(9)),
    (chebyquad, np.arange(1, 6) / 6),
    (chebyquad, np.arange(1, 8) / 8),
    (chebyquad, np.arange(1, 10) / 10),
    (brown_almost_linear, np.full(10, 0.5)),
    (brown_almost_linear, np.full(40, 0.5)),
    (discrete_boundary_value, _inner_points(10)),
    (discrete_boundary_value, _inner_points(100)),
    (discrete_integral, _inner_points(10)),
    (discrete_integral, _inner_points(100)),
    (trigonometric, np.full(10, 1 / 10)),
    (trigonometric, np.full(50, 1 / 50)),
    (variably_dimensioned, 1 - np.arange(1, 11) / 10),
    (broyden_tridiagonal, -np.ones(10)),
    (broyden_tridiagonal, -np.ones(150)),
    (broyden_banded, -np.ones(10)),
    (broyden_banded, -np.ones(150)),
    (chandrasekhar, np.ones(100)),
]
"""Functions and starts, in float64."""
