"""Readers of a limited memory: its pairs, and products with the matrix that they make."""

from typing import Any

import jax

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import is_packed, packing, unpacked
from jaxqn.quasi_newton.compact_form import slots_by_age
from jaxqn.quasi_newton.lbfgs import lbfgs_memory
from jaxqn.quasi_newton.lsr1 import lsr1_memory
from jaxqn.quasi_newton.lsr1_region import RegionMemoryState, lsr1_trust_region
from jaxqn.quasi_newton.memory_state import MemoryState, SR1MemoryState

__all__ = ["inverse_hessian_product", "stored_pairs"]


def stored_pairs(state: MemoryState | RegionMemoryState) -> tuple[ArrayTree, ArrayTree, Array]:
    """The pairs in memory, from the oldest to the newest.

    Args:
      state: of :func:`lbfgs_memory`, :func:`lsr1_memory` or :func:`lsr1_trust_region`.

    Returns:
      ``(S, Y, valid)``: stacks ``(m, *leaf.shape)``, and a mask ``(m,)``, false in front for pairs
      that are missing; what their rows hold means nothing.

    Raises:
      TypeError: the state is of a dense method, which keeps a matrix.

    Cost: a copy of the history; compiled once for these shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> qn, s = lbfgs_memory(m=2), jnp.array([1.0])
      >>> S, Y, valid = stored_pairs(qn.update(qn.init(s), s, 2 * s))
      >>> S[valid].tolist(), Y[valid].tolist()
      ([[1.0]], [[2.0]])
    """
    _check(state)
    return _in_order(state)


@jax.jit
def _in_order(state: MemoryState | RegionMemoryState) -> tuple[ArrayTree, ArrayTree, Array]:
    slots, valid = slots_by_age(state)
    S, Y = (jax.tree.map(lambda leaf: leaf[slots], stack) for stack in (state.s, state.y))
    return S, Y, valid


def inverse_hessian_product(state: MemoryState | RegionMemoryState, v: ArrayTree) -> ArrayTree:
    """H v for a state of limited memory, whatever its m: the ``apply`` of the method that made it.

    Args:
      state: of :func:`lbfgs_memory`, :func:`lsr1_memory` or :func:`lsr1_trust_region`.
      v: a vector like the parameters.

    Raises:
      TypeError: the state is of a dense method, which keeps a matrix.

    Cost: two reads of the history; compiled once for these shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> qn, s = lbfgs_memory(m=2), jnp.array([1.0])
      >>> inverse_hessian_product(qn.update(qn.init(s), s, 2 * s), 2 * s).tolist()
      [1.0]
    """
    _check(state)
    return _product(state, v)


@jax.jit
def _product(state: MemoryState | RegionMemoryState, v: ArrayTree) -> ArrayTree:
    memory: Any = lsr1_memory if isinstance(state, SR1MemoryState) else lbfgs_memory
    memory = lsr1_trust_region if isinstance(state, RegionMemoryState) else memory
    vector = packing(v)(v) if is_packed(state.s) else v
    return unpacked(memory(state.size).apply(state, vector), v)


def _check(state: Any) -> None:
    if not isinstance(state, MemoryState | RegionMemoryState):
        raise TypeError(f"expected a state of limited memory, but it is a {type(state).__name__}")
