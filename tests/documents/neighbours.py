"""A small network and its rows, for the tests of neighbouring libraries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxqn

random = np.random.default_rng(0)
INPUTS = random.normal(size=(40, 3))
TARGETS = np.sin(INPUTS @ [1.0, -0.5, 0.3])[:, None]
START = {
    "hidden": {"bias": np.zeros(4), "kernel": random.normal(size=(3, 4)) / 2},
    "out": {"bias": np.zeros(1), "kernel": random.normal(size=(4, 1)) / 2},
}
START = jax.tree.map(jnp.asarray, START)


def network(params, x):
    """The network in plain JAX."""
    hidden, out = params["hidden"], params["out"]
    x = jnp.tanh(x @ hidden["kernel"] + hidden["bias"][None])
    return x @ out["kernel"] + out["bias"][None]


def penalised(prediction, params):
    """The mean squared error and a penalty, which makes the minimum a well conditioned one."""
    penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean((prediction - TARGETS) ** 2) + 0.1 * penalty


def loss(params):
    return penalised(network(params, jnp.asarray(INPUTS)), params)


ROWS = {}


def row(library):
    """Mark the tests of the row of this library."""

    def mark(test):
        ROWS.setdefault(library, []).append(test.__name__)
        return test

    return mark


@functools.cache
def minimum():
    return jaxqn.minimize(loss, START)


def largest(tree):
    return np.max(np.abs(ravel_pytree(tree)[0]))
