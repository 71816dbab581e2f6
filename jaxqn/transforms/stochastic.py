"""Limited-memory quasi-Newton for mini-batches: pairs on top of Adam's diagonal, no line search."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxqn._typing import ArrayTree
from jaxqn.checks import answered_part, check_count, check_initial, check_number
from jaxqn.linalg.vectors import tree_dtype
from jaxqn.quasi_newton import lbfgs_memory
from jaxqn.transforms.common import BoundObjective, check_unmasked, float_dtypes, once, split_data
from jaxqn.transforms.stochastic_step import (
    AdamOptions,
    PairOptions,
    PointAndGradient,
    ScaleByStochasticLBFGSState,
    stochastic_step,
    widened,
)

__all__ = ["ScaleByStochasticLBFGSState", "scale_by_stochastic_lbfgs"]


@answered_part
def scale_by_stochastic_lbfgs(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    memory: int = 5,
    every: int = 10,
    average: bool = True,
    theta: float = 0.2,
    floor: float = 1.0,
    noise: float = 1.0,
    pair_decay: float = 0.0,
    clip: float = 1.0,
    hess_inv0: Any = None,
    has_aux: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam, its diagonal corrected by damped limited-memory pairs; for mini-batches.

        d = min(1, clip ‖D m̂‖/‖H m̂‖) H m̂,   H the L-BFGS matrix from H₀ = D = diag(1/(√ν̂ + eps)),

    with m̂, ν̂ Adam's means and norms in the metric D⁻¹: for ``clip=1`` no step is longer than
    Adam's, and the steps before the first pair are Adam's. Pairs come from one of three sources:

    - with ``value_fn=``, the loss on the present batch, a same-batch pair every ``every`` calls,
      between the means of the iterates in two consecutive windows of ``every`` calls
      (``average=True``, two more gradients) or between iterates (one more gradient);
    - with ``pair=(s, y)``, the caller's pair, see :func:`jaxqn.same_batch_pair`; zeros for none;
    - with neither, s and y are differences between two windows of the mean iterates and of the mean
      gradients: no more gradients, but y contains the noise of the batches.

    On small networks for digits, at equal numbers of gradients, tuned Adam was level or ahead
    (``python -m tests.benchmarks training``), and :func:`jaxqn.scale_by_kronecker` was further
    ahead. The transformation gives curvature from exact same-batch pairs to a loop without a line
    search.

    The memory refuses a pair within its noise (:func:`jaxqn.within_noise`) and absorbs any other
    pair damped on both sides (:func:`jaxqn.doubly_damped_pair`). Pairs are in units of D: a running
    gamma multiplies y, so that the learning rate keeps its meaning from Adam, and multiplying the
    objective by a constant changes only the effect of ``eps``.

    Args:
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: term added to √ν̂.
      memory: pairs to keep.
      every: calls between pairs.
      average: whether pairs are made of means of iterates.
      theta: Powell's damping; see :func:`jaxqn.powell_damping`.
      floor: curvature added to every pair, in units of D⁻¹/gamma; 0 for none.
      noise: standard deviations of noise that the curvature of a pair must exceed.
      pair_decay: decay of running means of s and y, which the memory absorbs in place of the
        newest s and y; 0 for the newest.
      clip: longest step, in units of Adam's.
      hess_inv0: D instead of Adam's, a positive diagonal like the parameters.
      has_aux: whether ``value_fn`` returns ``(value, aux)``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, without a sign flip: follow it by a learning
      rate or a schedule. ``value_fn`` receives those of the other extra arguments that its
      signature names: pass the batch there and keep ``value_fn`` one function, because an eager
      call compiles every new function. Where the gradient or the parameters are not finite,
      ``update`` returns the gradient unchanged and keeps the state.

    Raises:
      TypeError: at ``init``, a parameter is not real floating.
      ValueError: an option out of range; ``params`` is missing, or masked beside ``value_fn``.

    Cost: the extra gradients, counted in ``state.gradients``; two reads of the 2 ``memory``
    vectors per step, four more per pair.

    Example:
      >>> optimizer = optax.chain(scale_by_stochastic_lbfgs(every=2), optax.scale(-0.1))
      >>> f = lambda x, scale: scale * jnp.sum(jnp.array([1.0, 10.0]) * x**2)
      >>> x, state = jnp.array([1.0, 1.0]), optimizer.init(jnp.array([1.0, 1.0]))
      >>> for i in range(40):
      ...     batch = 1.0 + 0.5 * jnp.float32(-1) ** i
      ...     grads = jax.grad(f)(x, batch)
      ...     updates, state = optimizer.update(grads, state, x, value_fn=f, scale=batch)
      ...     x = optax.apply_updates(x, updates)
      >>> bool(f(x, 1.0) < 0.1), int(state[0].gradients)
      (True, 38)

    References:
      Byrd, Hansen, Nocedal & Singer, SIAM J. Optim. 26 (2016), for pairs of averaged iterates;
      Wang, Ma, Goldfarb & Liu, SIAM J. Optim. 27 (2017), for damping (SdLBFGS).
    """
    lbfgs_memory(memory)  # raises for a memory out of range
    adam = AdamOptions(
        b1=check_number("b1", b1, "a fraction in [0, 1)"),
        b2=check_number("b2", b2, "a fraction in [0, 1)"),
        eps=check_number("eps", eps, "positive"),
    )
    pairs = PairOptions(
        memory=memory,
        every=check_count("every", every),
        average=bool(average),
        theta=check_number("theta", theta, "between 0 and 1"),
        floor=check_number("floor", floor, "at least 0"),
        noise=check_number("noise", noise, "at least 0"),
        decay=check_number("pair_decay", pair_decay, "a fraction in [0, 1)"),
        clip=check_number("clip", clip, "positive"),
    )

    def init(params: optax.Params) -> ScaleByStochasticLBFGSState:
        return _initial_state(params, hess_inv0, pairs)

    def update(
        updates: optax.Updates,
        state: ScaleByStochasticLBFGSState,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        pair: tuple[optax.Params, optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByStochasticLBFGSState]:
        if params is None:
            raise ValueError("pairs need the parameters: call update(grads, state, params)")
        objective: BoundObjective | None = None
        arrays: list[Any] = []
        if value_fn is not None and pair is None:
            check_unmasked("a same-batch pair", params)
            arrays, statics = split_data(value_fn, extra_args)
            objective = BoundObjective(value_fn, statics, has_aux)
        operands = (updates, state, params, pair, hess_inv0, arrays)
        return once(stochastic_step, *operands, objective=objective, adam=adam, pairs=pairs)

    return optax.GradientTransformationExtraArgs(init, update)


def _initial_state(
    params: optax.Params, hess_inv0: Any, pairs: PairOptions
) -> ScaleByStochasticLBFGSState:
    """The state before the first gradient."""
    float_dtypes(params)
    wide = widened(params)
    if hess_inv0 is not None:
        check_initial(hess_inv0, wide, False)

    def zeros() -> ArrayTree:
        return jax.tree.map(jnp.zeros_like, wide)

    return ScaleByStochasticLBFGSState(
        count=jnp.zeros((), jnp.int32),
        gradients=jnp.zeros((), jnp.int32),
        mu=zeros(),
        nu=zeros(),
        window=PointAndGradient(zeros(), zeros()),
        anchor=PointAndGradient(zeros(), zeros()),
        pair=(zeros(), zeros()),
        gamma=jnp.zeros((), tree_dtype(wide)),
        approx=lbfgs_memory(pairs.memory).init(wide),
    )
