"""Five negative log likelihoods whose profiles are no parabolas, with their data.

Each is ``(name, fun, start, args, level)``; ``fun(x, *args)`` is a scalar.
"""

import jax
import jax.numpy as jnp
import numpy as np

random = np.random.default_rng(28)


def decay(x, t, counts):
    """Counts in bins of a decay with a background: logarithms of amplitude, time and background."""
    rate = jnp.exp(x[0] - t / jnp.exp(x[1])) + jnp.exp(x[2])
    return jnp.sum(rate - counts * jnp.log(rate))


def logistic(x, design, y):
    """A regression of 25 answers, with three parameters."""
    score = design @ x
    return jnp.sum(jax.nn.softplus(score) - y * score)


def weibull(x, times, failed):
    """Censored lifetimes: logarithms of shape and scale."""
    shape, log_scale = jnp.exp(x[0]), x[1]
    z = jnp.exp(shape * (jnp.log(times) - log_scale))
    hazard = x[0] + (shape - 1) * (jnp.log(times) - log_scale) - log_scale
    return jnp.sum(z - failed * hazard)


def student(x, y):
    """Location, log scale and log degrees of freedom of Student's t."""
    dof, scale = jnp.exp(x[2]), jnp.exp(x[1])
    z = (y - x[0]) / scale
    gammaln = jax.scipy.special.gammaln
    constant = gammaln((dof + 1) / 2) - gammaln(dof / 2) - 0.5 * jnp.log(dof * jnp.pi) - x[1]
    return -jnp.sum(constant - 0.5 * (dof + 1) * jnp.log1p(z**2 / dof))


def gamma(x, y):
    """Log shape and log mean of a gamma distribution, 12 numbers."""
    shape = jnp.exp(x[0])
    rate = jnp.exp(x[0] - x[1])
    terms = shape * jnp.log(rate) - jax.scipy.special.gammaln(shape)
    return -jnp.sum(terms + (shape - 1) * jnp.log(y) - rate * y)


T = np.linspace(0.25, 7.75, 16)
DECAY = (T, random.poisson(30 * np.exp(-T / 1.5) + 2.0).astype(float))
X = np.concatenate([np.ones((25, 1)), random.normal(size=(25, 2))], axis=1)
ANSWERS = (random.random(25) < 1 / (1 + np.exp(-(X @ np.array([0.3, 1.2, -0.8]))))).astype(float)
LIVES = random.weibull(1.7, size=20) * 3.0
CENSORED = (np.minimum(LIVES, 3.5), (LIVES < 3.5).astype(float))
HEAVY = random.standard_t(3.0, size=60) * 0.7 + 1.0
GAMMAS = random.gamma(2.5, 1.2, size=12)

LIKELIHOODS = (
    ("decay", decay, [3.0, 0.3, 0.5], DECAY, 0.95),
    ("logistic", logistic, [0.0, 0.0, 0.0], (X, ANSWERS), 0.95),
    ("weibull", weibull, [0.0, 1.0], CENSORED, 0.95),
    ("student", student, [1.0, 0.0, 1.0], (HEAVY,), 0.6827),
    ("gamma", gamma, [0.5, 1.0], (GAMMAS,), 0.95),
)
