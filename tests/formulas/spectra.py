"""Symmetric matrices with a given spectrum."""

import numpy as np

N = 5


def eps(dtype):
    return float(np.finfo(dtype).eps)


# Matrices


def from_spectrum(rng, values):
    Q, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (Q * values) @ Q.T


def indefinite(rng, n):
    A = rng.normal(size=(n, n))
    return A + A.T


def zero(_, n):
    return np.zeros((n, n))


def symmetric_in(dtype, stack):
    """Rounded, and symmetric bit for bit."""
    stack = np.asarray(stack).astype(dtype)
    return np.tril(stack) + np.tril(stack, -1).swapaxes(-1, -2)
