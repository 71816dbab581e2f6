"""Conditional computation that stays cheap under ``vmap``.

Unbatched, a ``cond`` skips work; under ``vmap`` it becomes a select that computes both sides. The
functions here take a static flag ``branch`` that says whether skipping repays compiling a branch
(:func:`jaxqn.linalg.vectors.branching_pays`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = ["compute_if", "update_if", "where"]


def where(condition: Array, this: Any, that: Any) -> Any:
    """``this`` where ``condition`` holds, else ``that``, leaf by leaf."""
    return jax.tree.map(functools.partial(jnp.where, condition), this, that)


def update_if(condition: Array, value: Any, update: Callable[[Any], Any], *, branch: bool) -> Any:
    """``update(value)`` where ``condition`` holds, else ``value``.

    With ``branch`` this is a loop of at most one trip: XLA keeps the arrays in place, and reads and
    writes nothing unless the condition holds, under ``vmap`` for any lane. Without it this is a
    select, which compiles in less time.
    """
    if not branch:
        return where(condition, update(value), value)
    _, value = jax.lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(condition), update(carry[1])),
        (condition, value),
    )
    return value


def compute_if(
    condition: Array, compute: Callable[[], Array], otherwise: Array, *, branch: bool
) -> Array:
    """``compute()`` where ``condition`` holds, else ``otherwise``; ``branch`` runs it only then."""
    if not branch:
        return jnp.where(condition, compute(), otherwise)
    return jax.lax.cond(condition, compute, lambda: otherwise)
