"""Errors for bad input: what was wrong, what was expected, how to mend it. Before any tracing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._numerics import eps
from jaxqn._typing import Array, ArrayTree
from jaxqn.linesearch import LineSearch
from jaxqn.quasi_newton import QuasiNewton


def is_traced(tree: ArrayTree) -> bool:
    """Whether any leaf is a tracer, so that its numbers cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_x0(x0: ArrayTree) -> tuple[ArrayTree, np.dtype, int]:
    """``x0`` with array leaves, their one dtype, and their total size."""
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
        if isinstance(leaf, (str, bytes)) or callable(leaf):
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
    """JAX has arrays in the machine's own order of bytes only."""
    if isinstance(leaf, np.ndarray | np.generic) and not leaf.dtype.isnative:
        raise TypeError(
            f"{name} has dtype {leaf.dtype.str}, whose bytes are in the other order: convert it "
            'with .astype(array.dtype.newbyteorder("="))'
        )


def check_values(method: Any, linesearch: Any, args: Any) -> None:
    """The arguments that are values of this library, or functions."""
    if not isinstance(method, QuasiNewton):
        raise TypeError(
            "method must be a name or a jaxqn.QuasiNewton such as jaxqn.dense(), but it is "
            f"{_described(method)}"
        )
    check_linesearch(linesearch)
    if not isinstance(args, tuple | list):
        raise TypeError(
            f"args must be a tuple of the further arguments of fun, but it is {_described(args)}: "
            "write args=(data,)"
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(tuple(args))[0]:
        check_native(f"args{jax.tree_util.keystr(path)}", leaf)
        if not _is_array(leaf) and not isinstance(leaf, int | float | complex):
            raise TypeError(
                f"args{jax.tree_util.keystr(path)} is {_described(leaf)}, not an array of "
                "numbers or a number: bind it to fun, for instance with functools.partial"
            )


def _is_array(leaf: Any) -> bool:
    """Whether JAX takes it for an array: numbers or keys, not text, dates or objects."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUmM"
    return isinstance(leaf, jax.Array) or hasattr(leaf, "__jax_array__")


def check_linesearch(linesearch: Any) -> None:
    """A line search is a value."""
    if not isinstance(linesearch, LineSearch):
        raise TypeError(
            "linesearch must be a jaxqn.LineSearch such as jaxqn.wolfe() or "
            f"jaxqn.backtracking(), but it is {_described(linesearch)}"
        )


def check_callback(callback: Any) -> None:
    """A callback is called."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function, but it is {_described(callback)}")


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return f"a {type(value).__name__}" + (f" ({value!r})" if isinstance(value, str) else "")


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


def check_initial(H0: Any, x: ArrayTree, dense: bool) -> ArrayTree:
    """An initial inverse Hessian: a matrix for a dense method over flat x, else a diagonal."""
    if isinstance(H0, str):
        raise TypeError(f"hess_inv0 must be an array, but it is {_described(H0)}")
    if not dense:
        return check_diagonal(H0, x)
    leaves = jax.tree.leaves(x)
    return check_hess_inv0(H0, sum(leaf.size for leaf in leaves), leaves[0].dtype)


def check_hess_inv0(H0: Any, n: int, dtype: np.dtype) -> Array:
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


def _check_positive(name: str, entries: Any) -> None:
    if is_traced(entries):
        return
    entries = np.asarray(entries)
    if not np.all((entries > 0) & np.isfinite(entries)):
        raise ValueError(f"{name} must be positive and finite throughout")


def check_diagonal(H0: Any, x0: ArrayTree) -> ArrayTree:
    """The diagonal of an initial inverse Hessian, a pytree like ``x0`` of positive entries."""
    return _positive_like("hess_inv0", H0, x0, "with limited memory, it is a diagonal")


def check_x_scale(x_scale: Any, x0: ArrayTree) -> ArrayTree | None:
    """Sizes of the parameters, a pytree like ``x0`` of positive entries; one number is for all."""
    if x_scale is None:
        return None
    if isinstance(x_scale, str | bytes):
        raise TypeError(f"x_scale must be an array or a number, but it is {_described(x_scale)}")
    if isinstance(x_scale, int | float) or (_is_array(x_scale) and jnp.ndim(x_scale) == 0):
        size = jnp.asarray(x_scale, float)
        x_scale = jax.tree.map(lambda leaf: jnp.full(leaf.shape, size, leaf.dtype), x0)
    return _positive_like("x_scale", x_scale, x0, "take 1 where a size is not known")


def _positive_like(what: str, tree: Any, x0: ArrayTree, hint: str) -> ArrayTree:
    """A pytree like ``x0`` of positive entries."""
    structures: list[Any] = [jax.tree.structure(part) for part in (x0, tree)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"{what} must be a pytree like x0 ({hint}): expected {structures[0]}, but got "
            f"{structures[1]}"
        )

    def checked(path: Any, a: Any, leaf: Any) -> Array:
        name, a = what + jax.tree_util.keystr(path), jnp.asarray(a)
        if a.shape != leaf.shape:
            raise ValueError(
                f"{name} has shape {a.shape}, but x0 has {leaf.shape} there: it must be like x0 "
                f"({hint})"
            )
        if jnp.iscomplexobj(a):
            raise TypeError(f"{name} is complex ({a.dtype}), but must be positive")
        a = a.astype(leaf.dtype)
        _check_positive(f"{name} ({hint})", a)
        return a

    return jax.tree_util.tree_map_with_path(checked, tree, x0)


def nonnegative(name: str, value: Any, dtype: np.dtype) -> Any:
    """A tolerance as a scalar of ``dtype``."""
    value = _number(name, value)
    if not is_traced(value) and not value >= 0:
        raise ValueError(f"{name} must be at least 0, but it is {value}")
    return value.astype(dtype)


def whole_number(name: str, value: Any, *, least: int) -> Any:
    """A budget as an int32 scalar."""
    value = _number(name, value)
    if is_traced(value):
        return value.astype(jnp.int32)
    if not (np.isfinite(value) and value == np.floor(value) and value >= least):
        raise ValueError(f"{name} must be a whole number of at least {least}, but it is {value}")
    return np.int32(min(int(value), np.iinfo(np.int32).max))


def _number(name: str, value: Any) -> Any:
    """A real scalar."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.iscomplexobj(array):
        raise TypeError(f"{name} must be a real number, but it is {value!r}")
    if array.shape != ():
        raise ValueError(f"{name} must be one number, but it has shape {array.shape}")
    return array


def check_state(state: Any, fresh: Any) -> None:
    """A state to continue must look like the one that a new run would start from."""
    if type(state) is not type(fresh):
        raise TypeError(f"state must be that of an earlier result, but it is {_described(state)}")
    structures: list[Any] = [jax.tree.structure(state), jax.tree.structure(fresh)]
    if structures[0] != structures[1]:
        raise ValueError(
            "state comes from a run with another method, line search or has_aux: continue it with "
            "the options it was made with"
        )
    old, new = (_shapes(s.point.x) for s in (state, fresh))
    if old != new:
        raise ValueError(
            f"state comes from a problem with x of shape and dtype {old}, but here x0 has {new}"
        )
    if _shapes(state) != _shapes(fresh):
        raise ValueError(
            "state comes from a run with another method or line search: its arrays have other "
            "shapes than those of this method"
        )


def _shapes(tree: ArrayTree) -> list[tuple[Any, Any]]:
    """Shape and dtype, leaf by leaf."""
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def split_aux(out: Any, name: str = "fun") -> tuple[Any, Any]:
    """The objective's ``(value, aux)``."""
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"with has_aux=True, {name} must return (value, aux), but it returned {_described(out)}"
        )
    return out


def scalar_value(value: Any, name: str = "fun") -> Array:
    """The objective's value as a scalar array."""
    if value is None or isinstance(value, tuple | list | dict):
        raise TypeError(
            f"{name} must return a scalar, but it returned {_described(value)}; if that is "
            "(value, aux), pass has_aux=True"
        )
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"{name} must return a scalar, but it returned shape {value.shape}: reduce it, for "
            "instance with jnp.sum"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} must return a real floating number, but it returned {value.dtype}: for a "
            "complex value take jnp.real or jnp.abs"
        )
    return value
