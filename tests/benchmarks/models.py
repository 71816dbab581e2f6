"""Objectives of statistics, engineering and physics, each with its data and first point.

No method, search or update was chosen by them; the end of float32 runs was tried on other draws of
most of them. Every function draws its data from the generator it is given
and returns ``(fun, x0)`` on flat vectors, in JAX's default precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp


def unscaled_logistic(rng):
    """Logistic regression on columns whose sizes span four decades."""
    X = rng.normal(size=(300, 20)) * np.exp(2 * rng.normal(size=20))
    w = rng.normal(size=20) / np.abs(X).mean(0)
    y = jnp.array(rng.uniform(size=300) < 1 / (1 + np.exp(-X @ w)), float)
    X = jnp.array(X)
    return lambda w: jnp.sum(jnp.logaddexp(0.0, X @ w) - y * (X @ w)) + 1e-3 * w @ w, jnp.zeros(20)


def softmax_regression(rng):
    """Five classes, thirty features, a small ridge."""
    X = rng.normal(size=(400, 30))
    label = np.argmax(X @ rng.normal(size=(30, 5)) + 2 * rng.normal(size=(400, 5)), 1)
    X, one_hot = jnp.array(X), jnp.array(np.eye(5)[label])

    def fun(w):
        z = X @ w.reshape(30, 5)
        return jnp.mean(logsumexp(z, axis=1) - jnp.sum(z * one_hot, 1)) + 1e-4 * w @ w

    return fun, jnp.zeros(150)


def poisson_regression(rng):
    """Counts with a log link; columns of sizes 0.1 to 10."""
    X = np.c_[np.ones(200), rng.normal(size=(200, 5)) * [1, 3, 0.1, 10, 0.5]]
    y = jnp.array(rng.poisson(np.exp(X @ [1, 0.3, 0.1, 2, 0.02, 0.4])), float)
    X = jnp.array(X)
    return lambda b: jnp.sum(jnp.exp(X @ b) - y * (X @ b)), jnp.zeros(6)


def cox_regression(rng):
    """Partial likelihood of proportional hazards."""
    X = rng.normal(size=(120, 6))
    time = rng.exponential(np.exp(-0.5 * X @ rng.normal(size=6)))
    X = jnp.array(X[np.argsort(-time)])

    def fun(b):
        risk = X @ b
        return jnp.sum(jax.lax.associative_scan(jnp.logaddexp, risk) - risk)

    return fun, jnp.zeros(6)


def censored_weibull(rng):
    """Shape and scale of lifetimes, some longer than the study, in hours."""
    time = 5e3 * rng.weibull(1.7, 100)
    seen, log_t = jnp.array(time <= 8e3, float), jnp.log(jnp.array(np.minimum(time, 8e3)))

    def fun(p):
        z = jnp.exp(p[0]) * (log_t - p[1])
        return jnp.sum(jnp.exp(z) - seen * (p[0] + z - log_t))

    return fun, jnp.zeros(2)


def robust_regression(rng):
    """Cauchy errors: the loss is not convex."""
    X = rng.normal(size=(150, 8))
    y = jnp.array(X @ rng.normal(size=8) + rng.standard_cauchy(150))
    X = jnp.array(X)
    return lambda w: jnp.sum(jnp.log1p((X @ w - y) ** 2)), jnp.zeros(8)


def smoothed_lasso(rng):
    """Least squares with sqrt(w² + 1e-8) for |w|."""
    X = rng.normal(size=(100, 60))
    y = jnp.array(X[:, :5] @ rng.normal(size=5) + 0.1 * rng.normal(size=100))
    X = jnp.array(X)

    def fun(w):
        return 0.5 * jnp.sum((X @ w - y) ** 2) + 5 * jnp.sum(jnp.sqrt(w * w + 1e-8))

    return fun, jnp.zeros(60)


def gaussian_process(rng):
    """Three log-hyperparameters by the marginal likelihood of 60 values."""
    t = np.sort(rng.uniform(0, 10, 60))
    y, t = jnp.array(np.sin(t) + 0.1 * rng.normal(size=60)), jnp.array(t)

    def fun(p):
        scale, length, noise = jnp.exp(p)
        K = scale**2 * jnp.exp(-0.5 * ((t[:, None] - t) / length) ** 2)
        L = jnp.linalg.cholesky(K + (noise**2 + 1e-6) * jnp.eye(60))
        v = solve_triangular(L, y, lower=True)
        return 0.5 * v @ v + jnp.sum(jnp.log(jnp.diagonal(L)))

    return fun, jnp.array([1.0, -1.0, 0.0])


def local_level(rng):
    """Two variances of a random walk seen with noise, by the Kalman filter."""
    y = jnp.array(np.cumsum(0.3 * rng.normal(size=150)) + rng.normal(size=150))

    def fun(p):
        drift, noise = jnp.exp(p)

        def step(carry, value):
            mean, variance = carry
            variance = variance + drift
            total, error = variance + noise, value - mean
            gain = variance / total
            carry = mean + gain * error, variance * (1 - gain)
            return carry, 0.5 * (jnp.log(total) + error**2 / total)

        return jnp.sum(jax.lax.scan(step, (y[0], noise), y[1:])[1])

    return fun, jnp.zeros(2)


def garch(rng):
    """Three parameters of GARCH(1, 1) for returns of one per cent."""
    r = jnp.array(0.01 * rng.normal(size=400))

    def fun(p):
        base, alpha, beta = jnp.exp(p[0]), jax.nn.sigmoid(p[1]), jax.nn.sigmoid(p[2])

        def step(h, e):
            h = base + alpha * e**2 + beta * h
            return h, h

        h = jax.lax.scan(step, jnp.var(r), r[:-1])[1]
        h = jnp.concatenate([jnp.var(r)[None], h])
        return 0.5 * jnp.sum(jnp.log(h) + r**2 / h)

    return fun, jnp.array([-10.0, -2.0, 1.0])


def two_exponentials(rng):
    """Amplitudes and rates of two decays, by least squares."""
    t = np.linspace(0, 5, 40)
    y = jnp.array(2 * np.exp(-0.5 * t) + 3 * np.exp(-3 * t) + 0.02 * rng.normal(size=40))
    t = jnp.array(t)

    def fun(p):
        return jnp.sum((p[0] * jnp.exp(-p[1] * t) + p[2] * jnp.exp(-p[3] * t) - y) ** 2)

    return fun, jnp.array([1.0, 0.1, 1.0, 1.0])


def michaelis_menten(rng):
    """An enzyme's rate against its substrate in mol and seconds: numbers of 1e-6 and 1e-3."""
    s = np.array([1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4])
    v = jnp.array(3e-3 * s / (1e-5 + s) * (1 + 0.03 * rng.normal(size=7)))
    s = jnp.array(s)
    return lambda p: 1e6 * jnp.sum((v - p[0] * s / (p[1] + s)) ** 2), jnp.array([1e-3, 1e-6])


def lotka_volterra(rng):
    """Four rates of predators and prey, through a Runge-Kutta integration."""

    def orbit(p):
        a, b, c, d = jnp.exp(p)

        def slope(u):
            return jnp.stack([a * u[0] - b * u[0] * u[1], c * u[0] * u[1] - d * u[1]])

        def step(u, _):
            k1 = slope(u)
            k2 = slope(u + 0.05 * k1)
            k3 = slope(u + 0.05 * k2)
            k4 = slope(u + 0.1 * k3)
            u = u + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return u, u

        return jax.lax.scan(step, jnp.full(2, 2.0), None, length=60)[1]

    truth = orbit(jnp.log(jnp.array([1.1, 0.4, 0.1, 0.4])))
    seen = jnp.log(truth * jnp.array(1 + 0.02 * rng.normal(size=(60, 2))))
    fun = lambda p: jnp.sum((jnp.log(orbit(p)) - seen) ** 2)  # noqa: E731
    return fun, jnp.log(jnp.array([0.7, 0.7, 0.2, 0.2]))


def pendulum(rng):
    """Eighty torques that swing a pendulum up."""

    def fun(u):
        def step(carry, torque):
            angle, speed = carry
            speed = speed + 0.05 * (jnp.sin(angle) + torque)
            return (angle + 0.05 * speed, speed), None

        (angle, speed), _ = jax.lax.scan(step, (jnp.full((), jnp.pi), jnp.zeros(())), u)
        return 1e3 * (angle**2 + speed**2) + 0.05 * u @ u

    return fun, jnp.array(0.01 * rng.normal(size=80))


def total_variation(rng):
    """An image of 40 by 40 without its noise."""
    image = np.zeros((40, 40))
    image[10:30, 10:30] = 1
    image = jnp.array(image + 0.2 * rng.normal(size=(40, 40)))

    def fun(x):
        u = x.reshape(40, 40)
        down, right = u[1:, :-1] - u[:-1, :-1], u[:-1, 1:] - u[:-1, :-1]
        edges = jnp.sum(jnp.sqrt(down**2 + right**2 + 1e-4))
        return 0.5 * jnp.sum((u - image) ** 2) + 0.2 * edges

    return fun, jnp.zeros(1600)


def soap_film(_):
    """The area of a film over a square, one side of its frame a sine."""
    side = jnp.sin(jnp.pi * jnp.linspace(0, 1, 26))

    def fun(x):
        u = jnp.pad(x.reshape(24, 24), 1).at[0].set(side)
        down, right = 25 * (u[1:, :-1] - u[:-1, :-1]), 25 * (u[:-1, 1:] - u[:-1, :-1])
        return jnp.mean(jnp.sqrt(1 + down**2 + right**2))

    return fun, jnp.zeros(576)


def bratu(_):
    """Combustion: the energy of −Δu = 5 exp(u) on a square of 16 by 16."""

    def fun(x):
        u = jnp.pad(x.reshape(16, 16), 1)
        stiff = 0.5 * (jnp.sum((u[1:] - u[:-1]) ** 2) + jnp.sum((u[:, 1:] - u[:, :-1]) ** 2))
        return stiff - 5 / 17**2 * jnp.sum(jnp.exp(x))

    return fun, jnp.zeros(256)


def charges(rng):
    """Twenty charges on a sphere."""
    i, j = np.triu_indices(20, 1)

    def fun(x):
        p = x.reshape(20, 3)
        p = p / jnp.linalg.norm(p, axis=1, keepdims=True)
        return jnp.sum(1 / jnp.linalg.norm(p[i] - p[j], axis=1))

    return fun, jnp.array(rng.normal(size=60))


def multidimensional_scaling(rng):
    """Thirty points in the plane from their distances."""
    Q = 10 * rng.normal(size=(30, 2))
    D = jnp.array(np.linalg.norm(Q[:, None] - Q, axis=2))

    def fun(x):
        p = x.reshape(30, 2)
        d = jnp.sqrt(jnp.sum((p[:, None] - p) ** 2, -1) + 1e-9)
        return 0.5 * jnp.sum((d - D) ** 2)

    return fun, jnp.array(rng.normal(size=60))


def matrix_factors(rng):
    """A matrix of rank 4 as a product of two, exactly."""
    M = jnp.array(rng.normal(size=(60, 4)) @ rng.normal(size=(4, 40)))
    fun = lambda x: jnp.mean((x[:240].reshape(60, 4) @ x[240:].reshape(4, 40) - M) ** 2)  # noqa: E731
    return fun, jnp.array(rng.normal(size=400))


def independent_components(rng):
    """Three sources from three mixtures."""
    X = jnp.array(rng.normal(size=(3, 3)) @ rng.laplace(size=(3, 300)))

    def fun(w):
        W = w.reshape(3, 3)
        fit = jnp.mean(jnp.sum(jnp.log(jnp.cosh(W @ X)), 0))
        return fit - jnp.linalg.slogdet(W)[1]

    return fun, jnp.eye(3).ravel()


MODELS = (
    unscaled_logistic,
    softmax_regression,
    poisson_regression,
    cox_regression,
    censored_weibull,
    robust_regression,
    smoothed_lasso,
    gaussian_process,
    local_level,
    garch,
    two_exponentials,
    michaelis_menten,
    lotka_volterra,
    pendulum,
    total_variation,
    soap_film,
    bratu,
    charges,
    multidimensional_scaling,
    matrix_factors,
    independent_components,
)
"""All of them."""
