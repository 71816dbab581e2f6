"""Limited memory as optax transformations: L-BFGS, L-SR1, and Adam's diagonal with pairs on top."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import answered_part, check_number
from jaxqn.quasi_newton import lbfgs_memory, lsr1_memory
from jaxqn.transforms.common import adam_diagonal, all_entries, at_least_float32, once
from jaxqn.transforms.quasi_newton import (
    ScaleByQuasiNewtonState,
    precondition,
    scale_by_quasi_newton,
)

__all__ = [
    "ScaleByCorrectedAdamState",
    "scale_by_corrected_adam",
    "scale_by_lbfgs",
    "scale_by_lsr1",
]


@answered_part
def scale_by_lbfgs(
    memory: int = 10, *, history_dtype: Any = None, hess_inv0: Any = None
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with :func:`jaxqn.lbfgs_memory`.

    The parameters are not ravelled, and every array of the state keeps their sharding. JAX
    differentiates through the steps in forward mode (``jax.jvp``) only; through the steps of dense
    methods, in both modes.

    Args:
      memory: pairs to keep. With 1, every step is the gradient corrected by rank 2.
      history_dtype: dtype of the pairs in memory, for instance ``jnp.bfloat16``.
      hess_inv0: initial inverse Hessian, a diagonal like the parameters; by default gamma I with
        gamma from the newest pair.

    Example:
      >>> transform, x = scale_by_lbfgs(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    qn = lbfgs_memory(memory, history_dtype=history_dtype)
    return scale_by_quasi_newton(qn, hess_inv0=hess_inv0)


@answered_part
def scale_by_lsr1(
    memory: int = 10, *, history_dtype: Any = None, hess_inv0: Any = None
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with :func:`jaxqn.lsr1_memory`.

    Args:
      memory: pairs to keep.
      history_dtype: as in :func:`scale_by_lbfgs`.
      hess_inv0: as in :func:`scale_by_lbfgs`.

    Example:
      >>> transform, x = scale_by_lsr1(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    qn = lsr1_memory(memory, history_dtype=history_dtype)
    return scale_by_quasi_newton(qn, hess_inv0=hess_inv0)


class ScaleByCorrectedAdamState(NamedTuple):
    """State of :func:`scale_by_corrected_adam`.

    Attributes:
      nu: running mean of the squared gradients, like the parameters, in float32 or wider.
      pairs: the pairs, with the last point and gradient, a :class:`ScaleByQuasiNewtonState`.
    """

    nu: ArrayTree
    pairs: ScaleByQuasiNewtonState


@answered_part
def scale_by_corrected_adam(
    b2: float = 0.999, eps: float = 1e-8, *, memory: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Adam's diagonal, corrected by the rank-2 terms of the newest pairs.

        H g,   H the L-BFGS matrix of the newest pairs from H₀ = diag(1/(√ν̂ + eps)),

    with ν̂ the bias-corrected running mean of g². Where −H g is no direction of descent, ``update``
    returns H₀ g. The transformation does not average gradients: ``optax.ema`` or ``optax.trace``
    after it averages the directions.

    Args:
      b2: decay of the second moment.
      eps: term added to √ν̂.
      memory: pairs to keep; each is a correction of rank 2.

    Returns:
      An ``optax.GradientTransformationExtraArgs``: ``update(grads, state, params, **ignored)``.

    Raises:
      ValueError: ``b2`` is not in [0, 1), or ``eps`` is not positive.

    Cost: three reads of the 2 ``memory`` vectors per step.

    Example:
      >>> transform, x = scale_by_corrected_adam(), jnp.array([3.0])
      >>> direction, state = transform.update(2 * x, transform.init(x), x)
      >>> round(float(direction[0]), 3)  # Adam's first
      1.0
      >>> round(float(transform.update(2 * (x - 1), state, x - 1)[0][0]), 6)  # Newton's
      2.0

    References:
      Kingma & Ba, ICLR 2015, algorithm 1; Byrd, Nocedal & Schnabel, Mathematical Programming 63
      (1994), theorem 2.2.
    """
    b2 = check_number("b2", b2, "a fraction in [0, 1)")
    eps = check_number("eps", eps, "positive")
    pairs = scale_by_lbfgs(memory)

    def init(params: optax.Params) -> ScaleByCorrectedAdamState:
        return ScaleByCorrectedAdamState(
            nu=jax.tree.map(
                lambda p: jnp.zeros(jnp.shape(p), at_least_float32(jnp.result_type(p))), params
            ),
            pairs=pairs.init(params),
        )

    def update(
        updates: optax.Updates,
        state: ScaleByCorrectedAdamState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByCorrectedAdamState]:
        if params is None:
            raise ValueError("rank-2 pairs need the parameters: call update(grads, state, params)")
        return once(
            _corrected_adam,
            updates,
            state,
            params,
            b2=b2,
            eps=eps,
            memory=memory,
            searched="value_fn" in extra_args,
        )

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, static_argnames=("b2", "eps", "memory", "searched"))
def _corrected_adam(
    updates: optax.Updates,
    state: ScaleByCorrectedAdamState,
    params: optax.Params,
    *,
    b2: float,
    eps: float,
    memory: int,
    searched: bool,
) -> tuple[optax.Updates, ScaleByCorrectedAdamState]:
    """The second moment, then the pairs with Adam's diagonal as H₀."""
    finite = all_entries(jnp.isfinite, updates)

    def second_moment(g: Array, nu: Array) -> Array:
        g = g.astype(nu.dtype)
        return jnp.where(finite, b2 * nu + (1 - b2) * g * g, nu)

    nu = jax.tree.map(second_moment, updates, state.nu)
    steps = state.pairs.count + finite.astype(state.pairs.count.dtype)
    directions, pairs = precondition(
        updates,
        state.pairs,
        params,
        adam_diagonal(nu, b2, eps, steps),
        qn=lbfgs_memory(memory),
        searched=searched,
    )
    return directions, ScaleByCorrectedAdamState(nu, pairs)
