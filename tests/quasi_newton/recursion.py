"""The oracle of limited memory: the recursion pair by pair, and compiled programs of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxqn.quasi_newton.lbfgs import lbfgs_memory
from jaxqn.quasi_newton.lsr1 import lsr1_memory

N, M, PUSHES = 7, 4, 18
METHODS = {"bfgs": lbfgs_memory, "sr1": lsr1_memory}
DIAGONAL = np.geomspace(0.2, 3.0, N)
LANES = (2, 20)
each_name = pytest.mark.parametrize("name", METHODS)


# The oracle: pairs in a Python list, H from scratch after every push


def passes(H, s, y, rtol=1e-7):
    """SR1's test."""
    v = s - H @ y
    return abs(v @ y) > rtol * np.linalg.norm(v) * np.linalg.norm(y)


def from_scratch(name, pairs, H):
    """The recursion over pairs from H₀; SR1 steps over those that fail its test."""
    for s, y in pairs:
        if name == "bfgs":
            H = oracles.bfgs(H, s, y)
        elif passes(H, s, y):
            H = oracles.sr1(H, s, y)
    return H


def recursion(name, S, Y, *, m=M, H0=None):
    """H after every push, and how many pairs have been absorbed and refused."""
    pairs, gamma, tally, matrices, tallies = [], 1.0, [0, 0], [], []
    for s, y in zip(S, Y, strict=True):
        usable = np.all(np.isfinite([s, y])) and np.any(s) and np.any(y)
        curved = usable and s @ y > 1e-12 * np.linalg.norm(s) * np.linalg.norm(y)
        scale = gamma
        if curved:
            scale = (1.0 if name == "bfgs" else 0.5) * (s @ y) / (y @ y)
        start = scale * np.eye(len(s)) if H0 is None else H0
        accepted = curved
        if name == "sr1" and usable:
            accepted = passes(from_scratch(name, [*pairs, None][-m:-1], start), s, y)
        if accepted:
            pairs, gamma = [*pairs, (s, y)][-m:], scale
        tally = [tally[0] + bool(accepted), tally[1] + bool(not accepted and np.any(s != 0))]
        start = gamma * np.eye(len(s)) if H0 is None else H0
        matrices, tallies = [*matrices, from_scratch(name, pairs, start)], [*tallies, tally]
    return np.array(matrices), np.array(tallies)


def all_kinds(seed, n=N):
    """Pairs through random Hessians; every third is reversed, one is zero, two are not finite."""
    rng = np.random.default_rng(seed)
    pairs = [oracles.random_pair(rng, n) for _ in range(PUSHES)]
    S, Y = (np.array(column) for column in zip(*pairs, strict=True))
    Y[2::3] *= -1
    S[4], Y[4] = 0, 0
    Y[7, 2], S[10, 0] = np.nan, np.inf
    return S, Y


def gradients(Y):
    """A first gradient, and that after every pair; one that is not finite changes nothing."""
    g = np.linspace(-1, 2, Y.shape[1])
    changes = np.where(np.all(np.isfinite(Y), axis=1, keepdims=True), Y, 0)
    return g, g + np.cumsum(changes, axis=0)


# Programs, compiled once for all tests


@functools.cache
def by_update(qn):
    """``(S, Y, H0) -> states, H as matrices`` after every push."""

    def program(S, Y, H0=None):
        def step(state, pair):
            state = qn.update(state, *pair)
            return state, (
                state,
                jax.vmap(functools.partial(qn.apply, state))(jnp.eye(N, dtype=S.dtype)),
            )

        return jax.lax.scan(step, qn.init(S[0], H0), (S, Y))[1]

    return jax.jit(program)


@functools.cache
def by_advance(qn):
    """``(S, Y, g, G, H0) -> states, products H g`` after every push, by the fused path."""

    def program(S, Y, g, G, H0=None):
        def step(carry, inputs):
            state, Hg = carry
            s, y, g = inputs
            state, Hg = qn.advance(state, s, y, g, Hg, jnp.any(s != 0))
            return (state, Hg), (state, Hg)

        return jax.lax.scan(step, (qn.init(g, H0), g), (S, Y, G))[1]

    return jax.jit(program)


def assert_close(actual, expected, tol):
    """Error at most ``tol`` relative to the largest entry of each matrix or vector of a stack."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    axes = tuple(range(1, expected.ndim))
    errors = np.max(np.abs(actual - expected), axis=axes)
    assert np.all(errors <= tol * np.max(np.abs(expected), axis=axes)), errors


def assert_same_leaves(actual, expected, apart_from=()):
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        if path[0].name not in apart_from:
            np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))
            assert leaf.dtype == other.dtype


def tally(states):
    """Pairs absorbed and pairs refused."""
    return np.stack([states.absorbed, states.refused], axis=-1)


def take(tree, which):
    return jax.tree.map(lambda leaf: leaf[which], tree)


# Laws of the state


@functools.cache
def verbs(qn):
    """The jitted verbs."""
    names = ("update", "apply", "advance", "reset")
    return qn._replace(**{name: jax.jit(getattr(qn, name)) for name in names})


# Descent, range


@functools.cache
def nested_batch(qn):
    return jax.jit(jax.vmap(jax.vmap(by_advance(qn))))
