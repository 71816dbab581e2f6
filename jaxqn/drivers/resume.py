"""States of earlier runs: whether one can be continued here, and as it is stored here."""

import functools
from typing import Any

import jax

from jaxqn._typing import ArrayTree
from jaxqn.checks import described
from jaxqn.linalg import repack
from jaxqn.loop import LoopState, Scales
from jaxqn.quasi_newton import MemoryState, RegionMemoryState

__all__ = ["check_state", "given_of", "repacked"]


def repacked(state: LoopState, x0: ArrayTree) -> LoopState:
    """A state as it is stored here: a process with more devices stores small leaves apart."""
    memories = MemoryState | RegionMemoryState
    if not isinstance(state, LoopState) or not isinstance(state.approx, memories):
        return state
    as_here = functools.partial(repack, x=x0)
    return state._replace(
        point=state.point._replace(x=as_here(state.point.x), g=as_here(state.point.g)),
        lowest=state.lowest._replace(g=as_here(state.lowest.g)),
        plan=as_here(state.plan),
        approx=as_here(state.approx),
        scales=Scales(*map(as_here, state.scales)),
    )


def given_of(state: Any) -> tuple[Any, Any]:
    """What its caller gave a run and its state holds: a diagonal of a limited memory, and units."""
    approx = getattr(state, "approx", None)
    return getattr(approx, "start", None), getattr(state, "x_scale", None)


def check_state(state: Any, fresh: Any) -> None:
    """A state to continue must look like the one that a new run would start from."""
    if type(state) is not type(fresh):
        raise TypeError(f"state must be that of an earlier result, but it is {described(state)}")
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
