"""The seam of the loop: a method is an inverse-Hessian approximation and a globalization.

The loop (:mod:`jaxqn.loop.trip`) knows these values by their verbs alone:

- BFGS is ``Method(dense(bfgs_rule), line(wolfe()))``: steps along x − alpha H g;
- Newton's method is ``Method(corrected_newton(), line(wolfe()))``: the same line, H from Hessians.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import compute_if, update_if
from jaxqn.loop.path import Path
from jaxqn.loop.state import LineTrial, Measures, Point, Tally
from jaxqn.loop.termination import Tolerances
from jaxqn.quasi_newton import QuasiNewton

__all__ = [
    "Globalization",
    "Judgement",
    "Method",
    "Outcome",
    "Prospects",
    "Replanned",
    "Run",
    "Slopes",
]


class Globalization(NamedTuple):
    """How steps are made safe far from a solution (Nocedal & Wright, chapters 3 and 4).

    Attributes:
      init: ``(zeros, zero, one, path) -> (plan, search)``, before anything is evaluated: a zero
        vector and the scalars 0 and 1 in the dtype of the run. ``search.alpha`` is the size of the
        step to try next: a step length here, a radius for a trust region.
      at: ``(x, alpha, plan, path) -> x``, the point to try; called at every trip.
      may_accept: ``(state, f, run) -> `` whether a trial of that value may be accepted; where not,
        its Jacobian is not needed. A line search needs the slope of every trial.
      measure: ``(state, trial, run) -> (g_size, jac_size)``, the largest entry of what vanishes at
        a solution, by z and by x; for a line the gradient.
      judge: ``(state, trial, run) -> (search, slopes, Judgement)``.
      replan: ``(state, outcome, run, second) -> Replanned``: correct the model, and say where to go
        next.
    """

    init: Callable[..., tuple[Any, Any]]
    at: Callable[[ArrayTree, Array, Any, Path], ArrayTree]
    may_accept: Callable[..., Array]
    measure: Callable[..., tuple[Array, Array]]
    judge: Callable[..., tuple[Any, Any, "Judgement"]]
    replan: Callable[..., "Replanned"]


class Method(NamedTuple):
    """What turns gradients into steps; hashable, and fixed when a program is compiled.

    Attributes:
      qn: the inverse-Hessian approximation.
      globalization: how its steps are made safe.
    """

    qn: QuasiNewton
    globalization: Globalization


class Run(NamedTuple):
    """What the phases of one trip share.

    Attributes:
      method: see :class:`Method`.
      path: how a step length becomes a point.
      tol: tolerances and budgets.
      now: the measures before this trip.
      tally: the counts before this trip.
      running: whether the run has not ended.
      first: whether this trip evaluates the first point.
      branch: whether vectors are so long that skipping a pass over one repays a branch.
    """

    method: Method
    path: Path
    tol: Tolerances
    now: Measures
    tally: Tally
    running: Array
    first: Array
    branch: bool

    def update_if(self, condition: Array, value: Any, update: Callable[[Any], Any]) -> Any:
        """See :func:`jaxqn.linalg.update_if`."""
        return update_if(condition, value, update, branch=self.branch)

    def compute_if(self, condition: Array, compute: Callable[[], Array], otherwise: Array) -> Array:
        """See :func:`jaxqn.linalg.compute_if`."""
        return compute_if(condition, compute, otherwise, branch=self.branch)


class Slopes(NamedTuple):
    """Slopes of f along the path.

    Attributes:
      start: at alpha = 0.
      trial: at the trial.
      noise: the noise of f that the search has met, 0 for none.
      endless: whether some variable moves on for ever along the path, and meets no bound;
        ``None`` where there are none.
      learned: curvature and extent, see :func:`jaxqn.loop.evidence.learn_curvature`.
    """

    start: Array
    trial: Array
    noise: Array
    endless: Any
    learned: tuple[ArrayTree, Array]


class Judgement(NamedTuple):
    """What becomes of a trial and of the search that made it; booleans, each of shape ``()``.

    Attributes:
      accepted: the trial is the next point.
      took_lowest: the search gave up, and its lowest trial is the next point.
      is_lowest: the trial is the lowest of its search so far, and not accepted.
      failed: the search gave up and found nothing lower.
      stalled: it failed because rounding hides the decrease that it looked for.
      moved: there is a next point: ``accepted`` or ``took_lowest``.
    """

    accepted: Array
    took_lowest: Array
    is_lowest: Array
    failed: Array
    stalled: Array
    moved: Array


class Outcome(NamedTuple):
    """A trial, judged and committed or held.

    Attributes:
      trial: the trial, its gradient divided by the ``g_scale`` from before.
      sizes: what ``Globalization.measure`` says of the trial.
      g_scale: what gradients are divided by from now on.
      slopes: what ``Globalization.judge`` found beside its judgement.
      judged: its judgement.
      search: state of the search that judged it.
      point: the next point; the old one where the trial was held.
      lowest: the lowest trial of the search.
    """

    trial: Point
    sizes: tuple[Array, Array]
    g_scale: Array
    slopes: Any
    judged: Judgement
    search: Any
    point: Point
    lowest: LineTrial


class Prospects(NamedTuple):
    """What the corrected model says of the next point.

    Attributes:
      decrease: by how much the step decreased f.
      negligible: whether that and the step are nothing on the scale that the run began with.
      settled: whether the gradient is within a given tolerance, or as small as its noise.
      at_minimum: whether the trip showed a minimum, to the precision of f or of its gradient.
      doubts_values: whether a search failed for noise of f that no search had met before.
      unbounded: whether f falls below any scale of the run.
      singular: whether some parameter has lost its effect on the residuals.
    """

    decrease: Array
    negligible: Array
    settled: Array
    at_minimum: Array
    doubts_values: Array
    unbounded: Array
    singular: Any = np.False_


class Replanned(NamedTuple):
    """Where to go from the next point.

    Attributes:
      point: the next point, its gradient divided by the ``g_scale`` of ``now``.
      step: s = x₊ − x.
      approx: state of the corrected approximation.
      curvature: see :class:`jaxqn.loop.Scales`.
      plan: what the next trials are made from.
      search: state of the search that goes on.
      now: measures of the next point; the least values are still those before it.
      prospects: what the model says of it.
      restarts: whether the curvature was forgotten.
      steepest: whether the direction is the negative gradient.
    """

    point: Point
    step: ArrayTree
    approx: Any
    curvature: ArrayTree
    plan: Any
    search: Any
    now: Measures
    prospects: Prospects
    restarts: Array
    steepest: Array
