"""Transformations by name, and steps of a chain."""

import functools

import jax
import numpy as np
import oracles

from jaxqn.transforms import (
    scale_by_bfgs,
    scale_by_broyden,
    scale_by_dfp,
    scale_by_osbfgs,
    scale_by_sr1,
    scale_by_ssbfgs,
    scale_by_ssbroyden,
)

# Each transformation, the textbook update it makes, and the one it makes after a bent step.
METHODS = {
    "bfgs": (scale_by_bfgs, oracles.bfgs, oracles.bfgs),
    "dfp": (scale_by_dfp, oracles.dfp, oracles.dfp),
    "sr1": (scale_by_sr1, oracles.sr1, oracles.sr1),
    "broyden": (scale_by_broyden, oracles.member(0.5), oracles.member(0.5)),
    "osbfgs": (scale_by_osbfgs, oracles.osbfgs, oracles.bfgs),
    "ssbfgs": (scale_by_ssbfgs, oracles.ssbfgs, oracles.bfgs),
    "ssbroyden": (scale_by_ssbroyden, oracles.ssbroyden, oracles.bfgs),
}


@functools.cache
def make(name, scale_init=False):
    return METHODS[name][0](scale_init=scale_init)


def same(state, other):
    """Whether two trees are equal, leaf by leaf and bit by bit."""
    return jax.tree.structure(state) == jax.tree.structure(other) and all(
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state, other)), strict=True)
    )


def close(tree, other, rtol=1e-9, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), tree, other)
