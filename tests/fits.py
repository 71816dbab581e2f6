"""Curves to fit, and data for them. Numbers and data are arguments, so that one program serves all.

Every curve has three parameters. Data are made here, with the errors written down beside them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TIMES = np.linspace(0.2, 4.0, 24)
ERRORS = np.random.default_rng(3).normal(size=24)


class Fit(NamedTuple):
    """Which curve, through which data, and in which units of residuals and parameters."""

    which: Any
    t: Any
    y: Any
    c: Any = 1.0
    u: Any = 1.0


def decay(p, t):
    return p[0] * jnp.exp(-p[1] * t) + p[2]


def saturation(p, t):
    """Michaelis and Menten's curve over a background."""
    return p[0] * t / (p[1] + t) + p[2]


def box(p, t):
    """Box's three-dimensional function: residuals that vanish."""
    return jnp.exp(-p[0] * t) - jnp.exp(-p[1] * t) - p[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def brown(p, t):
    """After Brown and Dennis: residuals that stay large."""
    return (p[0] + t * p[1] - jnp.exp(t)) ** 2 + (p[2] - jnp.cos(t)) ** 2


def logarithm(p, t):
    """NaN where p[1] is below the least time, negative."""
    return p[0] * jnp.log(p[1] + t) + p[2]


def plateau(p, t):
    """Flat in p[1] where that is large."""
    return p[0] * (1 - jnp.exp(-p[1] * t)) + p[2] * t


def blind(p, t):
    """No function of p[2]."""
    return p[0] * jnp.exp(-p[1] * t)


CURVES = (decay, saturation, box, brown, logarithm, plateau, blind)

# Its name, the start, and the parameters of the data with the size of their errors.
STARTS = {
    "decay": ([1.0, 1.0, 1.0], [3.0, 0.7, 0.5], 0.02),
    "saturation": ([1.0, 1.0, 0.0], [2.0, 0.6, 0.1], 0.01),
    "box": ([0.0, 10.0, 20.0], [1.0, 10.0, 1.0], 0.0),
    "brown": ([25.0, 5.0, -5.0], None, 0.0),
    "logarithm": ([1.0, 5.0, 0.0], [2.0, 0.0, 1.0], 0.01),
    "plateau": ([1.0, 1.0, 0.1], [2.0, 1.5, 0.3], 0.01),
    "blind": ([1.0, 1.0, 1.0], [3.0, 0.7, 0.5], 0.02),
}


def data(name):
    """The parameters of the data put into the curve, and errors; 0 where there are none."""
    _, p, size = STARTS[name]
    if p is None:
        return np.zeros_like(TIMES)
    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(CURVES[index(name)](np.array(p), TIMES)) + size * ERRORS


def index(name):
    return [curve.__name__ for curve in CURVES].index(name)


@functools.cache
def fit_of(name, dtype=np.float64):
    """A start, and the ``args`` of :func:`misfit`."""
    x0 = jnp.asarray(STARTS[name][0], dtype)
    one = jnp.ones((), dtype)
    arrays = (jnp.asarray(a, dtype) for a in (TIMES, data(name)))
    return x0, (Fit(jnp.int32(index(name)), *arrays, one, jnp.ones(3, dtype)),)


def misfit(p, fit):
    """The residuals of every fit."""
    return fit.c * (jax.lax.switch(fit.which, CURVES, fit.u * p, fit.t) - fit.y)


def exponential(p, t, y):
    """The residuals of "decay" alone, for batches."""
    return decay(p, t) - y


def peaks(p, t, y):
    """Two Gaussian peaks, six parameters."""
    heights, centres, widths = p[:2], p[2:4], p[4:]
    return jnp.exp(-(((t[:, None] - centres[None]) / widths[None]) ** 2)) @ heights - y


jacobian = jax.jit(jax.jacfwd(misfit))
jacobian_of_peaks = jax.jit(jax.jacfwd(peaks))
