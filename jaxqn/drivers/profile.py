"""Profile-likelihood intervals: ``profile_intervals(fun, result, args)``."""

from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree, Objective
from jaxqn.checks import (
    answered,
    check_args,
    check_bounds,
    check_hashable,
    check_number,
    check_parameters,
    check_x0,
)
from jaxqn.drivers.covariance_result import like
from jaxqn.drivers.local_curvature import flat_objective, local
from jaxqn.drivers.profile_problems import problems_of
from jaxqn.drivers.profile_search import (
    BOUND,
    FOUND,
    NEW_MINIMUM,
    NOT_FOUND,
    OPEN,
    search,
)
from jaxqn.drivers.small_programs import eager_program
from jaxqn.drivers.uncertainty import check_noise, minimum_of
from jaxqn.formulas import normal_quantile, student_quantile
from jaxqn.loop import Box, SumOfSquares

__all__ = ["ENDS", "Intervals", "profile_intervals"]

ENDS = (
    "found",
    "at a bound: the objective does not rise to its level before; the end is the bound",
    "open: the objective does not rise to its level within 1000 times the expected distance, or "
    "the data do not determine the parameter; the end is infinite",
    "new minimum: a point lower than the result was met; fit on from x_lowest",
    "not found: the objective is not smooth, or not finite, around the end",
    "not asked for",
)
"""What the codes of :class:`Intervals` mean, in words."""

NOT_ASKED = 5


class Intervals(NamedTuple):
    """What :func:`profile_intervals` returns.

    Attributes:
      lower: lower ends, like ``x``; NaN where they were not asked for, or a new minimum was met.
      upper: upper ends.
      lower_code: what became of the lower ends, like ``x``, int32: 0 found, 1 a bound, 2 open, 3 a
        new minimum, 4 not found, 5 not asked for.
      upper_code: the same of the upper ends.
      x_lowest: the lowest point met, like ``x``: where to fit again from after code 3.
      rounds: how often all parameters were moved and the others fitted again, int32.
      nfev: evaluations of all these fits with gradients, or Jacobians, int32.
    """

    lower: ArrayTree
    upper: ArrayTree
    lower_code: ArrayTree
    upper_code: ArrayTree
    x_lowest: ArrayTree
    rounds: Array
    nfev: Array

    @property
    def success(self) -> Array:
        """Whether all ends that were asked for are found, bounds, or open. Boolean array."""
        codes = jax.tree.leaves((self.lower_code, self.upper_code))
        batch = jnp.ndim(self.rounds)
        flat = jnp.concatenate([a.reshape(*a.shape[:batch], -1) for a in codes], axis=-1)
        return jnp.all((flat != NEW_MINIMUM) & (flat != NOT_FOUND), axis=-1)

    @property
    def reason(self) -> str:
        """The ends that are not simply found, in words. Only for a single, concrete result."""
        if np.ndim(self.rounds):
            raise ValueError("reason is for one problem; a batch has codes: see jaxqn.ENDS")
        sides = []
        for side, codes in (("lower", self.lower_code), ("upper", self.upper_code)):
            for path, leaf in jax.tree_util.tree_flatten_with_path(codes)[0]:
                for place, code in np.ndenumerate(np.asarray(leaf)):
                    if code not in (FOUND, NOT_ASKED):
                        entry = str([int(k) for k in place]) if place else ""
                        name = f"x{jax.tree_util.keystr(path)}{entry}"
                        sides.append(f"{side} end of {name}: {ENDS[int(code)]}")
        return "; ".join(sides) or "all ends are found"


@answered
def profile_intervals(
    fun: Objective,
    result: Any,
    args: tuple[Any, ...] = (),
    *,
    level: Any = 0.95,
    parameters: Any = None,
    noise: Any = None,
    bounds: Any = None,
    has_aux: bool = False,
) -> Intervals:
    """Confidence intervals by profile likelihood, as of Minuit's MINOS; they need not be symmetric.

        min over the others of f(x | xᵢ = end) = f + q²/2,    P(|z| ≤ q) = level

    with z normal, or Student's t with m − n degrees of freedom where s² is estimated; of sums of
    squares f is the cost over s². A reparametrisation of the model moves the ends along with it.
    Every parameter and side is a problem in the lanes of :func:`jaxqn.minimize_batch`, which start
    on the tangent of the profile, in units in which f is nearly ½‖y‖²; two or three rounds of them
    find the ends to 1e-5 of the width.

    Args:
      fun: the objective that was minimised: a negative log likelihood, or a
        :func:`jaxqn.sum_of_squares` with the loss "linear".
      result: its minimum: what :func:`jaxqn.minimize` or :func:`jaxqn.least_squares` returned, or
        the point.
      args: further arguments of ``fun``.
      level: the probability of the interval.
      parameters: those wanted, by default all: a key of the dictionary x or a list of keys (indices
        of a tuple or a list), or booleans, like ``x`` or a prefix of it.
      noise: of sums of squares "estimated", "unit" or a number; see :func:`jaxqn.covariance`.
      bounds: those of the fit; nothing outside is evaluated, and an end that would lie there is the
        bound.
      has_aux: whether ``fun`` returns auxiliary data.

    Returns:
      An :class:`Intervals`. Ends that there are not are infinite; ``lower_code``, ``upper_code``
      and ``reason`` say what became of each.

    Raises:
      ValueError: no ``noise`` for a sum of squares; a robust loss, which is no likelihood; no such
        parameters; a ``level`` not between 0 and 1.
      TypeError: see :func:`jaxqn.covariance`.

    Cost: a Jacobian or a Hessian, and three to ten evaluations per end and round. Memory: 2 n³.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxqn import minimize
      >>> counts = jnp.array([4.0, 7.0, 5.0, 8.0])
      >>> def poisson(x, counts):
      ...     return jnp.sum(jnp.exp(x) - counts * x)
      >>> fit = minimize(poisson, jnp.array(1.0), (counts,))
      >>> ends = profile_intervals(poisson, fit, (counts,))
      >>> round(float(jnp.exp(ends.lower)), 2), round(float(jnp.exp(ends.upper)), 2)
      (3.91, 8.73)

    References:
      Venzon & Moolgavkar, Appl. Stat. 37 (1988); Bates & Watts, Nonlinear Regression Analysis,
      1988, section 6.1; James & Roos, Comput. Phys. Commun. 10 (1975), for Minuit.
    """
    check_hashable(fun)
    check_args(args)
    if isinstance(fun, SumOfSquares) and fun.loss != "linear":
        raise ValueError(
            f"the loss {fun.loss!r} is no likelihood, so that its rise has no distribution: take "
            "the errors of jaxqn.covariance, which are those of a sandwich"
        )
    how = check_noise(fun, "hessian", noise)
    x, dtype, _ = check_x0(minimum_of(result))
    which = check_parameters(parameters, x)
    box = None if bounds is None else Box(*check_bounds(bounds, x))
    return _intervals(
        x,
        tuple(args),
        box,
        jnp.asarray(1.0 if how.sigma is None else how.sigma).astype(dtype),
        jnp.asarray(check_number("level", level, "between 0 and 1")).astype(dtype),
        objective=fun,
        noise=how.how,
        which=which,
        has_aux=bool(has_aux) and not isinstance(fun, SumOfSquares),
    )


@eager_program("objective", "noise", "which", "has_aux")
def _intervals(
    x: ArrayTree,
    args: Any,
    box: Box | None,
    sigma: Array,
    level: Array,
    *,
    objective: Any,
    noise: str,
    which: tuple[int, ...],
    has_aux: bool,
) -> Intervals:
    """All of it, compiled."""
    fun, v = flat_objective(objective, x, args, box, has_aux), jax.flatten_util.ravel_pytree(x)[0]
    lower, upper = (jnp.full_like(v, side) for side in (-jnp.inf, jnp.inf))
    if box is not None:
        lower, upper = (jax.flatten_util.ravel_pytree(side)[0] for side in box)
    free = (v > lower) & (v < upper)
    here = local(fun, v, free, sigma, kind="hessian", noise=noise, exact=False)
    q = normal_quantile(level)
    if noise == "estimated":
        q = student_quantile(level, jnp.maximum(here.dof, 1).astype(v.dtype))
    determined = (jnp.diagonal(here.inverse.undetermined) == 0) & jnp.isfinite(here.scale)
    determined &= here.dof > 0
    unit = here.scale * jnp.where(free, jnp.sqrt(jnp.diagonal(here.inverse.matrix)), here.unit)
    unit = jnp.where(determined & (unit > 0), unit, 1)
    problems = problems_of(here, v, (lower, upper), free, unit, q, which, box is not None)
    found = search(objective, x, args, box, here, problems, has_aux)
    i = jnp.tile(jnp.array(which), 2)
    code = jnp.where(determined[i], found.code, OPEN)
    far = jnp.where(code == OPEN, jnp.inf, jnp.where(code == NEW_MINIMUM, jnp.nan, found.end))
    ends = jnp.clip(v[i] + problems.sign * unit[i] * far, lower[i], upper[i])
    ends = jnp.where(code == OPEN, problems.sign * jnp.inf, ends)
    bound = jnp.where(problems.sign > 0, upper[i], lower[i])
    ends = jnp.where(code == BOUND, bound, ends)
    half = len(which)
    sides = {"lower": slice(half, None), "upper": slice(None, half)}
    index = jnp.array(which)

    def filled(entries: Array, side: str, else_: Any) -> ArrayTree:
        return like(x, jnp.full(v.size, else_, entries.dtype).at[index].set(entries[sides[side]]))

    return Intervals(
        lower=filled(ends, "lower", jnp.nan),
        upper=filled(ends, "upper", jnp.nan),
        lower_code=filled(code.astype(jnp.int32), "lower", NOT_ASKED),
        upper_code=filled(code.astype(jnp.int32), "upper", NOT_ASKED),
        x_lowest=like(x, found.lowest[1]),
        rounds=found.rounds,
        nfev=found.nfev,
    )
