"""Limited-memory quasi-Newton for mini-batches: pairs on top of Adam's diagonal, no line search."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_count, check_initial, check_number
from jaxqn.linalg.vectors import tree_dtype, vdot
from jaxqn.quasi_newton import absorb_noisy_pair, bounded_direction, lbfgs_memory
from jaxqn.transforms.common import (
    Objective,
    adam_diagonal,
    all_entries,
    at_least_float32,
    check_unmasked,
    float_dtypes,
    once,
    split_data,
    unbiased,
)

__all__ = ["Anchor", "ScaleByStochasticLBFGSState", "scale_by_stochastic_lbfgs"]


class Anchor(NamedTuple):
    """A point, and a gradient there; or running means of both."""

    params: ArrayTree
    updates: ArrayTree


class ScaleByStochasticLBFGSState(NamedTuple):
    """State of :func:`scale_by_stochastic_lbfgs`; vectors are in float32 or wider.

    Attributes:
      count: finite gradients seen, int32.
      gradients: gradients evaluated beside those handed in, int32.
      mu: running mean of the gradients.
      nu: running mean of their squares.
      window: means over the calls since the last pair.
      anchor: where the next pair begins.
      pair: running means of s and of y.
      gamma: running mean of sᵀy/yᵀD y, shape ``()``; 0 before the first pair.
      approx: state of the limited memory; ``approx.counts`` has the pairs absorbed.
    """

    count: Array  # type: ignore[assignment]
    gradients: Array
    mu: ArrayTree
    nu: ArrayTree
    window: Anchor
    anchor: Anchor
    pair: tuple[ArrayTree, ArrayTree]
    gamma: Array
    approx: Any


class Options(NamedTuple):
    """The settings, hashable."""

    b1: float
    b2: float
    eps: float
    theta: float
    floor: float
    noise: float
    pair_decay: float
    clip: float
    memory: int
    every: int
    average: bool


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

    with m̂, ν̂ Adam's means and norms in the metric D⁻¹: no step is longer than Adam's (for ``clip``
    1), and before the first pair it is Adam's. Pairs come from one of three sources:

    - with ``value_fn=``, the loss on the batch at hand, a same-batch pair every ``every`` calls,
      between the means of the iterates in two consecutive windows of ``every`` calls
      (``average=True``, two more gradients) or between iterates (one more gradient);
    - with ``pair=(s, y)``, the one handed in, see :func:`jaxqn.same_batch_pair`; zero for none;
    - with neither, s and y are differences between two windows of the mean iterates and of the mean
      gradients: no more gradients, but the noise of the batches in y.

    It keeps to Adam rather than beating it: on small networks of digits, at equal numbers of
    gradients, tuned Adam was level or ahead (``python -m tests.benchmarks training``), and
    :func:`scale_by_kronecker` further. What it is for is curvature from exact same-batch pairs in
    a loop without a line search.

    A pair within its noise is refused (:func:`jaxqn.within_noise`), any other damped on both sides
    (:func:`jaxqn.doubly_damped_pair`). Pairs are measured in units of D: y is multiplied by the
    running gamma, so that the learning rate keeps the meaning it has for Adam, and multiplying the
    objective by a constant changes nothing but what ``eps`` does.

    Args:
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: term added to its root.
      memory: pairs to keep.
      every: calls between pairs.
      average: whether pairs are made of means of iterates.
      theta: Powell's damping; see :func:`jaxqn.powell_damping`.
      floor: curvature added to every pair, in units of D⁻¹/gamma; 0 for none.
      noise: standard deviations of noise that the curvature of a pair must exceed.
      pair_decay: decay of the running means of s and y that are absorbed in place of the newest
        ones; 0 for the newest ones.
      clip: longest step, in units of Adam's.
      hess_inv0: D instead of Adam's, a positive diagonal like the parameters.
      has_aux: whether ``value_fn`` returns ``(value, aux)``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, without a sign flip: follow it by a learning
      rate or a schedule. ``value_fn`` gets what its signature names of the other extra arguments:
      hand the batch over there and keep ``value_fn`` one function, for an eager call compiles anew
      for every other. A gradient that is not finite is handed on and changes no state, nor does
      one at parameters that are not.

    Raises:
      TypeError: at ``init``, a parameter is not real floating.
      ValueError: an option out of range; ``params`` is missing, or masked beside ``value_fn``.

    Cost: the extra gradients, which ``state.gradients`` counts; two reads of the 2 ``memory``
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
    lbfgs = lbfgs_memory(memory)
    options = Options(
        b1=check_number("b1", b1, "a fraction in [0, 1)"),
        b2=check_number("b2", b2, "a fraction in [0, 1)"),
        eps=check_number("eps", eps, "positive"),
        theta=check_number("theta", theta, "between 0 and 1"),
        floor=check_number("floor", floor, "at least 0"),
        noise=check_number("noise", noise, "at least 0"),
        pair_decay=check_number("pair_decay", pair_decay, "a fraction in [0, 1)"),
        clip=check_number("clip", clip, "positive"),
        memory=memory,
        every=check_count("every", every),
        average=bool(average),
    )

    def init(params: optax.Params) -> ScaleByStochasticLBFGSState:
        float_dtypes(params)
        wide = _wide(params)
        if hess_inv0 is not None:
            check_initial(hess_inv0, wide, False)

        def zeros() -> ArrayTree:
            return jax.tree.map(jnp.zeros_like, wide)

        return ScaleByStochasticLBFGSState(
            count=jnp.zeros((), jnp.int32),
            gradients=jnp.zeros((), jnp.int32),
            mu=zeros(),
            nu=zeros(),
            window=Anchor(zeros(), zeros()),
            anchor=Anchor(zeros(), zeros()),
            pair=(zeros(), zeros()),
            gamma=jnp.zeros((), tree_dtype(wide)),
            approx=lbfgs.init(wide),
        )

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
        objective: Objective | None = None
        arrays: list[Any] = []
        if value_fn is not None and pair is None:
            check_unmasked("a same-batch pair", params)
            arrays, statics = split_data(value_fn, extra_args)
            objective = Objective(value_fn, statics, has_aux)
        operands = (updates, state, params, pair, hess_inv0, arrays)
        return once(_step, *operands, objective=objective, options=options)

    return optax.GradientTransformationExtraArgs(init, update)


def _wide(tree: ArrayTree) -> ArrayTree:
    """Copies in float32 or wider."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, at_least_float32(jnp.result_type(leaf))), tree)


@functools.partial(jax.jit, static_argnames=("objective", "options"))
def _step(
    updates: optax.Updates,
    state: ScaleByStochasticLBFGSState,
    params: optax.Params,
    pair: tuple[optax.Params, optax.Updates] | None,
    diagonal: ArrayTree | None,
    arrays: list[Any],
    *,
    objective: Objective | None,
    options: Options,
) -> tuple[optax.Updates, ScaleByStochasticLBFGSState]:
    """Adam's means, the pair if one is due, and the direction."""
    finite = all_entries(jnp.isfinite, (updates, params))
    now = Anchor(_wide(params), _wide(updates))
    place = state.count % options.every + 1

    def mixed(old: ArrayTree, new: ArrayTree, weight: Array) -> ArrayTree:
        def of_leaf(old: Array, new: Array) -> Array:
            return jnp.where(finite, old + weight.astype(old.dtype) * (new - old), old)

        return jax.tree.map(of_leaf, old, new)

    def weight(value: Any) -> Array:
        return jnp.asarray(value, state.gamma.dtype)

    before = state
    squares = jax.tree.map(jnp.square, now.updates)
    state = state._replace(
        count=state.count + finite.astype(jnp.int32),
        mu=mixed(state.mu, now.updates, weight(1 - options.b1)),
        nu=mixed(state.nu, squares, weight(1 - options.b2)),
        window=mixed(state.window, now, 1 / weight(place)),
    )
    if diagonal is not None:
        D = jax.tree.map(lambda d, v: jnp.asarray(d, v.dtype), diagonal, state.nu)
    else:
        D = adam_diagonal(state.nu, options.b2, options.eps, state.count)

    if pair is not None:
        pair = jax.tree.map(lambda v: jnp.where(finite, v, 0), _wide(pair))
        state = _absorb(state, pair, D, options)
    else:
        end = state.window if options.average or objective is None else now
        due = finite & (place == options.every)

        def absorb() -> ScaleByStochasticLBFGSState:
            ends, begin, more = end, before.anchor, 0
            if objective is not None:

                def at(point: ArrayTree) -> ArrayTree:
                    point = jax.tree.map(lambda v, p: v.astype(jnp.result_type(p)), point, params)
                    return _wide(jax.grad(objective.__call__)(point, arrays))

                begin, more = begin._replace(updates=at(begin.params)), 1
                if options.average:
                    ends, more = ends._replace(updates=at(ends.params)), 2
            after = state._replace(gradients=state.gradients + more)
            return _absorb(after, tuple(optax.tree.sub(ends, begin)), D, options)

        # A cond, lest the extra gradients be paid at every call.
        state = jax.lax.cond(due & (state.count > options.every), absorb, lambda: state)
        state = state._replace(anchor=optax.tree.where(due, end, state.anchor))
    mean = unbiased(state.mu, options.b1, state.count)
    qn = lbfgs_memory(options.memory)
    direction = bounded_direction(qn, state.approx, mean, D, clip=options.clip)
    cast = jax.tree.map(lambda d, u: jnp.where(finite, d.astype(u.dtype), u), direction, updates)
    return cast, state


def _absorb(
    state: ScaleByStochasticLBFGSState,
    newest: tuple[ArrayTree, ArrayTree],
    D: ArrayTree,
    options: Options,
) -> ScaleByStochasticLBFGSState:
    """Mix a pair into the running one, and put that into the memory."""
    sound = jnp.isfinite(sum(vdot(v, v) for v in newest)) & (vdot(newest[0], newest[0]) > 0)

    def mixed(old: Array, new: Array) -> Array:
        return jnp.where(sound, options.pair_decay * old + (1 - options.pair_decay) * new, old)

    pair = jax.tree.map(mixed, state.pair, newest)
    s, y = (jax.tree.map(lambda v: jnp.where(sound, v, 0), part) for part in pair)
    approx, gamma = absorb_noisy_pair(
        lbfgs_memory(options.memory),
        state.approx,
        (s, y),
        state.gamma,
        D,
        theta=options.theta,
        floor=options.floor,
        sigmas=options.noise,
    )
    return state._replace(pair=pair, gamma=gamma, approx=approx)
