"""The work behind ``python -m jaxqn``: a classification fit of the iris data and its bootstrap.

The model is a multinomial logistic regression with one intercept and one weight per feature for
each species. The data separate one species perfectly, so a small quadratic penalty keeps the
optimum finite and unique.
"""

import csv
import dataclasses
import importlib.resources
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxqn import Status
from jaxqn._typing import Array, ArrayTree
from jaxqn.drivers import minimize
from jaxqn.linalg import dot
from jaxqn.linalg.vectors import inf_norm
from jaxqn.quasi_newton import METHODS as KNOWN_METHODS

METHODS = tuple(name for name, method in KNOWN_METHODS.items() if method.model is None)
"""The methods that fit a likelihood; the others fit residuals, which a likelihood has not."""

PENALTY = 1e-3
GTOL = {"float32": 1e-5, "float64": 1e-8}
REPEATS = 5


class Dataset(NamedTuple):
    """A table to classify.

    Attributes:
      X: standardised features, shape ``(rows, features)``.
      measured: the features in cm.
      Y: one-hot species, shape ``(rows, species)``.
      features: names of the columns of ``X``.
      species: names of the columns of ``Y``.
    """

    X: Array
    measured: Array
    Y: Array
    features: tuple[str, ...]
    species: tuple[str, ...]


class Fit(NamedTuple):
    """One row of the table of methods."""

    method: str
    status: str
    nit: int
    nfev: int
    compile_ms: float
    run_ms: float
    max_gradient: float
    loss: float


class Spread(NamedTuple):
    """The bootstrap spread of each parameter; every array has shape ``(1 + features, species)``.

    The intercept comes first, then the features in the table's order.
    """

    estimate: np.ndarray
    deviation: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def load_iris(dtype: str) -> Dataset:
    """Fisher's 150 irises (1936), from the file in the package, as arrays of ``dtype``."""
    text = importlib.resources.files("jaxqn").joinpath("data/iris.csv").read_text("utf-8")
    header, *rows = csv.reader(text.splitlines())
    table = np.array([[float(entry) for entry in row[:-1]] for row in rows])
    labels = [row[-1] for row in rows]
    species = tuple(dict.fromkeys(labels))
    standardised = (table - table.mean(axis=0)) / table.std(axis=0)
    one_hot = np.array([[label == name for name in species] for label in labels])
    features = tuple(name.removesuffix("_cm").replace("_", " ") for name in header[:-1])
    X, measured, Y = (jnp.asarray(a, dtype) for a in (standardised, table, one_hot))
    return Dataset(X, measured, Y, features, species)


def tolerance(data: Dataset) -> float:
    """The largest gradient entry at which a fit counts as converged."""
    return GTOL[data.X.dtype.name]


def zero_params(data: Dataset) -> ArrayTree:
    """The starting point: every probability one third."""
    features, species = data.X.shape[1], data.Y.shape[1]
    return {
        "intercept": jnp.zeros(species, data.X.dtype),
        "weights": jnp.zeros((features, species), data.X.dtype),
    }


def equal_shares(data: Dataset) -> Array:
    """The weight of each row where all rows count alike; the weights sum to one."""
    rows = data.X.shape[0]
    return jnp.full(rows, 1 / rows, data.X.dtype)


def logits(params: ArrayTree, X: Array) -> Array:
    """Unnormalised log-probability of each species, shape ``(rows, species)``."""
    # `dot` asks for the highest precision: an accelerator rounds float32 products to three digits.
    return dot(X, params["weights"]) + params["intercept"][None, :]


def loss(params: ArrayTree, X: Array, Y: Array, shares: Array) -> Array:
    """Mean negative log-likelihood, rows weighted by ``shares``, plus the penalty."""
    log_likelihood = jnp.sum(Y * jax.nn.log_softmax(logits(params, X)), axis=1)
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return -jnp.vdot(shares, log_likelihood) + 0.5 * PENALTY * squares


def milliseconds(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of ``run()`` and its run time, until the arrays are computed."""
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, 1e3 * (time.perf_counter() - start)


def fit(data: Dataset, method: str) -> tuple[Fit, ArrayTree]:
    """Minimises the loss with one of jaxqn's methods.

    Returns:
      The method's row of the table, with compile time apart from the median run time, and the
      fitted parameters.
    """
    gtol = tolerance(data)

    def solve(start: ArrayTree, X: Array, Y: Array, shares: Array) -> Any:
        return minimize(loss, start, (X, Y, shares), method=method, gtol=gtol)

    inputs = zero_params(data), data.X, data.Y, equal_shares(data)
    compiled, compile_ms = milliseconds(lambda: jax.jit(solve).lower(*inputs).compile())
    runs = [milliseconds(lambda: compiled(*inputs)) for _ in range(REPEATS)]
    result = runs[0][0]
    row = Fit(
        method=method,
        status=status_name(int(result.status)),
        nit=int(result.nit),
        nfev=int(result.nfev),
        compile_ms=compile_ms,
        run_ms=float(np.median([elapsed for _, elapsed in runs])),
        max_gradient=float(inf_norm(result.jac)),
        loss=float(result.fun),
    )
    return row, result.x


def status_name(status: int) -> str:
    """A status in lower-case words."""
    return Status(status).name.lower().replace("_", " ")


def fit_scipy(data: Dataset, on_value: Callable[[float], None] | None = None) -> Fit | None:
    """The same fit by SciPy's BFGS with a jitted value and gradient; None without SciPy.

    Args:
      data: the table to classify.
      on_value: called with every value of the loss that SciPy evaluates.
    """
    try:
        import scipy.optimize
    except ImportError:
        return None
    x0, unravel = ravel_pytree(zero_params(data))
    inputs = data.X, data.Y, equal_shares(data)
    value_and_grad = jax.jit(jax.value_and_grad(lambda x, *args: loss(unravel(x), *args)))
    compiled, compile_ms = milliseconds(lambda: value_and_grad.lower(x0, *inputs).compile())

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = compiled(jnp.asarray(x, x0.dtype), *inputs)
        if on_value is not None:
            on_value(float(value))
        return float(value), np.asarray(gradient, float)

    options = {"gtol": tolerance(data)}
    result, run_ms = milliseconds(
        lambda: scipy.optimize.minimize(fun, np.asarray(x0), jac=True, options=options)
    )
    endings = {0: "converged", 1: "max iter", 2: "precision loss", 3: "non finite"}
    return Fit(
        method="scipy BFGS",
        status=endings[result.status],
        nit=result.nit,
        nfev=result.nfev,
        compile_ms=compile_ms,
        run_ms=run_ms,
        max_gradient=float(np.max(np.abs(result.jac))),
        loss=float(result.fun),
    )


def correctly_classified(data: Dataset, params: ArrayTree) -> int:
    """How many rows the fitted model assigns to their own species."""
    guessed = jnp.argmax(logits(params, data.X), axis=1)
    return int(jnp.sum(guessed == jnp.argmax(data.Y, axis=1)))


def resampled_shares(data: Dataset, resamples: int, seed: int = 0) -> Array:
    """Row weights of bootstrap resamples: how often each row was drawn, over the number of rows.

    A fit to rows drawn with replacement equals a fit with their counts as weights, and weights need
    no copy of the table. Shape ``(resamples, rows)``.
    """
    rows = data.X.shape[0]
    counts = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), resamples)
    return jnp.asarray(counts / rows, data.X.dtype)


def bootstrap(
    data: Dataset, start: ArrayTree, method: str, resamples: int
) -> tuple[Any, float, float]:
    """Fits every resample from ``start`` in one ``vmap``.

    Returns:
      The batched result, the compile time and the run time in milliseconds.
    """
    gtol = tolerance(data)

    def refit(X: Array, Y: Array, shares: Array) -> Any:
        return minimize(loss, start, (X, Y, shares), method=method, gtol=gtol)

    inputs = data.X, data.Y, resampled_shares(data, resamples)
    batched = jax.jit(jax.vmap(refit, in_axes=(None, None, 0)))
    compiled, compile_ms = milliseconds(lambda: batched.lower(*inputs).compile())
    result, run_ms = milliseconds(lambda: compiled(*inputs))
    return result, compile_ms, run_ms


def spread(estimate: ArrayTree, resampled: ArrayTree) -> Spread:
    """Bootstrap standard deviations and central 95 % intervals of the parameters."""
    samples = _stack_intercept(resampled)
    lower, upper = np.percentile(samples, [2.5, 97.5], axis=0)
    return Spread(_stack_intercept(estimate), samples.std(axis=0, ddof=1), lower, upper)


def _stack_intercept(params: ArrayTree) -> np.ndarray:
    """The intercepts above the weights, shape ``(..., 1 + features, species)``."""
    intercept = np.asarray(params["intercept"], float)[..., None, :]
    return np.concatenate([intercept, np.asarray(params["weights"], float)], axis=-2)


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """The loss, which records its values, in order, from inside a compiled program."""

    values: list[float]

    def __call__(self, *inputs: Any) -> Array:
        """The loss."""
        value = loss(*inputs)
        jax.debug.callback(lambda v: self.values.append(float(v)), value, ordered=True)
        return value


def values_seen(data: Dataset, method: str) -> list[float]:
    """The loss at every evaluation of one fit."""
    recorded = Recorded([])
    inputs = data.X, data.Y, equal_shares(data)
    gtol = tolerance(data)
    jax.block_until_ready(minimize(recorded, zero_params(data), inputs, method=method, gtol=gtol))
    jax.effects_barrier()
    return recorded.values
