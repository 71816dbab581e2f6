"""The protocol of quasi-Newton approximations: an inverse Hessian as a value.

A host (the loop, an optax transformation) knows this protocol only. Each implementation in this
folder decides which update it runs and how it stores its matrix.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import described

__all__ = [
    "Descent",
    "Face",
    "Model",
    "Normal",
    "Quadratic",
    "QuasiNewton",
    "Trial",
    "Wide",
    "check_method",
    "check_quasi_newton",
]


class Face(NamedTuple):
    """The variables that may move from a new point; bounds hold the others.

    Attributes:
      free: masks of them, like the parameters.
      changed: whether others could move at the point before, shape ``()``.
      g: the gradient at the point before, over the variables that may move now.
      may_rescale: whether the method may scale its initial H.
    """

    free: ArrayTree
    changed: Array
    g: ArrayTree
    may_rescale: Array


class Normal(NamedTuple):
    """Residuals r at a point, linearised: what a Gauss-Newton model is made from.

    Attributes:
      r: residuals, not weighted, shape ``(m,)``.
      H: JᵀW J, the known part of the Hessian, W being the weights of a robust loss; ``(n, n)``.
      pulled: JᵀW r₋, of the residuals r₋ at the point before, shape ``(n,)``.
    """

    r: Array
    H: Array
    pulled: Array

    @property
    def diagonal(self) -> Array:
        """Of JᵀW J: squares of the lengths of the columns of the Jacobian, shape ``(n,)``."""
        return jnp.diagonal(self.H)


class Wide(NamedTuple):
    """Fewer residuals than parameters, linearised: a Gauss-Newton model in their space.

    Attributes:
      r: residuals, not weighted, shape ``(m,)``.
      root: roots of their weights, shape ``(m,)``.
      J: the weighted Jacobian, shape ``(m, n)``.
      K: JJᵀ, shape ``(m, m)``.
      diagonal: of JᵀJ, shape ``(n,)``.
    """

    r: Array
    root: Array
    J: Array
    K: Array
    diagonal: Array


class Trial(NamedTuple):
    """What a trial teaches a model; vectors are flat.

    Attributes:
      s: the step to it.
      g: gradient where the step began.
      g_trial: gradient at the trial.
      before: the linearised residuals where the step began, or ``None``.
      after: the same at the trial.
      decrease: by how much f decreased.
      finite: whether everything at the trial is finite, shape ``()``.
      moved: whether the trial is the next point, shape ``()``.
      weights: squares of the scales of x, positive.
    """

    s: Array
    g: Array
    g_trial: Array
    before: Any
    after: Any
    decrease: Array
    finite: Array
    moved: Array
    weights: Array


class Model(NamedTuple):
    """A quadratic model of f around a point, for a trust region.

    Attributes:
      control: what keeps steps short: the "radius" of the region, or a "damping" added to B.
      learn: ``(state, Trial) -> state``, of every trial.
      matrix: ``(state, linear) -> B``, shape ``(n, n)``, from the :class:`Normal` at a point;
        ``None`` for a model in the space of the residuals, a :class:`Wide`.
      bend: ``state -> (s, h)``: the last step, and Jᵀ W times the curvature of the residuals along
        it; or ``None``.
    """

    control: Literal["radius", "damping"]
    learn: Callable[[Any, Trial], Any]
    matrix: Callable[[Any, Any], Array] | None
    bend: Callable[[Any], Any] | None = None


class Descent(NamedTuple):
    """The minimum of a quadratic model within a radius.

    Attributes:
      p: the step, like the parameters.
      mu: its multiplier.
      fall: −d log‖p‖/dmu, or 0; see :class:`jaxqn.formulas.TrustRegionStep`.
      promised: −gᵀp − ½ pᵀB p.
      is_minimum: whether it is the minimum of the model everywhere.
    """

    p: ArrayTree
    mu: Array
    fall: Array
    promised: Array
    is_minimum: Array


class Quadratic(NamedTuple):
    """A quadratic model of f that is made from pairs, or by ``renew`` from Hessians, for a region.

    Attributes:
      learn: ``(state, s, y) -> state``, of every trial; the zero pair changes nothing.
      step: ``(state, g, radius, mu) -> Descent``, for a guess mu of the multiplier. Before
        the first pair B is 0, and the step is as long as the radius.
      radius: the first radius, or ``None`` for the length of a first trial along −g.
    """

    learn: Callable[[Any, ArrayTree, ArrayTree], Any]
    step: Callable[[Any, ArrayTree, Array, Array], Descent]
    radius: float | None = None


class QuasiNewton(NamedTuple):
    """An inverse-Hessian approximation H as a value: how to start, correct, apply and forget it.

    Attributes:
      init: ``(x, H0=None) -> state``; H = I unless given.
      update: ``(state, s, y) -> state``. The zero pair, and any unusable one, changes no leaf.
      apply: ``(state, g) -> H g``; no sign flip.
      advance: ``(state, s, y, g, Hg, moved) -> (state, H₊ g)``, update and apply fused: g is the
        new gradient and Hg the product of the old H with the old gradient g − y, so that
        H y = H g − Hg needs no product of its own. Where ``moved`` is false, s = y = 0 and the
        product is Hg already.
      reset: ``(state, when) -> state`` with H = I where ``when`` holds, or the diagonal that a
        limited memory was given.
      dense: whether vectors must be flat arrays, since H is an n-by-n matrix.
      needs: what beside gradients the method is made from: "nothing", the "hessian" at every point,
        or the "jacobian" of residuals. The host evaluates it once per step.
      renew: ``(state, s, y, second) -> (state, v)``, instead of ``advance`` for a method that needs
        something: H made from the pair and from what it needs at the new point, and a direction of
        curvature vᵀB v = −1, or 0; else ``None``.
      advance_on_face: ``(state, s, y, g, Hg, moved, face) -> (state, H₊ g)``, which is ``advance``
        where bounds hold some variables: s, y and g are over those that may move, and Hg is the
        product of H with the gradient before over those that could move then. A method without it
        takes no bounds, unless it has ``renew`` or ``model``.
      model: of a method for a trust region, its quadratic model: a :class:`Model` made from
        residuals, or a :class:`Quadratic` made from pairs or Hessians; else ``None``.
    """

    init: Callable[..., Any]
    update: Callable[[Any, Array, Array], Any]
    apply: Callable[[Any, Array], Array]
    advance: Callable[[Any, Array, Array, Array, Array, Array], tuple[Any, Array]]
    reset: Callable[[Any, Array], Any]
    dense: bool = True
    needs: Literal["nothing", "hessian", "jacobian"] = "nothing"
    renew: Callable[[Any, ArrayTree, ArrayTree, Any], Any] | None = None
    advance_on_face: Callable[..., tuple[Any, Array]] | None = None
    model: Model | Quadratic | None = None


def check_quasi_newton(qn: Any) -> None:
    """Raise unless ``qn`` is a :class:`QuasiNewton`."""
    if not isinstance(qn, QuasiNewton):
        raise TypeError(f"qn must be a QuasiNewton such as jaxqn.lbfgs_memory(), not {qn!r}")


def check_method(method: Any, *, bounded: bool = False) -> None:
    """Raise unless ``method``, the option of a driver, is a :class:`QuasiNewton` fit for bounds."""
    if not isinstance(method, QuasiNewton):
        raise TypeError(
            "method must be a name or a jaxqn.QuasiNewton such as jaxqn.lbfgs_memory(5), but it is "
            f"{described(method)}; jaxqn.lbfgs() and its like are transformations, for optax"
        )
    in_parameters = isinstance(method.model, Model) and method.model.matrix is not None
    in_line = method.model is None and (method.advance_on_face or method.renew)
    takes_bounds = in_line or in_parameters
    if bounded and not takes_bounds:
        raise TypeError(
            "this method takes no bounds, because it has no advance_on_face (jaxqn.damped has "
            "none, nor has a trust region of pairs): take one by name other than 'residual', "
            "jaxqn.dense() or jaxqn.lbfgs_memory()"
        )
