"""``in_axes``, as ``jax.vmap`` has it, for a tree of arguments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree

__all__ = ["Layout", "axes_of", "common_size", "split", "spread_axes"]


class Layout(NamedTuple):
    """Which leaves of the arguments run over problems. Hashable.

    Attributes:
      structure: of the arguments.
      mapped: for every leaf, whether it runs over problems.
    """

    structure: Any
    mapped: tuple[bool, ...]

    def join(self, mapped: list[Array], shared: list[Any]) -> tuple[Any, ...]:
        """The arguments again, with these leaves."""
        those, others = iter(mapped), iter(shared)
        leaves = [next(those) if is_mapped else next(others) for is_mapped in self.mapped]
        return jax.tree.unflatten(self.structure, leaves)


def split(in_axes: Any, arguments: tuple[Any, ...]) -> tuple[list[Array], list[Any], Layout]:
    """The leaves that run over problems, that axis first; the others; and how to join them."""
    axes = axes_of(in_axes, arguments)
    named, structure = jax.tree_util.tree_flatten_with_path(arguments)
    mapped, shared = [], []
    for (path, leaf), axis in zip(named, axes, strict=True):
        if axis is None:
            shared.append(leaf)
        elif not -jnp.ndim(leaf) <= axis < jnp.ndim(leaf):
            place, *rest = path
            name = "x0" if place.idx == 0 else f"args[{place.idx - 1}]"
            raise ValueError(
                f"{name}{jax.tree_util.keystr(tuple(rest))} has shape {jnp.shape(leaf)}, and so no "
                f"axis {axis} of problems: give it one, or say None for it in in_axes"
            )
        else:
            mapped.append(jnp.moveaxis(jnp.asarray(leaf), axis, 0))
    return mapped, shared, Layout(structure, tuple(axis is not None for axis in axes))


def axes_of(in_axes: Any, arguments: tuple[Any, ...]) -> list[int | None]:
    """One axis per leaf of the arguments; what is no tuple holds for every argument."""
    if not isinstance(in_axes, tuple | list):
        in_axes = [in_axes] * len(arguments)
    elif len(in_axes) != len(arguments):
        raise ValueError(
            f"in_axes has {len(in_axes)} entries, but there are {len(arguments)} arguments: "
            "one for x0, one for each of args, and one for bounds if they run over problems"
        )
    pairs = zip(in_axes, arguments, strict=True)
    return [axis for prefix, tree in pairs for axis in spread_axes(prefix, tree)]


def spread_axes(prefix: Any, tree: ArrayTree) -> list[int | None]:
    """One axis per leaf of the tree, from a prefix of it."""
    if prefix is None or hasattr(prefix, "__index__"):
        return [prefix if prefix is None else int(prefix)] * len(jax.tree.leaves(tree))
    one_level: Any = jax.tree.structure(tree, is_leaf=lambda part: part is not tree)
    try:
        if jax.tree_util.treedef_is_leaf(one_level):
            raise ValueError(f"{prefix!r} stands for an array")
        prefixes = one_level.flatten_up_to(prefix)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"in_axes must be an axis, None, or a pytree of these like the arguments: {error}"
        ) from None
    parts = one_level.flatten_up_to(tree)
    pairs = zip(prefixes, parts, strict=True)
    return [axis for below, part in pairs for axis in spread_axes(below, part)]


def common_size(mapped: list[Array]) -> int:
    """How many problems there are."""
    sizes = {leaf.shape[0] for leaf in mapped}
    if not sizes:
        raise ValueError(
            "nothing runs over problems: give x0 or an argument a leading axis of problems, and "
            "say so in in_axes, for instance in_axes=(None, 0)"
        )
    if len(sizes) > 1:
        raise ValueError(
            f"the axes of problems differ in size, {sorted(sizes)}: check in_axes for what the "
            "problems share"
        )
    (size,) = sizes
    if size == 0:
        raise ValueError("there are no problems: the axis of problems has size 0")
    return size
