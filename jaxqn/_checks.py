"""Errors for bad input: what was wrong, what was expected, how to mend it. Before any tracing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._numerics import eps
from jaxqn._typing import Array, ArrayTree


def is_traced(tree: ArrayTree) -> bool:
    """Whether any leaf is a tracer, so that its numbers cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_x0(x0: ArrayTree) -> tuple[ArrayTree, np.dtype, int]:
    """``x0`` with array leaves, their one dtype, and their total size."""
    named, treedef = jax.tree_util.tree_flatten_with_path(x0)
    if not named:
        raise ValueError("x0 has no leaves: there is nothing to minimise over")
    leaves, dtypes = [], {}
    for path, leaf in named:
        name = "x0" + jax.tree_util.keystr(path)
        array = _floating(name, leaf)
        leaves.append(array)
        dtypes.setdefault(array.dtype, name)
    if len(dtypes) > 1:
        found = ", ".join(f"{name} is {dtype}" for dtype, name in dtypes.items())
        raise ValueError(
            f"a dense method needs one dtype for all of x0, but {found}: cast them, for instance "
            "with jax.tree.map(lambda a: a.astype(jnp.float32), x0)"
        )
    size = sum(leaf.size for leaf in leaves)
    if size == 0:
        raise ValueError("x0 has no entries: there is nothing to minimise over")
    return treedef.unflatten(leaves), leaves[0].dtype, size


def _floating(name: str, leaf: Any) -> Any:
    """One leaf of ``x0`` as a real floating array."""
    if not hasattr(leaf, "dtype"):
        if isinstance(leaf, (str, bytes)) or callable(leaf):
            raise TypeError(f"{name} is a {type(leaf).__name__}, not an array of real numbers")
        leaf = jnp.asarray(leaf)
    elif isinstance(leaf, np.ndarray | np.generic):
        leaf = jnp.asarray(leaf)
    dtype = leaf.dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} is complex ({dtype}): minimise over real and imaginary parts instead, for "
            "instance x0 = {'re': z.real, 'im': z.imag}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {dtype}, which has no gradient: convert it with "
            "jnp.asarray(x0, float), or pass it through args if it is not to be optimised"
        )
    if jnp.finfo(dtype).bits < 32:
        raise TypeError(
            f"{name} has dtype {dtype}, too coarse for curvature: minimise over float32 and cast "
            "inside fun"
        )
    return leaf


def check_hashable(fun: Callable[..., Any]) -> None:
    """``fun`` must be callable, and hashable to serve as a key of compiled programs."""
    if not callable(fun):
        raise TypeError(f"fun must be a function of x, but it is a {type(fun).__name__}")
    try:
        hash(fun)
    except TypeError as error:
        raise TypeError(
            f"fun (a {type(fun).__name__}) cannot be hashed, so its compiled program could not be "
            "found again: wrap it in a function and pass its arrays through args"
        ) from error


def check_hess_inv0(H0: Any, n: int, dtype: np.dtype) -> Array:
    """An initial inverse Hessian: shape, symmetry, positive definiteness (unless traced)."""
    H0 = jnp.asarray(H0, dtype)
    if H0.shape != (n, n):
        raise ValueError(
            f"hess_inv0 has shape {H0.shape}, but x0 has {n} entries: expected {(n, n)}"
        )
    if is_traced(H0):
        return H0
    matrix = np.asarray(H0)
    if not np.all(np.isfinite(matrix)):
        raise ValueError("hess_inv0 has entries that are not finite")
    if np.max(np.abs(matrix - matrix.T)) > 100 * eps(dtype) * np.max(np.abs(matrix)):
        raise ValueError("hess_inv0 is not symmetric: pass (H + H.T) / 2")
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise ValueError(
            "hess_inv0 is not positive definite, so its first direction need not descend: pass a "
            "positive definite matrix, for instance H + c * jnp.eye(n)"
        ) from None
    return H0


def nonnegative(name: str, value: Any, dtype: np.dtype) -> Any:
    """A tolerance as a scalar of ``dtype``."""
    if isinstance(value, jax.Array):
        if not is_traced(value) and not bool(value >= 0):
            raise ValueError(f"{name} must be at least 0, but it is {value}")
        return value.astype(dtype)
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, but it is {value}")
    return np.asarray(value, dtype)


def whole_number(name: str, value: Any, *, least: int) -> Any:
    """A budget as an int32 scalar."""
    if isinstance(value, jax.Array):
        return value.astype(jnp.int32)
    if value != int(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but it is {value}")
    return np.int32(min(value, np.iinfo(np.int32).max))


def split_aux(out: Any) -> tuple[Any, Any]:
    """The objective's ``(value, aux)``."""
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"with has_aux=True, fun must return (value, aux), but it returned a {type(out).__name__}"
        )
    return out


def scalar_value(value: Any) -> Array:
    """The objective's value as a scalar array."""
    if isinstance(value, tuple | list | dict):
        raise TypeError(
            f"fun must return a scalar, but it returned a {type(value).__name__}; if that is "
            "(value, aux), pass has_aux=True"
        )
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"fun must return a scalar, but it returned shape {value.shape}: reduce it, for "
            "instance with jnp.sum"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"fun must return a real floating number, but it returned {value.dtype}: for a complex "
            "value take jnp.real or jnp.abs"
        )
    return value
