"""The covariance of parameters at a solution: ``covariance(fun, x, args)``."""

from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree, Objective
from jaxqn.checks import (
    answered,
    check_args,
    check_bounds,
    check_hashable,
    check_number,
    check_x0,
    is_traced,
)
from jaxqn.drivers.covariance_result import Covariance, like
from jaxqn.drivers.least_squares import LeastSquaresResult
from jaxqn.drivers.local_curvature import Local, flat_objective, local
from jaxqn.drivers.nonlinearity import nonlinearity
from jaxqn.drivers.result import MinimizeResult
from jaxqn.drivers.small_programs import eager_program
from jaxqn.linalg import dot, safe_divide
from jaxqn.loop import Box, SumOfSquares

__all__ = ["Noise", "check_noise", "covariance", "minimum_of"]

KINDS = ("hessian", "observed", "sandwich")

NOT_AT_MINIMUM = 1e-2
"""The offset in standard errors from which on x is no minimum."""

NONLINEAR = 0.1
SECOND_ORDER = 0.2
"""How much of an exact second derivative JᵀJ may leave out."""


@answered
def covariance(
    fun: Objective,
    x: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    kind: str = "hessian",
    noise: Any = None,
    bounds: Any = None,
    profile: bool = True,
    has_aux: bool = False,
) -> Covariance:
    """Standard errors and covariance of the parameters of a fit, and whether to believe them.

    Of a negative log likelihood f (a sum over data, not a mean) it is the inverse Hessian at the
    minimum; of a :func:`jaxqn.sum_of_squares`, s² (JᵀJ)⁻¹, from the singular values of J over the
    lengths of its columns. It may be called under ``jit`` and ``vmap``:
    ``jax.vmap(lambda x, y: covariance(fun, x, (y,)))`` has an error bar for every fit of a batch.

    Args:
      fun: the objective that was minimised, ``fun(x, *args)``.
      x: its minimum, or the result of the fit; of a batch, ``fits.x`` under ``vmap``.
      args: further arguments of ``fun``.
      kind: "hessian"; of sums of squares also "observed", the exact Hessian for JᵀJ, and
        "sandwich", (JᵀJ)⁻¹ (Σ rᵢ² JᵢᵀJᵢ) (JᵀJ)⁻¹ m/(m − n), for residuals that differ in size. A
        robust loss has the sandwich in any case, with A = Jᵀ diag(ψ') J or the exact Hessian.
      noise: of sums of squares, what a residual's standard deviation is: "estimated", from
        s² = 2 cost/(m − n); "unit", residuals that were divided by theirs; or a number. Has to be
        said, but for a sandwich, which takes it from the residuals one by one. A likelihood knows
        its noise.
      bounds: those of the fit. The errors hold given the parameters at a bound; equal bounds fix.
      profile: whether to check how nonlinear the objective is: at x ± two standard errors along
        the tangent of each parameter's profile, the others follow within the linearised model, and
        t, the root of twice the rise of f over the noise, is 2 where f is quadratic. It also takes
        the exact Hessian of a sum of squares beside JᵀJ.
      has_aux: whether ``fun`` returns auxiliary data.

    Returns:
      A :class:`Covariance`. Nothing is raised for a point that is no minimum, a parameter that the
      data do not determine, and the like: ``code`` and ``reason`` say it. The log evidence is
      −f + n/2 log 2π + ½ log det C, f being −log of likelihood times prior (a flat one of density 1
      if ``fun`` has none); of residuals with known noise the normal density is put in for it.

    Raises:
      TypeError: ``kind="sandwich"`` of a scalar, whose terms are not known.
      ValueError: no ``noise`` for a sum of squares; ``noise`` where it is none to say; an unknown
        kind; ``bounds`` not like ``x``.

    Cost: a Jacobian and its singular values, or a Hessian and its eigenvalues, O(m n² + n³); with
    ``profile``, 2n more Jacobians, or gradients, and a Hessian.

    Example:
      >>> import jax.numpy as jnp
      >>> counts = jnp.array([4.0, 7.0, 5.0, 8.0])
      >>> def poisson(x, counts):
      ...     return jnp.sum(jnp.exp(x) - counts * x)
      >>> found = covariance(poisson, jnp.log(6.0), (counts,))
      >>> round(float(found.standard_errors), 4), found.reason
      (0.2041, 'the errors can be relied on')

    References:
      Bates & Watts, Nonlinear Regression Analysis, 1988, sections 2.2 and 6.1, and Technometrics 23
      (1981), for the offset; White, Econometrica 48 (1980), for the sandwich; Tierney & Kadane,
      J. Amer. Stat. Assoc. 81 (1986), for Laplace's approximation.
    """
    squares = isinstance(fun, SumOfSquares)
    check_hashable(fun)
    check_args(args)
    noise = check_noise(fun, kind, noise)
    x, dtype, _ = check_x0(minimum_of(x))
    box = None if bounds is None else Box(*check_bounds(bounds, x))
    sigma = jnp.asarray(1.0 if noise.sigma is None else noise.sigma).astype(dtype)
    return _covariance(
        x,
        tuple(args),
        box,
        sigma,
        objective=fun,
        kind=kind,
        noise=noise.how,
        profile=bool(profile),
        has_aux=bool(has_aux) and not squares,
    )


def minimum_of(fit: Any) -> ArrayTree:
    """The point of a result, ours or another library's, or the point that was given for it."""
    ours = isinstance(fit, MinimizeResult | LeastSquaresResult)
    if ours and jnp.ndim(fit.status):
        raise ValueError(
            "the fit must be one, but this result is of a batch: for every fit of it write "
            "jax.vmap(lambda x, y: jaxqn.covariance(fun, x, (y,)))(fits.x, ys)"
        )
    return fit.x if ours or (jax.tree_util.all_leaves([fit]) and hasattr(fit, "x")) else fit


class Noise(NamedTuple):
    """How the noise is known, "none" to say, "estimated" or "known", and its size if that."""

    how: str
    sigma: Any = None


def check_noise(fun: Any, kind: str, noise: Any) -> Noise:
    """What the caller says of the noise, checked."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; the known ones are {', '.join(KINDS)}")
    if not isinstance(fun, SumOfSquares):
        if kind == "sandwich":
            raise TypeError(
                "a sandwich needs the terms of fun one by one, and a scalar has lost them: hand "
                "over jaxqn.sum_of_squares(residuals) for fun"
            )
        if noise is not None:
            raise ValueError(
                "noise is for sums of squares: a likelihood has its own inside. If fun is half of "
                "a sum of squares, hand over jaxqn.sum_of_squares(residuals) for it"
            )
        return Noise("none")
    if kind == "sandwich" or fun.loss != "linear":
        if noise is None or (isinstance(noise, str) and noise == "estimated"):
            return Noise("estimated")
        what = "a sandwich" if kind == "sandwich" else f"the loss {fun.loss!r}"
        raise ValueError(f"{what} takes the noise from the residuals one by one: leave noise out")
    if noise is None:
        raise ValueError(
            'say noise="estimated" if the size of the residuals is to tell the noise, "unit" if '
            "they were divided by their standard deviations, or give the standard deviation of one"
        )
    if isinstance(noise, str):
        if noise not in ("estimated", "unit"):
            raise ValueError(f'noise is {noise!r}: take "estimated", "unit" or a number')
        return Noise("estimated") if noise == "estimated" else Noise("known", 1.0)
    if isinstance(noise, bool) or jnp.ndim(noise) != 0:
        raise ValueError(
            f'noise must be "estimated", "unit" or one number, but it is {noise!r}: divide '
            "residuals by standard deviations that differ"
        )
    return Noise("known", noise if is_traced(noise) else check_number("noise", noise, "positive"))


@eager_program("objective", "kind", "noise", "profile", "has_aux")
def _covariance(
    x: ArrayTree,
    args: Any,
    box: Box | None,
    sigma: Array,
    *,
    objective: Any,
    kind: str,
    noise: str,
    profile: bool,
    has_aux: bool,
) -> Covariance:
    """All of it, compiled."""
    fun = flat_objective(objective, x, args, box, has_aux)
    v, back = jax.flatten_util.ravel_pytree(x)
    lower, upper = (jnp.full_like(v, side) for side in (-jnp.inf, jnp.inf))
    if box is not None:
        lower, upper = (jax.flatten_util.ravel_pytree(side)[0] for side in box)
    at = jnp.where(v <= lower, -1, jnp.where(v >= upper, 1, 0)).astype(jnp.int32)
    free, at = at == 0, jnp.where(lower >= upper, 0, at)
    here = local(fun, v, free, sigma, kind=kind, noise=noise, exact=profile)
    departs = nonlinearity(fun, v, here, free, (lower, upper)) if profile else None
    offset = _offset(here, at)
    code = _code(here, offset, at, departs, free)
    return Covariance(
        x=x,
        matrix=jnp.where(code == 1, jnp.nan, here.covariance),
        undetermined=here.inverse.undetermined,
        rank=here.inverse.rank,
        condition=here.inverse.condition,
        offset=offset,
        at_bound=like(x, at),
        nonlinearity=None if departs is None else back(departs),
        log_evidence=_log_evidence(here, free, at, noise, fun.slope is None and kind != "sandwich"),
        code=code,
    )


def _offset(here: Local, at: Array) -> Array:
    """√(gᵀA⁻¹g) over the noise, with what pulls parameters off their bounds."""
    step = dot(here.inverse.root, here.g)
    inwards = jnp.where(at < 0, -here.g, jnp.where(at > 0, here.g, 0))
    pull = jnp.maximum(inwards, 0) * here.unit
    square = dot(step, step) + dot(pull, pull)
    return safe_divide(jnp.sqrt(square), here.scale, square > 0)


def _code(here: Local, offset: Array, at: Array, departs: Array | None, free: Array) -> Array:
    """The first doubt that holds."""
    finite = jnp.isfinite(here.f) & jnp.all(jnp.isfinite(here.g))
    finite &= jnp.all(jnp.isfinite(here.inverse.root)) & jnp.isfinite(here.scale)
    no = jnp.zeros((), bool)
    nonlinear = no if departs is None else jnp.any(departs > NONLINEAR)
    saddle, second_order = here.inverse.indefinite, no
    if here.left_out is not None:
        W = here.inverse.root
        K = jnp.linalg.eigvalsh(dot(dot(W, here.left_out), W.T))
        saddle, second_order = saddle | (K[0] <= -1), jnp.max(jnp.abs(K)) > SECOND_ORDER
    doubts = (
        ~finite,
        here.dof <= 0,
        (here.inverse.rank < jnp.sum(free, dtype=jnp.int32)) & ~saddle,
        saddle | ((offset > NOT_AT_MINIMUM) & ~here.rounding),
        jnp.any(at != 0),
        nonlinear & ~here.rounding,
        second_order & ~here.rounding,
        here.rounding,
    )
    found = jnp.stack(doubts)
    return jnp.where(jnp.any(found), jnp.argmax(found) + 1, 0).astype(jnp.int32)


def _log_evidence(here: Local, free: Array, at: Array, noise: str, defined: bool) -> Array:
    """Laplace's approximation, or NaN."""
    if noise == "estimated" or not defined:
        return jnp.full_like(here.f, jnp.nan)
    count = jnp.sum(free).astype(here.f.dtype)
    variance = here.scale**2
    log_density = -here.f / variance - 0.5 * here.data * jnp.log(2 * jnp.pi * variance)
    volume = 0.5 * (count * jnp.log(2 * jnp.pi * variance) + here.inverse.logdet)
    return jnp.where(jnp.any(at != 0), jnp.nan, log_density + volume)
