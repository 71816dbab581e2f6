"""The state of a dense inverse Hessian: a matrix, a panel beside it, and what they stand for."""

from typing import NamedTuple, cast

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linalg import HIGHEST

__all__ = ["DenseState", "identity", "inverse_hessian", "panel_of", "with_inverse"]


class DenseState(NamedTuple):
    """A dense H: a matrix, and beside it a panel of corrections until they are folded in.

        H = identity_factor · I + matrix_factor · matrix + panel diag(weights) panelᵀ

    Attributes:
      matrix: shape ``(n, n)``; meaningless while its factor is 0.
      base: ``identity_factor`` and ``matrix_factor``, shape ``(2,)``.
      panel: correction vectors in columns, shape ``(n, 2 k)``; ``None`` for k = 0, where every
        correction goes into the matrix at once.
      weights: their weights, shape ``(2 k,)``; ``None`` likewise.
      counts: ``absorbed``, ``refused`` and ``used``, int32, shape ``(3,)``.
    """

    matrix: Array
    base: Array
    panel: Array | None
    weights: Array | None
    counts: Array

    @property
    def identity_factor(self) -> Array:
        """Factor of I in H, shape ``(...)``."""
        return self.base[..., 0]

    @property
    def matrix_factor(self) -> Array:
        """Factor of the matrix in H, shape ``(...)``."""
        return self.base[..., 1]

    @property
    def absorbed(self) -> Array:
        """Pairs absorbed since the start or the last reset, int32, shape ``(...)``."""
        return self.counts[..., 0]

    @property
    def refused(self) -> Array:
        """Pairs refused since the start, int32, shape ``(...)``."""
        return self.counts[..., 1]

    @property
    def used(self) -> Array:
        """Columns of the panel in use, int32, shape ``(...)``."""
        return self.counts[..., 2]


def panel_of(state: DenseState) -> tuple[Array, Array]:
    """The panel and its weights, of a state that has them."""
    return cast(Array, state.panel), cast(Array, state.weights)


def with_inverse(state: DenseState, inverse: Array, usable: Array, corrected: Array) -> DenseState:
    """The state, which has no panel, with H = ``inverse`` where that is ``usable``, else H = I.

    An inverse that had to be ``corrected`` counts as a pair refused, any other as one absorbed.
    """
    tally = jnp.stack([~corrected, corrected, jnp.zeros((), bool)])
    return state._replace(
        matrix=inverse,
        base=jnp.stack([~usable, usable]).astype(state.base.dtype),
        counts=state.counts + tally.astype(jnp.int32),
    )


def inverse_hessian(state: DenseState) -> Array:
    """The matrix H of a dense state, symmetric, shape ``(..., n, n)``, for any batch axes."""
    shift, scale = state.identity_factor[..., None, None], state.matrix_factor[..., None, None]
    H = shift * identity(state) + scale * state.matrix
    if state.panel is not None:
        panel, weights = panel_of(state)
        H += jnp.einsum("...k,...ik,...jk->...ij", weights, panel, panel, precision=HIGHEST)
    return 0.5 * (H + jnp.swapaxes(H, -1, -2))


def identity(state: DenseState) -> Array:
    """The identity matrix, shape ``(..., n, n)``."""
    identity = jnp.eye(state.matrix.shape[-1], dtype=state.matrix.dtype)
    return jnp.broadcast_to(identity, state.matrix.shape)
