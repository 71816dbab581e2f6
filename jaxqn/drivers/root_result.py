"""What a search for roots returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.drivers.result import message_of, status_shown
from jaxqn.loop import MESSAGES, Messages, Status, succeeded

__all__ = ["MESSAGES_OF_ROOTS", "RootResult", "like_returned"]

MESSAGES_OF_ROOTS = Messages(
    {
        **MESSAGES,
        Status.RUNNING: "Still running: continue it with root(..., state=result.state).",
        Status.CONVERGED: "Converged: F(x) is within tol, or without a tol as small as "
        "rounding of x leaves it.",
        Status.STALLED: "Stalled: no step brings F(x) closer to 0, but it is larger than "
        "rounding explains. Often x is next to a local minimum of the norm of F that is no root: "
        "compare it with other starts. For more digits use float64 or give x_scale.",
        Status.NON_FINITE: "F is not finite at x0. Start elsewhere, or look for log, sqrt or "
        "division by zero in fun.",
        Status.SINGULAR: "The Jacobian is singular at a point that is no root, and leads "
        "nowhere: some unknown has no effect on F, or x0 is a stationary point of its "
        "norm. Start elsewhere.",
    }
)
"""What each :class:`Status` means of a search for a root."""


class RootResult(NamedTuple):
    """What :func:`root` returns. Under ``vmap`` every field has the batch's leading axis.

    Attributes:
      x: the solution, like ``x0``.
      fun: F(x), as ``fun`` returns it; of :func:`fixed_point` g(x) − x.
      status: :class:`jaxqn.Status` as int32, shape ``()``.
      nit: steps taken, int32.
      nfev: evaluations of F, int32.
      njev: evaluations of its Jacobian, int32; with limited memory and GMRES, points at which
        products with it were taken.
      state: everything needed to continue the run: ``root(..., state=result.state)``; of a batch,
        a :class:`jaxqn.BatchState`.
      aux: auxiliary output of ``fun`` at ``x``, or ``None``.
    """

    x: ArrayTree
    fun: ArrayTree
    status: Array
    nit: Array
    nfev: Array
    njev: Array
    state: Any
    aux: Any = None

    def __repr__(self) -> str:
        """A single status by name; the state by its type only."""
        counts = f"nit={self.nit}, nfev={self.nfev}, njev={self.njev}"
        shown = f"status={status_shown(self.status)}, {counts}, fun={self.fun}"
        state = type(self.state).__name__
        return f"RootResult({shown}, x={self.x}, aux={self.aux}, state={state})"

    @property
    def success(self) -> Array:
        """Whether a tolerance was met: CONVERGED or XTOL. Boolean array."""
        return succeeded(self.status)

    @property
    def message(self) -> str:
        """The status in words, with advice. Only for a single, concrete result."""
        return message_of(self.status, MESSAGES_OF_ROOTS)


def like_returned(F: Array, like: ArrayTree) -> ArrayTree:
    """Flat values, of one problem or of many, in the structure of the arrays ``like``."""
    leaves, structure = jax.tree.flatten(like)
    parts = jax.lax.split(F, [leaf.size for leaf in leaves], axis=F.ndim - 1)
    shaped = [
        jnp.reshape(part, (*F.shape[:-1], *leaf.shape))
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)
