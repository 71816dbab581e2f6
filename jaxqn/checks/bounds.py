"""Bounds on parameters, in every form that users have them, as two arrays per leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import ArrayTree
from jaxqn.checks.numbers import described, is_traced

__all__ = ["check_bounds"]

FORMS = (
    "bounds must be (lower, upper), each a number, None, or a pytree like x0 or a prefix of it; "
    "for a flat x0 also scipy.optimize.Bounds, or a list of (lower, upper) pairs"
)


def check_bounds(
    bounds: Any, x0: ArrayTree, axes: list[list[int | None]] | None = None
) -> tuple[ArrayTree, ArrayTree]:
    """Lower and upper bounds, each like ``x0``, with infinities for ``None``.

    Bounds in a wider dtype than ``x0`` are rounded into the box.

    Args:
      bounds: in any form that a user may give.
      x0: parameters of one problem, or their shapes and dtypes.
      axes: of the lower and the upper side, for each leaf of ``x0``, the axis that runs over
        problems. The result then has a leading axis of problems throughout.
    """
    named, structure = jax.tree_util.tree_flatten_with_path(x0)
    lower, upper = (
        [
            _floating(f"bounds[{side}]{jax.tree_util.keystr(path)}", value, leaf, axis)
            for (path, leaf), value, axis in zip(
                named,
                _spread(side, given, x0),
                [None] * len(named) if axes is None else axes[side],
                strict=True,
            )
        ]
        for side, given in enumerate(_two_sides(bounds, x0))
    )
    if axes is not None:
        lower, upper = _over_problems(lower, upper, named)
    pairs = [
        _checked(jax.tree_util.keystr(path), low, up, leaf.dtype)
        for (path, leaf), low, up in zip(named, lower, upper, strict=True)
    ]
    lower, upper = (jax.tree.unflatten(structure, side) for side in zip(*pairs, strict=True))
    return lower, upper


def _two_sides(bounds: Any, x0: ArrayTree) -> tuple[Any, ...]:
    """The lower and the upper side, from any of the forms."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):  # scipy.optimize.Bounds
        sides = [np.asarray(side, float) for side in (bounds.lb, bounds.ub)]
        lower, upper = (side[0] if side.shape == (1,) else side for side in sides)
        return lower, upper
    is_sequence = isinstance(bounds, tuple | list)
    flat = jax.tree_util.all_leaves([x0]) and len(jnp.shape(x0)) == 1
    listed = isinstance(bounds, list) or (is_sequence and len(bounds) != 2)
    if listed and flat and all(isinstance(p, tuple | list) and len(p) == 2 for p in bounds):
        n = jnp.shape(x0)[0]
        if len(bounds) != n:
            raise ValueError(f"bounds has {len(bounds)} pairs, but x0 has {n} entries")
        return _column(bounds, 0, -np.inf), _column(bounds, 1, np.inf)
    if not is_sequence or len(bounds) != 2:
        length = f" of {len(bounds)}" if is_sequence else ""
        raise TypeError(f"{FORMS}; but it is {described(bounds)}{length}")
    lower, upper = bounds
    if not flat:
        return lower, upper
    in_lists = [isinstance(side, tuple | list) for side in bounds]
    if all(in_lists) and jnp.shape(x0) == (2,) and len(lower) == len(upper) == 2:
        raise ValueError(
            f"bounds={bounds!r} may be two sides or two pairs: give the sides as arrays, "
            "(np.array(lower), np.array(upper)), or the pairs in a list"
        )
    frees = (-np.inf, np.inf)
    return tuple(
        _array(side, free) if is_list else side
        for side, is_list, free in zip(bounds, in_lists, frees, strict=True)
    )


def _column(pairs: Any, side: int, free: float) -> Any:
    """One side of a list of pairs, as an array."""
    return _array([pair[side] for pair in pairs], free)


def _array(entries: Any, free: float) -> Any:
    """Numbers in a list, as an array; ``None`` is free."""
    entries = [free if entry is None else entry for entry in entries]
    for i, entry in enumerate(entries):
        if isinstance(entry, bool | str | bytes) or len(jnp.shape(entry)) != 0:
            raise TypeError(f"entry {i} of bounds is {entry!r}, where a number or None is expected")
    return jnp.stack(entries) if is_traced(entries) else np.array(entries, float)


def _spread(side: int, prefix: Any, tree: ArrayTree) -> list[Any]:
    """One entry per leaf of ``tree``, from a prefix of it."""
    if prefix is None or isinstance(prefix, int | float) or _is_scalar(prefix):
        return [prefix] * len(jax.tree.leaves(tree))
    one_level: Any = jax.tree.structure(tree, is_leaf=lambda part: part is not tree)
    if jax.tree_util.treedef_is_leaf(one_level):
        return [prefix]
    try:
        prefixes = one_level.flatten_up_to(prefix)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"bounds[{side}] is not like x0: {str(error).rstrip('.')}. {FORMS}"
        ) from None
    parts = one_level.flatten_up_to(tree)
    spread = (_spread(side, *pair) for pair in zip(prefixes, parts, strict=True))
    return [entry for part in spread for entry in part]


def _is_scalar(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.ndim(value) == 0


def _floating(name: str, value: Any, leaf: Any, axis: int | None) -> Any:
    """One side of one leaf, in its own dtype; an axis of problems comes first."""
    if value is None:
        value = np.inf if name.startswith("bounds[1]") else -np.inf
    if isinstance(value, bool) or not (isinstance(value, int | float) or hasattr(value, "dtype")):
        raise TypeError(f"{name} is {described(value)}, where x0 has an array. {FORMS}")
    array: Any = value if isinstance(value, jax.Array) else np.asarray(value)
    array = array.astype(float) if isinstance(value, int) else array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {array.dtype}, but bounds are real: convert it with .astype(float)"
        )
    shape = jnp.shape(leaf)
    problems: tuple[int, ...] = ()
    if axis is not None and array.ndim:
        array = jnp.moveaxis(array, axis, 0) if is_traced(array) else np.moveaxis(array, axis, 0)
        problems = array.shape[:1]
    if array.shape not in (problems, problems + shape):
        raise ValueError(
            f"{name} has shape {array.shape}, but x0 has {shape} there: give one number, or one "
            "for every entry; bounds that run over problems need an entry of in_axes, the last"
        )
    array = array if is_traced(array) else np.asarray(array)
    if array.shape == problems:
        array = array.reshape(problems + (1,) * len(shape))
    lib: Any = jnp if is_traced(array) else np
    return lib.broadcast_to(array, problems + shape)


def _over_problems(lower: list[Any], upper: list[Any], named: Any) -> Any:
    """Both sides with a leading axis of problems, also those that problems share."""
    sizes = [
        a.shape[0]
        for side in (lower, upper)
        for a, (_, leaf) in zip(side, named, strict=True)
        if a.ndim > len(jnp.shape(leaf))
    ]
    if not sizes:
        raise ValueError("in_axes gives bounds an axis of problems, but they are numbers: say None")

    def spread(a: Any, leaf: Any) -> Any:
        lib: Any = jnp if is_traced(a) else np
        shape = jnp.shape(leaf)
        return a if a.ndim > len(shape) else lib.broadcast_to(a, (sizes[0], *shape))

    return [
        [spread(a, leaf) for a, (_, leaf) in zip(side, named, strict=True)]
        for side in (lower, upper)
    ]


def _checked(where: str, low: Any, up: Any, dtype: Any) -> tuple[Any, Any]:
    """The bounds of one leaf in the dtype of the parameters."""
    if is_traced((low, up)):
        return jnp.asarray(low).astype(dtype), jnp.asarray(up).astype(dtype)
    for side, bound in enumerate((low, up)):
        if np.any(np.isnan(bound)):
            place = _entry(np.isnan(bound))
            raise ValueError(f"bounds[{side}]{where} is NaN{place}: take None for no bound")
    if low.shape == up.shape and np.any(low > up):
        first = tuple(np.argwhere(low > up)[0])
        raise ValueError(
            f"the lower bound is above the upper one{_entry(low > up)}"
            f"{' of x0' + where if where else ''}: {low[first]} > {up[first]}"
        )
    return _rounded_inwards(low, up, dtype)


def _entry(wrong: np.ndarray) -> str:
    """Where the first wrong entry of an array is."""
    return f" at entry {[int(k) for k in np.argwhere(wrong)[0]]}" if wrong.ndim else ""


def _rounded_inwards(low: np.ndarray, up: np.ndarray, dtype: Any) -> tuple[Any, Any]:
    """Bounds in the dtype of the parameters, inside those given; equal ones stay equal."""
    with np.errstate(over="ignore"):
        nearest = below, above = low.astype(dtype), up.astype(dtype)
    below = np.where(below < low, np.nextafter(below, np.array(np.inf, dtype)), below)
    above = np.where(above > up, np.nextafter(above, np.array(-np.inf, dtype)), above)
    apart = below <= above
    lower, upper = (np.where(apart, a, b) for a, b in ((below, nearest[0]), (above, nearest[0])))
    return lower, upper
