"""This or that, decided while a program runs: what a compiler has to be told about selects.

Unbatched, a branch not taken should cost nothing; in a batch every lane would pay for it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = ["only", "rarely", "select"]


def select(condition: Array, this: Any, that: Any) -> Any:
    """``this`` where ``condition`` holds, else ``that``, leaf by leaf."""
    return jax.tree.map(functools.partial(jnp.where, condition), this, that)


def rarely(condition: Array, usual: Any, change: Callable[[Any], Any], *, long: bool) -> Any:
    """``change(usual)`` where ``condition`` holds, else ``usual``.

    Around long vectors this is a loop of at most one trip: they stay where they are and nothing is
    read or written, in a batch as long as no lane asks. Around short ones it is a select, which
    compiles in less time.
    """
    if not long:
        return select(condition, change(usual), usual)
    _, usual = jax.lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(condition), change(carry[1])),
        (condition, usual),
    )
    return usual


def only(condition: Array, compute: Callable[[], Array], known: Array, *, long: bool) -> Array:
    """``compute()``, a pass over long vectors, only where ``condition`` holds, else ``known``."""
    if not long:
        return jnp.where(condition, compute(), known)
    return jax.lax.cond(condition, compute, lambda: known)
