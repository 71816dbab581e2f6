"""A curve through the petals of the irises: least squares with bounds, and error bars."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.demo.iris import Dataset
from jaxqn.drivers import covariance, least_squares
from jaxqn.loop import sum_of_squares

__all__ = ["CurveFit", "curve", "fit_curve", "petals"]

BOUNDS = ({"width": 0.0, "power": 0.0}, {"width": 7.0, "power": 2.0})
"""A petal is no wider than the longest is long; a power of 2 is that of an area."""

LENGTH = 4.0
"""The length in cm of the petal whose width is a parameter."""


class CurveFit(NamedTuple):
    """A fitted curve.

    Attributes:
      result: what :func:`jaxqn.least_squares` returned.
      errors: what :func:`jaxqn.covariance` says of it.
    """

    result: Any
    errors: Any


def petals(data: Dataset) -> tuple[Array, Array]:
    """Length and width of every petal in cm."""
    length, width = (data.features.index(f"petal {side}") for side in ("length", "width"))
    return data.measured[:, length], data.measured[:, width]


def curve(p: ArrayTree, length: Array) -> Array:
    """Width by length, Huxley's law of allometry: width (length / 4 cm)^power."""
    return p["width"] * (length / LENGTH) ** p["power"]


def misfit(p: ArrayTree, length: Array, width: Array) -> Array:
    """The residuals in cm."""
    return curve(p, length) - width


def fit_curve(data: Dataset) -> CurveFit:
    """Fits the curve, and finds its errors, with the noise taken from the residuals."""
    observed = petals(data)
    dtype = observed[0].dtype
    start = {"width": jnp.ones((), dtype), "power": jnp.ones((), dtype)}
    result = least_squares(misfit, start, observed, bounds=BOUNDS)
    objective = sum_of_squares(misfit)
    errors = covariance(objective, result.x, observed, noise="estimated", bounds=BOUNDS)
    return CurveFit(result, errors)
