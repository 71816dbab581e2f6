"""What the loop carries from trip to trip, with a name for every number.

Numbers of one dtype are stored in one array: the compiled loop then has one buffer and one kernel
for them. :class:`Measures` and :class:`Tally` give the entries their names; no other module knows
at which position one stands.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree

__all__ = ["Flags", "LineTrial", "LoopState", "Measures", "Point", "Scales", "Tally"]


class Point(NamedTuple):
    """A point with everything evaluated there.

    Attributes:
      x: parameters.
      f: value, shape ``()``.
      g: gradient, like ``x``.
      aux: auxiliary output of the objective, or ``None``.
      linear: the residuals and their linearisation, for a method that needs it, or ``None``.
    """

    x: ArrayTree
    f: Array
    g: ArrayTree
    aux: Any
    linear: Any = None


class LineTrial(NamedTuple):
    """A trial without its point, which ``Globalization.at`` makes again from alpha.

    Attributes:
      scalars: shape ``(4,)``: the step length alpha; the value f; the largest entry of g, and of
        the gradient by x.
      g: gradient, like the parameters.
      aux: auxiliary output of the objective, or ``None``.
    """

    scalars: Array
    g: ArrayTree
    aux: Any

    @property
    def alpha(self) -> Array:
        """Step length, shape ``()``."""
        return self.scalars[0]

    @property
    def f(self) -> Array:
        """Value, shape ``()``."""
        return self.scalars[1]

    @property
    def sizes(self) -> tuple[Array, Array]:
        """The largest entry of g, and of the gradient by x, each of shape ``()``."""
        _, _, g_size, jac_size = self.scalars
        return g_size, jac_size


class Measures(NamedTuple):
    """Real numbers of a run. A state stores them as one array.

    Attributes:
      g_scale: the power of two that gradients are divided by.
      g_norm: largest entry of the gradient by z at the current point.
      jac_norm: largest entry of the gradient by x at the current point.
      least_g_norm: the least ``g_norm`` of any point so far.
      gHg: gᵀH g at the current point, of the stored g and H; ``-g_scale * gHg`` is the slope of f
        along −H g.
      least_f: the least value of any point so far.
      f_first: the scale of f where the run began: |f| there, or the first decrease if that is more.
      xx_first: xᵀx of the first point.
      extent: √(Σ Dᵢ xᵢ²) by ``Scales.curvature``, the size that x has or had lately.
      noise: the noise of f that a search met, 0 until then.
    """

    g_scale: Array
    g_norm: Array
    jac_norm: Array
    least_g_norm: Array
    gHg: Array
    least_f: Array
    f_first: Array
    xx_first: Array
    extent: Array
    noise: Array


class Tally(NamedTuple):
    """What a run counts, int32. A state stores it as one array.

    Attributes:
      nit: iterations: steps taken.
      nfev: evaluations of value and gradient.
      without_progress: steps in a row without progress.
      at_minimum: 1 where the last trip showed a minimum, to the precision of f or of its gradient.
    """

    nit: Array
    nfev: Array
    without_progress: Array
    at_minimum: Array


class Flags(NamedTuple):
    """Booleans of a run, each of shape ``()``.

    Attributes:
      steepest: whether the direction is the negative gradient.
      may_rescale: whether the run chooses ``g_scale``; not where the caller gave an H0.
      may_choose_units: whether the run chooses ``x_scale``; not where the caller gave it or an H0.
    """

    steepest: Array
    may_rescale: Array
    may_choose_units: Array


class Scales(NamedTuple):
    """Sizes that a run measures its parameters and gradients by.

    Attributes:
      x_scale: powers of two like the parameters, or ``None`` for 1.
      curvature: √Dᵢ, the root of the diagonal of the Hessian by z over ``g_scale``, as far as pairs
        show it; like the parameters, 0 where nothing is known (:mod:`jaxqn.loop.evidence`).
    """

    x_scale: Any
    curvature: ArrayTree


class LoopState(NamedTuple):
    """Everything the loop carries; enough to continue a run exactly.

    Points are held as z = x / x_scale, and gradients are those by z. Gradients are divided by
    ``g_scale`` and H is multiplied by it, so that inner products of gradients stay in the range of
    the dtype. ``g_scale`` is the power of two next to the largest entry of the first gradient, so
    that dividing by it changes no digit; a run chooses it again whenever it forgets its curvature.
    It is 1 where the caller gave an H0.

    Attributes:
      point: the current point.
      lowest: the lowest trial of the current search; it counts only if lower than ``point``.
      plan: what the next trials are made from. For a line search along a straight line: H g at
        ``point``, where −H g is the direction.
      search: state of the line search; its field ``alpha`` is the step length to try next.
      approx: state of the inverse-Hessian approximation.
      flags: see :class:`Flags`.
      scalars: :class:`Measures` as an array, shape ``(10,)``.
      counts: :class:`Tally` as an array, int32, shape ``(4,)``.
      status: :class:`jaxqn.Status`, int32.
      scales: see :class:`Scales`.
    """

    point: Point
    lowest: LineTrial
    plan: Any
    search: Any
    approx: Any
    flags: Flags
    scalars: Array
    counts: Array
    status: Array
    scales: Scales

    @property
    def measures(self) -> Measures:
        """The real numbers by name, each of shape ``(...)`` for any batch axes."""
        return Measures(*jnp.unstack(self.scalars, axis=-1))

    @property
    def tally(self) -> Tally:
        """The counts by name, each of shape ``(...)`` for any batch axes."""
        return Tally(*jnp.unstack(self.counts, axis=-1))

    @property
    def x_scale(self) -> Any:
        """Powers of two like the parameters, or ``None`` for 1."""
        return self.scales.x_scale

    @property
    def g_scale(self) -> Array:
        """What gradients are divided by, shape ``(...)``."""
        return self.scalars[..., 0]

    @property
    def nit(self) -> Array:
        """Iterations so far, int32, shape ``(...)``."""
        return self.counts[..., 0]

    @property
    def nfev(self) -> Array:
        """Evaluations so far, int32, shape ``(...)``."""
        return self.counts[..., 1]
