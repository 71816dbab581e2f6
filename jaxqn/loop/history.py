"""What the last iterations of a run were like."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linalg import vectors
from jaxqn.loop.state import LoopState
from jaxqn.loop.units import from_scaled

__all__ = ["History", "merged", "no_history", "watched"]


class History(NamedTuple):
    """The last N iterations of a run, the first point being iteration 0.

    Every property has shape ``(N,)``, with the oldest iteration first; a run of fewer iterations
    fills the end with NaN. Under ``vmap`` there is the batch's leading axis.

    Attributes:
      table: the rows as they were written, that of iteration k at k modulo N, shape ``(N, 4)``.
      last: the last iteration, int32.
    """

    table: Array
    last: Array

    @property
    def fun(self) -> Array:
        """The value."""
        return self._column(0)

    @property
    def jac(self) -> Array:
        """The largest entry of the gradient, of what vanishes at a solution."""
        return self._column(1)

    @property
    def step(self) -> Array:
        """The length of the step to it, ‖x − x₋‖."""
        return self._column(2)

    @property
    def nfev(self) -> Array:
        """Evaluations so far."""
        return self._column(3)

    def _column(self, k: int) -> Array:
        size = self.table.shape[-2]
        start = jnp.maximum(self.last - size + 1, 0)[..., None]
        row = jnp.arange(size, dtype=jnp.int32)
        iteration = start + jnp.expand_dims(row, tuple(range(start.ndim - 1)))
        column = jnp.take_along_axis(self.table[..., k], iteration % size, axis=-1)
        return jnp.where(iteration <= self.last[..., None], column, jnp.nan)


def no_history(size: int, dtype: Any) -> Array:
    """A table with nothing in it."""
    return jnp.full((size, 4), jnp.nan, dtype)


def watched(table: Array, before: LoopState, after: LoopState) -> Array:
    """The table with a row for the point that a trip has come to, if it has moved."""
    moved = (after.nit > before.nit) | (before.nfev == 0)
    row = after.nit % table.shape[0]
    change = jax.tree.map(jnp.subtract, after.point.x, before.point.x)
    change = from_scaled(change, after.x_scale)
    measures = after.measures
    new = jnp.stack(
        [
            after.point.f,
            measures.jac_norm,
            jnp.sqrt(vectors.vdot(change, change)),
            after.nfev.astype(table.dtype),
        ]
    )
    return table.at[row].set(jnp.where(moved, new.astype(table.dtype), table[row]))


def merged(old: Array, new: Array) -> Array:
    """One table of an earlier slice of a run and of a later one."""
    return jnp.where(jnp.isnan(new[:, 3:]), old, new)
