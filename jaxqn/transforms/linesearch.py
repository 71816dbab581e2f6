"""Line searches as an optax transformation: an inner loop of trials around the objective."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import answered
from jaxqn.linesearch import (
    LineSearch,
    check_linesearch,
    expected_decrease,
    parabola_step,
    rounding_noise,
    stopped_short,
    trial_along_gradient,
    wolfe,
)
from jaxqn.loop import Box
from jaxqn.transforms.common import (
    BoundObjective,
    at_least_float32,
    box_of,
    check_can_evaluate,
    check_unmasked,
    float_dtypes,
    once,
    split_data,
)
from jaxqn.transforms.search_steps import is_inside, like, steps_along

__all__ = ["LinesearchInfo", "ScaleByLinesearchState", "scale_by_linesearch"]


class LinesearchInfo(NamedTuple):
    """How the last search went.

    Attributes:
      nfev: evaluations of value and gradient, int32.
      failed: whether the search found no acceptable step, although its slope promises more than the
        rounding of the objective. A search without an acceptable step takes that of the lowest
        trial, or zero.
    """

    nfev: Array
    failed: Array


class ScaleByLinesearchState(NamedTuple):
    """State of :func:`scale_by_linesearch`, with the field names of optax's searches.

    Attributes:
      learning_rate: the step length alpha taken, 0 if none.
      value: the objective at the new parameters; infinite before the first search.
      grad: the gradient there, like the parameters.
      expected: by how much the next step may promise to decrease the objective; infinite at first.
      info: a :class:`LinesearchInfo`.
    """

    learning_rate: Array
    value: Array
    grad: ArrayTree
    expected: Array
    info: LinesearchInfo


class TriedStep(NamedTuple):
    """A step length, with value and gradient there."""

    alpha: Array
    value: Array
    grad: ArrayTree


class SearchCarry(NamedTuple):
    """The carry of the loop over trials.

    Attributes:
      machine: state of the line search.
      best: the accepted trial, or the lowest so far; the start at first.
      nfev: trials so far.
      ended: whether the search has ended.
      failed: whether it has ended without an acceptable step.
    """

    machine: Any
    best: TriedStep
    nfev: Array
    ended: Array
    failed: Array


@answered
def scale_by_linesearch(
    linesearch: LineSearch | None = None, *, bounds: Any = None, has_aux: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Scale the updates by the step length that a jaxqn line search finds.

    The updates are a direction of descent: earlier transformations have flipped the sign. The
    first trial is 1, or less after a search that stopped short of 1 (Nocedal & Wright, 2006, eq.
    3.60), or where the model promises a decrease out of proportion. At the first call, and along
    the plain negative gradient, the first trial is the driver's, min(1/‖d‖, 2 |f|/|dᵀg|), which
    follows the scale of the objective. A search that fails sets ``state.info.failed`` and takes its
    lowest trial, or a zero step if no trial was lower than the start: never a worse point.

    With ``bounds`` the search goes along P(params + alpha d), the params clipped to the box, and
    calls ``value_fn`` at no point outside of it, not by a last digit. ``optax.apply_updates`` ends
    in the box, too. It ends at a bound exactly where one sum can: a parameter that is much larger
    than its bound may need two or three steps. A parameter stays at a bound where the gradient or
    the updates push it out; if the rest of a direction of descent does not descend, −g takes its
    place. Take the direction from :func:`jaxqn.scale_by_quasi_newton` with the same bounds: one
    from the whole gradient is no better than −g once bounds hold parameters. Params outside of the
    box go into it without a search, and ``state.value`` is then infinite.

    Args:
      linesearch: a :class:`jaxqn.LineSearch`; by default :func:`jaxqn.wolfe`.
      bounds: as in :func:`jaxqn.minimize`.
      has_aux: whether ``value_fn`` returns ``(value, aux)``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``: ``update(updates, state, params, *, value, grad,
      value_fn, **data)``, with the objective, and its value and gradient at ``params``.
      ``value_fn`` receives those of ``data`` that its signature names, or all if it takes
      ``**kwargs``. An eager call compiles ``value_fn`` once, as ``jax.jit`` would: keep it one
      function, and pass changing data as arrays, because JAX reads everything else only once.

    Raises:
      TypeError: ``linesearch`` is no line search, or takes no bounds; ``value``, ``grad`` or
        ``value_fn`` is missing.
      ValueError: ``params`` is missing, or has masked leaves so that ``value_fn`` cannot be called;
        at ``init`` and ``update``, ``bounds`` that are NaN, crossed, or not like ``params``.

    Cost: one evaluation of value and gradient per trial, and a few passes over the parameters. An
    eager call checks the bounds each time; a compiled one, when it is traced.

    Example:
      >>> f = lambda x: jnp.sum(x**2)
      >>> solver, x = optax.chain(optax.scale(-1.0), scale_by_linesearch()), jnp.array([3.0, 4.0])
      >>> state, value_and_grad = solver.init(x), optax.value_and_grad_from_state(f)
      >>> for _ in range(10):
      ...     value, grad = value_and_grad(x, state=state)
      ...     updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=f)
      ...     x = optax.apply_updates(x, updates)
      >>> bool(f(x) < 1e-9)
      True
    """
    linesearch = wolfe() if linesearch is None else linesearch
    check_linesearch(linesearch, bends=bounds is not None)

    def init(params: optax.Params) -> ScaleByLinesearchState:
        check_unmasked("a line search", params)
        dtypes = list(float_dtypes(params)) or [jnp.result_type(float)]
        box_of(bounds, params)  # raises if wrong
        widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
        return ScaleByLinesearchState(
            learning_rate=jnp.ones((), at_least_float32(widest)),
            value=jnp.full((), jnp.inf, widest),
            grad=jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.result_type(p)), params),
            expected=jnp.full((), jnp.inf, at_least_float32(widest)),
            info=LinesearchInfo(nfev=jnp.zeros((), jnp.int32), failed=jnp.zeros((), bool)),
        )

    def update(
        updates: optax.Updates,
        state: ScaleByLinesearchState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        grad: optax.Updates | None = None,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLinesearchState]:
        check_can_evaluate(
            "a line search",
            params,
            value=value,
            grad=grad,
            value_fn=value_fn,
            instead="do without a search by choosing a learning_rate",
        )
        assert value_fn is not None
        arrays, statics = split_data(value_fn, extra_args)
        return once(
            _search,
            updates,
            state,
            params,
            value,
            grad,
            arrays,
            box_of(bounds, params),
            objective=BoundObjective(value_fn, statics, has_aux),
            linesearch=linesearch,
        )

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, static_argnames=("objective", "linesearch"))
def _search(
    updates: optax.Updates,
    state: ScaleByLinesearchState,
    params: optax.Params,
    value: Any,
    grad: optax.Updates,
    arrays: list[Any],
    box: Box | None,
    *,
    objective: BoundObjective,
    linesearch: LineSearch,
) -> tuple[optax.Updates, ScaleByLinesearchState]:
    """Run the state machine of the line search to its end, one trial per trip of the loop."""
    dtype = state.learning_rate.dtype
    steps = steps_along(updates, grad, params, box, dtype)

    def fun(x: optax.Params) -> Array:
        return objective(x, arrays).astype(dtype)

    def trip(search: SearchCarry) -> SearchCarry:
        alpha = search.machine.alpha
        phi, g = jax.value_and_grad(fun)(optax.apply_updates(params, steps.at(alpha)))
        dphi = steps.slope(alpha, g)
        machine, done, failed = linesearch.step(search.machine, phi, dphi, *steps.bends(alpha))
        better = done | ((phi < search.best.value) & jnp.isfinite(dphi))
        best = optax.tree.where(better, TriedStep(alpha, phi, like(params, g)), search.best)
        return SearchCarry(machine, best, search.nfev + 1, done | failed, failed)

    phi0 = jnp.asarray(value, dtype)
    start = TriedStep(jnp.zeros_like(phi0), phi0, like(params, grad))
    dphi0 = steps.slope(start.alpha, grad)
    steepest = steps.steepest()
    fresh = ~jnp.isfinite(state.value) | jnp.all(jnp.stack(steepest))
    alpha0 = parabola_step(state.expected, dphi0)
    alpha0 = jnp.where(fresh, _first_trial(phi0, dphi0, steps.direction), alpha0)
    hopeless = ~((dphi0 < 0) & jnp.isfinite(dphi0) & jnp.isfinite(phi0))
    search = SearchCarry(
        machine=linesearch.init(phi0, dphi0, alpha0),
        best=start,
        nfev=jnp.zeros((), jnp.int32),
        ended=hopeless,
        failed=hopeless,
    )
    search = jax.lax.while_loop(lambda search: ~search.ended, trip, search)
    best = search.best
    # At a minimum to the precision of the objective a search finds nothing, and nothing failed.
    noise = jnp.maximum(rounding_noise(phi0), getattr(search.machine, "noise", 0))
    stationary = jnp.all(jnp.stack([jnp.all(g == 0) for g in jax.tree.leaves(steps.gradient)]))
    below_rounding = (0.5 * jnp.abs(dphi0) <= noise) & ((dphi0 < 0) | stationary)
    failed = search.failed & ~below_rounding
    short = (
        ~fresh
        & ~search.failed
        & stopped_short(best.alpha, dphi0, steps.slope(best.alpha, best.grad))
    )
    step, new_value = steps.at(best.alpha), best.value.astype(state.value.dtype)
    if box is not None:  # nothing is known of the point where parameters enter the box
        new_value = jnp.where(is_inside(params, box), new_value, jnp.inf)
    return step, ScaleByLinesearchState(
        learning_rate=best.alpha,
        value=new_value,
        grad=best.grad,
        expected=expected_decrease(best.value, phi0 - best.value, short),
        info=LinesearchInfo(search.nfev, failed),
    )


def _first_trial(phi0: Array, dphi0: Array, direction: optax.Updates) -> Array:
    """The driver's first trial along −g, for a direction d of any length."""
    dd = optax.tree.vdot(direction, direction)
    length = jnp.sqrt(jnp.where(dd > 0, dd, jnp.ones_like(dd)))
    # |phi0| and the slope per length, |dphi0|/‖d‖, both divided by |dphi0|/‖d‖².
    return trial_along_gradient(jnp.abs(phi0) * (dd / jnp.abs(dphi0)), length, length)
