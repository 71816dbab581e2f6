"""Helpers of all transformations: dtypes, bounds, compiled eager calls, objectives with data."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_bounds, is_traced, scalar_value, split_aux
from jaxqn.loop import Box


def float_dtypes(params: optax.Params) -> dict[np.dtype, str]:
    """The dtypes of the parameters, each with the name of the first leaf that has it."""
    dtypes: dict[np.dtype, str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name, dtype = "params" + jax.tree_util.keystr(path), jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} has dtype {dtype}, but only real floating parameters can be optimised: "
                "keep the others apart, for instance with optax.masked"
            )
        dtypes.setdefault(dtype, name)
    return dtypes


def check_one_dtype(params: optax.Params) -> None:
    """Raise an error for mixed dtypes: a dense method works on one flat vector of one dtype."""
    dtypes = float_dtypes(params)
    if len(dtypes) > 1:
        found = ", ".join(f"{name} is {dtype}" for dtype, name in dtypes.items())
        raise ValueError(
            f"a dense method needs one dtype for all parameters, but {found}: cast them, or "
            "give each dtype its own transformation with optax.partition"
        )


def box_of(bounds: Any, params: optax.Params) -> Box | None:
    """Bounds, checked, in the dtypes of the parameters; ``None`` where there are none.

    A leaf whose bounds are the same for all entries has one number: a compiled program holds it.
    """
    if bounds is None or not jax.tree.leaves(params):
        return None
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)

    def shortened(bound: Any) -> Any:
        same = isinstance(bound, np.ndarray) and bound.size and np.all(bound == bound.flat[0])
        return bound.reshape(-1)[0] if same else bound

    return Box(*(jax.tree.map(shortened, side) for side in check_bounds(bounds, shapes)))


def at_least_float32(dtype: np.dtype) -> np.dtype:
    """``dtype`` itself, or float32 in place of half precision, too coarse for curvature."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def all_entries(holds: Callable[[Array], Array], tree: ArrayTree) -> Array:
    """Whether something holds for all entries, shape ``()``."""
    return jnp.all(jnp.stack([jnp.all(holds(leaf)) for leaf in jax.tree.leaves(tree)]))


def unbiased(mean: ArrayTree, decay: float, count: Array) -> ArrayTree:
    """A running mean that began at zero, over its total weight 1 − decayᵏ; zero at k = 0."""

    def of_leaf(v: Array) -> Array:
        k = jnp.maximum(count, 1).astype(v.dtype)
        return v / (1 - jnp.power(jnp.asarray(decay, v.dtype), k))

    return jax.tree.map(of_leaf, mean)


def adam_diagonal(nu: ArrayTree, decay: float, eps: float, count: Array) -> ArrayTree:
    """Adam's 1/(√ν̂ + eps), from the running mean of the squares."""
    return jax.tree.map(lambda v: 1 / (jnp.sqrt(v) + eps), unbiased(nu, decay, count))


def once(compiled: Any, *operands: Any, **static: Any) -> Any:
    """Call a jitted function; inside another trace, call the function under the ``jit``.

    An eager training loop calls ``update`` at every step, and ``jit`` traces the step only once.
    Inside another trace a second ``jit`` saves nothing, and ``jit`` refuses an unhashable static.
    Without updates, as for a label of ``optax.partition`` that no parameter has, the state is
    returned unchanged.
    """
    updates, state, *_ = operands
    if not jax.tree.leaves(updates):
        return updates, state
    try:
        hash(tuple(static.values()))
    except TypeError:
        hashable = False
    else:
        hashable = True
    direct = is_traced(operands) or not hashable
    return (compiled.__wrapped__ if direct else compiled)(*operands, **static)


class BoundObjective(NamedTuple):
    """A ``value_fn`` bound to the extra arguments that are no arrays; hashable, to be static.

    Attributes:
      value_fn: ``(params, **data) -> value``, or ``(value, aux)``.
      statics: the leaves of the data with ``None`` for every array, and the structure of the data.
      has_aux: whether ``value_fn`` returns auxiliary data beside its value.
    """

    value_fn: Callable[..., Any]
    statics: tuple[tuple[Any, ...], Any]
    has_aux: bool = False

    def __call__(self, params: optax.Params, arrays: list[Any]) -> Array:
        """The value at ``params``, shape ``()``, with the arrays of the data in place."""
        constants, structure = self.statics
        data = structure.unflatten(
            [c if a is None else a for a, c in zip(arrays, constants, strict=True)]
        )
        out = self.value_fn(params, **data)
        value = split_aux(out, "value_fn")[0] if self.has_aux else out
        return scalar_value(value, "value_fn")


def check_can_evaluate(
    who: str,
    params: optax.Params | None,
    *,
    instead: str | None = None,
    **given: Any,
) -> None:
    """Raise an error unless ``params`` are given, unmasked, and so are these arguments."""
    call = "".join(f", {name}=..." for name in given)
    if params is None:
        raise ValueError(f"{who} needs the parameters: call update(grads, state, params{call})")
    missing = [f"{name}=" for name, argument in given.items() if argument is None]
    if missing:
        advice = f", or {instead}" if instead else ""
        raise TypeError(
            f"{who} evaluates the objective, but {', '.join(missing)} is missing: call "
            f"update(grads, state, params{call}){advice}"
        )
    check_unmasked(who, params)


def check_unmasked(who: str, params: optax.Params) -> None:
    """Raise an error where some parameters are masked, since ``value_fn`` needs them all.

    With all parameters masked there are no updates, and ``value_fn`` is not called.
    """
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
    masked = [isinstance(leaf, optax.MaskedNode) for leaf in leaves]
    if any(masked) and not all(masked):
        raise ValueError(
            f"{who} cannot evaluate value_fn with masked parameters: put it outside, for "
            "instance optax.chain(optax.masked(jaxqn.scale_by_bfgs(), mask), optax.scale(-1.0), "
            "jaxqn.scale_by_linesearch()), or do without it by choosing a learning_rate"
        )


def split_data(
    value_fn: Callable[..., Any], extra_args: dict[str, Any]
) -> tuple[list[Any], tuple[tuple[Any, ...], Any]]:
    """The extra arguments that ``value_fn`` takes, arrays apart from all others."""
    leaves, structure = jax.tree.flatten(_accepted_by(value_fn, extra_args))
    is_array = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
    arrays = [leaf if array else None for leaf, array in zip(leaves, is_array, strict=True)]
    constants = tuple(None if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    return arrays, (constants, structure)


def _accepted_by(value_fn: Callable[..., Any], extra_args: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments that the objective can take beside the parameters."""
    try:
        first, *rest = inspect.signature(value_fn).parameters.values()
    except (TypeError, ValueError):  # for instance a builtin
        return {}
    kinds = {p.name: p.kind for p in rest}
    if inspect.Parameter.VAR_KEYWORD in kinds.values():
        return {name: value for name, value in extra_args.items() if name != first.name}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: value for name, value in extra_args.items() if kinds.get(name) in named}
