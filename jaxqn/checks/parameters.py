"""Which entries of the parameters a caller chooses."""

from typing import Any

import jax
import numpy as np

from jaxqn._typing import ArrayTree
from jaxqn.checks.numbers import is_traced

__all__ = ["check_parameters"]


def check_parameters(parameters: Any, x: ArrayTree) -> tuple[int, ...]:
    """Indices of the chosen entries of the ravelled x."""
    everything = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), x)
    if parameters is None:
        mask = everything
    else:
        mask = _by_keys(parameters, everything)
        mask = _by_booleans(parameters, x) if mask is None else mask
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mask)])
    if not flat.any():
        raise ValueError("parameters chooses nothing: there is no interval to find")
    return tuple(np.flatnonzero(flat).tolist())


def _by_keys(parameters: Any, everything: ArrayTree) -> ArrayTree | None:
    """Booleans like x from keys of its top level; ``None`` if these are no keys."""
    keys = parameters if isinstance(parameters, list | tuple | set) else [parameters]
    named = jax.tree_util.tree_flatten_with_path(everything)[0]
    if not all(isinstance(key, str | int) and not isinstance(key, bool) for key in keys):
        return None
    tops = [str(getattr(path[0], "key", getattr(path[0], "name", getattr(path[0], "idx", None))))
            if path else "" for path, _ in named]  # fmt: skip
    unknown = [key for key in keys if str(key) not in tops]
    if unknown or not named[0][0]:
        known = ", ".join(sorted({repr(top) for top in tops if top})) or "none: x is an array"
        raise ValueError(
            f"parameters names {keys!r}, but the keys of x are {known}: give keys of its top "
            "level, or booleans like x"
        )
    wanted = {str(key) for key in keys}
    leaves = [leaf & (top in wanted) for top, (_, leaf) in zip(tops, named, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(everything), leaves)


def _by_booleans(parameters: Any, x: ArrayTree) -> ArrayTree:
    """Booleans like x from those, or a prefix of them."""
    if is_traced(parameters):
        raise ValueError("parameters must be known when compiling: give keys, or NumPy booleans")
    try:
        spread = jax.tree.broadcast(parameters, x)
        mask = jax.tree.map(lambda a, leaf: np.broadcast_to(np.asarray(a), leaf.shape), spread, x)
    except (ValueError, TypeError) as error:
        raise ValueError(f"parameters must be keys, or booleans like x: {error}") from None
    if any(leaf.dtype != bool for leaf in jax.tree.leaves(mask)):
        raise ValueError("parameters must be keys of x, or booleans like x; it has other numbers")
    return mask
