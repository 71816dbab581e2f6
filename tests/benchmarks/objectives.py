"""Objectives that several workloads share, on flat vectors unless said."""

import jax
import jax.numpy as jnp


def rosenbrock(x):
    """Chained Rosenbrock, sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2."""
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def rosenbrock_start(n: int):
    """(-1.2, 1, -1.2, 1, ...), where the 2-D value is 24.2."""
    return jnp.where(jnp.arange(n) % 2 == 0, -1.2, 1.0).astype(jnp.result_type(float))


def scaled_quartic(x, d):
    """0.5 sum d_i (x_i - 1)^2 + 0.25 sum (x_{i+1} - x_i)^4."""
    return 0.5 * jnp.sum(d * (x - 1.0) ** 2) + 0.25 * jnp.sum(jnp.diff(x) ** 4)


def mlp_init(sizes: tuple[int, ...], key):
    """Glorot-normal weights and zero biases, a list of ``(w, b)``."""
    keys = jax.random.split(key, len(sizes) - 1)
    initial = jax.nn.initializers.glorot_normal()
    dtype = jnp.result_type(float)
    return [
        (initial(k, (a, b), dtype), jnp.zeros((b,), dtype))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def mlp(params, x):
    """A tanh network with a linear last layer; `x` is ``(points, inputs)``."""
    *hidden, (w, b) = params
    for v, c in hidden:
        x = jnp.tanh(x @ v + c)
    return x @ w + b


def mlp_regression():
    """MLP 1-20-20-20-1 on 32 points of sin(3x).

    Returns:
      ``(fun, params, args)``, the parameters a list of ``(w, b)``.
    """
    x = jnp.linspace(-1.0, 1.0, 32)[:, None]

    def fun(params, x, y):
        return 0.5 * jnp.mean((mlp(params, x) - y) ** 2)

    params = mlp_init((1, 20, 20, 20, 1), jax.random.key(0))
    return fun, params, (x, jnp.sin(3.0 * x))
