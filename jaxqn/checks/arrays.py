"""Checks of arrays before any tracing: what is wrong, what is expected, how to correct it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks.numbers import described, is_traced
from jaxqn.linalg import eps

__all__ = [
    "check_initial",
    "check_jacobian",
    "check_like",
    "check_native",
    "check_x0",
    "check_x_scale",
    "is_array",
]


DIAGONAL = "with limited memory, it is a diagonal"
"""The hint of an error message about an initial inverse Hessian without a matrix."""


def check_x0(x0: ArrayTree) -> tuple[ArrayTree, np.dtype, int]:
    """``x0`` with array leaves, their one dtype, and their total size."""
    if {"x", "status"} <= set(getattr(x0, "_fields", ())):
        raise TypeError("x0 is the result of a run: go on from its point, result.x")
    named, treedef = jax.tree_util.tree_flatten_with_path(x0)
    if not named:
        raise ValueError("x0 has no leaves: there is nothing to minimise over")
    leaves: list[Any] = []
    dtypes: dict[np.dtype, str] = {}
    for path, leaf in named:
        name = "x0" + jax.tree_util.keystr(path)
        array = _floating(name, leaf)
        leaves.append(array)
        dtypes.setdefault(array.dtype, name)
    if len(dtypes) > 1:
        found = ", ".join(f"{name} is {dtype}" for dtype, name in dtypes.items())
        raise ValueError(
            f"x0 must have one dtype throughout, but {found}: cast them, for instance with "
            "jax.tree.map(lambda a: a.astype(jnp.float32), x0)"
        )
    size = sum(leaf.size for leaf in leaves)
    if size == 0:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise ValueError(f"x0 has no entries, but shape {shapes}: there is nothing to minimise")
    return jax.tree.unflatten(treedef, leaves), leaves[0].dtype, size


def _floating(name: str, leaf: Any) -> Any:
    """One leaf of ``x0`` as a real floating array."""
    if not hasattr(leaf, "dtype"):
        if callable(leaf):
            raise TypeError(
                f"{name} is a {type(leaf).__name__}, not an array of real numbers: of an Equinox "
                "module pass the arrays alone, after arrays, rest = eqx.partition(module, "
                "eqx.is_inexact_array)"
            )
        if isinstance(leaf, (str, bytes)):
            raise TypeError(f"{name} is a {type(leaf).__name__}, not an array of real numbers")
        leaf = jnp.asarray(leaf)
    elif isinstance(leaf, np.ndarray | np.generic):
        check_native(name, leaf)
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


def check_native(name: str, leaf: Any) -> None:
    """Raise unless an array has the byte order of this machine, the only one that JAX has."""
    if isinstance(leaf, np.ndarray | np.generic) and not leaf.dtype.isnative:
        raise TypeError(
            f"{name} has dtype {leaf.dtype.str}, whose bytes are in the other order: convert it "
            'with .astype(array.dtype.newbyteorder("="))'
        )


def is_array(leaf: Any) -> bool:
    """Whether JAX takes it for an array: numbers or keys, not text, dates or objects."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUmM"
    return isinstance(leaf, jax.Array) or hasattr(leaf, "__jax_array__")


def check_initial(H0: Any, x: ArrayTree, dense: bool) -> ArrayTree:
    """An initial inverse Hessian: a matrix for a ``dense`` method, else a diagonal like ``x``."""
    if isinstance(H0, str):
        raise TypeError(f"hess_inv0 must be an array, but it is {described(H0)}")
    if not dense:
        return _positive_like("hess_inv0", H0, x, DIAGONAL)
    leaves = jax.tree.leaves(x)
    return _check_matrix(H0, sum(leaf.size for leaf in leaves), leaves[0].dtype)


def _check_matrix(H0: Any, n: int, dtype: np.dtype) -> Array:
    """An initial inverse Hessian as a matrix: shape, and positive definiteness (unless traced)."""
    H0 = jnp.asarray(H0)
    if jnp.issubdtype(H0.dtype, jnp.complexfloating):
        raise TypeError(f"hess_inv0 is complex ({H0.dtype}): an inverse Hessian here is real")
    H0 = H0.astype(dtype)
    if H0.shape == (n,):
        _check_positive("hess_inv0 as a diagonal", H0)
        return jnp.diag(H0)
    if H0.shape != (n, n):
        raise ValueError(
            f"hess_inv0 has shape {H0.shape}, but x0 has {n} entries: expected {(n, n)}, or {(n,)} "
            "for a diagonal"
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


def check_jacobian(J0: Any, x0: ArrayTree, *, dense: bool) -> Array:
    """A first Jacobian for ``x0``: a matrix, or for limited memory a number that is not 0."""
    leaves: list[Any] = jax.tree.leaves(x0)
    n, dtype = sum(leaf.size for leaf in leaves), leaves[0].dtype
    shape = (n, n) if dense else ()
    J0 = jnp.asarray(J0, dtype)
    if J0.shape != shape:
        what = f"a matrix of shape {shape}" if dense else "with limited memory a number c, for c I"
        raise ValueError(f"jac0 must be {what}, but its shape is {J0.shape}")
    if not is_traced(J0) and not (np.all(np.isfinite(J0)) and (dense or J0 != 0)):
        raise ValueError("jac0 must be finite, and a number must not be 0")
    return J0


def check_x_scale(x_scale: Any, x0: ArrayTree) -> ArrayTree | None:
    """Sizes of the parameters, a pytree like ``x0`` of positive entries; one number is for all."""
    if x_scale is None:
        return None
    if isinstance(x_scale, str | bytes):
        raise TypeError(f"x_scale must be an array or a number, but it is {described(x_scale)}")
    if isinstance(x_scale, int | float) or (is_array(x_scale) and jnp.ndim(x_scale) == 0):
        size = jnp.asarray(x_scale, float)
        x_scale = jax.tree.map(lambda leaf: jnp.full(leaf.shape, size, leaf.dtype), x0)
    return _positive_like("x_scale", x_scale, x0, "take 1 where a size is not known")


def check_like(what: str, tree: Any, x: ArrayTree, hint: str) -> None:
    """Raise unless a pytree has the structure and the shapes of ``x``."""
    structures: list[Any] = [jax.tree.structure(part) for part in (x, tree)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"{what} must be a pytree like x0 ({hint}): expected {structures[0]}, but got "
            f"{structures[1]}"
        )
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    for (path, a), leaf in zip(named, jax.tree.leaves(x), strict=True):
        if jnp.shape(a) != jnp.shape(leaf):
            raise ValueError(
                f"{what}{jax.tree_util.keystr(path)} has shape {jnp.shape(a)}, but x0 has "
                f"{jnp.shape(leaf)} there: it must be like x0 ({hint})"
            )


def _positive_like(what: str, tree: Any, x0: ArrayTree, hint: str) -> ArrayTree:
    """A pytree like ``x0`` of positive entries, in the dtypes of ``x0``."""
    check_like(what, tree, x0, hint)

    def checked(path: Any, a: Any, leaf: Any) -> Array:
        name, a = what + jax.tree_util.keystr(path), jnp.asarray(a)
        if jnp.iscomplexobj(a):
            raise TypeError(f"{name} is complex ({a.dtype}), but must be positive")
        a = a.astype(leaf.dtype)
        _check_positive(f"{name} ({hint})", a)
        return a

    return jax.tree_util.tree_map_with_path(checked, tree, x0)


def _check_positive(name: str, entries: Any) -> None:
    if is_traced(entries):
        return
    entries = np.asarray(entries)
    if not np.all((entries > 0) & np.isfinite(entries)):
        raise ValueError(f"{name} must be positive and finite throughout")
