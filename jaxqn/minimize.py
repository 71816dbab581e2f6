"""The front door: ``minimize(fun, x0, args)``."""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._checks import check_callback, check_state, check_x0, check_x_scale, is_traced
from jaxqn._packing import repack, unpacked
from jaxqn._problem import Problem, problem_of, tolerances
from jaxqn._ring import MemoryState
from jaxqn._scaling import in_units, out_of_units
from jaxqn._typing import Array, ArrayTree, Objective
from jaxqn.linesearch import LineSearch
from jaxqn.loop import LoopState, lowest, run
from jaxqn.pairs import inverse_hessian_product, stored_pairs
from jaxqn.quasi_newton import DenseState, QuasiNewton, dense, inverse_hessian
from jaxqn.termination import MESSAGES, Status, Tolerances

__all__ = ["MinimizeResult", "minimize"]

DEFAULT_METHOD = "osbfgs"


class MinimizeResult(NamedTuple):
    """What :func:`minimize` returns. Under ``vmap`` every field has the batch's leading axis.

    Attributes:
      x: the lowest point seen, like ``x0``.
      fun: value there, shape ``()``.
      jac: gradient there, like ``x0``.
      status: :class:`jaxqn.Status` as int32, shape ``()``.
      nit: iterations (steps taken), int32.
      nfev: evaluations of value and gradient, int32.
      state: everything needed to continue the run: ``minimize(..., state=result.state)``; a
        ``LoopState``; of a batch, a :class:`jaxqn.BatchState`.
      aux: auxiliary output of the objective at ``x``, or ``None``.
    """

    x: ArrayTree
    fun: Array
    jac: ArrayTree
    status: Array
    nit: Array
    nfev: Array
    state: Any
    aux: Any = None

    def __repr__(self) -> str:
        """What a reader wants: a single status by name, and not the state, as large as H."""
        status: Any = self.status
        if isinstance(status, jax.Array) and not is_traced(status) and status.ndim == 0:
            status = Status(int(status)).name
        shown = f"status={status}, nit={self.nit}, nfev={self.nfev}, fun={self.fun}"
        state = type(self.state).__name__
        return f"MinimizeResult({shown}, x={self.x}, jac={self.jac}, aux={self.aux}, state={state})"

    @property
    def success(self) -> Array:
        """Whether a tolerance was met: CONVERGED, FTOL or XTOL. Boolean array."""
        return (self.status >= Status.CONVERGED) & (self.status <= Status.XTOL)

    @property
    def message(self) -> str:
        """The status in words, with advice. Only for a single, concrete result."""
        if np.ndim(self.status):
            raise ValueError("message is for one problem; a batch has statuses: see result.status")
        return MESSAGES[Status(int(self.status))]

    @property
    def hess_inv(self) -> Array:
        """The final approximation of the inverse Hessian over ravelled parameters, ``(n, n)``.

        What the method needed, which for the self-scaled ones may be far from the inverse of the
        Hessian; for standard errors invert :func:`jaxqn.derivatives.hessian` at ``x``.
        """
        if not isinstance(self._approx, DenseState):
            raise ValueError(
                "a limited-memory method has no matrix: multiply by it with "
                "result.hess_inv_product(v), or take result.pairs"
            )
        return _matrix(self.state)

    def hess_inv_product(self, v: ArrayTree) -> ArrayTree:
        """H v with the final approximation of the inverse Hessian, for ``v`` like ``x``.

        Of limited memory by two reads of its pairs, without a matrix. Only for a single result.
        """
        if np.ndim(self.status):
            raise ValueError("hess_inv_product is for one problem: take it under jax.vmap")
        product = _dense_product if isinstance(self._approx, DenseState) else _limited_product
        return product(self.state, v)

    @property
    def pairs(self) -> tuple[ArrayTree, ArrayTree, Array]:
        """The pairs of a limited-memory method, see :func:`jaxqn.stored_pairs`.

        In the objective's own units, which are not those of the state. Only for a single result.
        """
        if np.ndim(self.status):
            raise ValueError("pairs is for one problem: take jaxqn.stored_pairs under jax.vmap")
        if not isinstance(self._approx, MemoryState):
            raise ValueError("a dense method keeps no pairs: its matrix is result.hess_inv")
        return _pairs(self.state, self.x)

    @property
    def _approx(self) -> Any:
        """The approximation of the inverse Hessian that the run ended with."""
        if not isinstance(self.state, LoopState):
            raise ValueError(
                "a batch keeps no inverse Hessians and no pairs: run minimize from the x of those "
                "that you want them of, or invert jaxqn.derivatives.hessian(fun) there"
            )
        return self.state.approx


def minimize(
    fun: Objective,
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    method: str | QuasiNewton = DEFAULT_METHOD,
    linesearch: LineSearch | None = None,
    gtol: Any = None,
    ftol: Any = 0.0,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    hess_inv0: Any = None,
    x_scale: Any = None,
    state: LoopState | None = None,
    callback: Callable[[MinimizeResult], Any] | None = None,
    progress: bool = False,
) -> MinimizeResult:
    """Minimise a differentiable function of a pytree by a quasi-Newton method.

    Iterates x₊ = x − alpha H g, where H is corrected by the pairs s = x₊ − x, y = g₊ − g so that
    H y = s, and alpha comes from a line search. Called eagerly it compiles once per objective,
    shapes, method and search; new numbers (``x0``, ``args``, tolerances, budgets) compile nothing.
    It may be called under ``jit`` and ``vmap``; it has no derivative, and refuses to be
    differentiated in either mode.

    Args:
      fun: objective ``fun(x, *args) -> scalar``, or ``(scalar, aux)`` with ``has_aux``. Keep it one
        function object and pass data through ``args``: a new lambda per call compiles anew.
      x0: first point, a pytree of real floating arrays of one dtype, in units in which the squares
        of its changes are in range: in float32, nothing happens below 1e-15 and above 1e18.
      args: further arguments of ``fun``, pytrees of arrays.
      method: a name ("osbfgs", "ssbfgs", "ssbroyden", "bfgs", "broyden", "dfp", "sr1", "lbfgs",
        "newton") or a :class:`jaxqn.QuasiNewton`.
      linesearch: a :class:`jaxqn.LineSearch`; by default :func:`jaxqn.wolfe`.
      gtol: stop when the largest entry of the gradient is at most this. By default it is the
        fraction 1e-10 (float64) or eps (float32: 1.2e-7) of its value at ``x0``, whatever the scale
        of ``fun``. As that is loose where the first gradient is enormous, the model has to promise
        little as well: ½ gᵀH g ≤ 10 eps |fun|, or ‖H g‖ ≤ r ‖x‖ with r = max(1e-10, 100 eps), after
        a step by about the root of that. Where no progress is to be seen any more, a gradient of r
        times the first will do.
      ftol: stop when an iteration decreases the objective by at most this fraction; 0 is off.
      xtol: stop when a step is at most this fraction of x long; 0 is off.
      maxiter: iterations allowed in all; by default max(1000, 200 n).
      maxfun: evaluations allowed in all, checked before every one; by default unlimited.
      has_aux: whether ``fun`` returns auxiliary data beside its value.
      hess_inv0: initial inverse Hessian over ravelled parameters, positive definite: a symmetric
        matrix of shape ``(n, n)``, or a diagonal of shape ``(n,)``. For a limited-memory method,
        a diagonal as a pytree like ``x0``.
      x_scale: size of the parameters, a pytree like ``x0`` of positive entries or one number: the
        run is one over z = x / x_scale, every entry of it taken to the next power of two; ``gtol``
        and all results are as ever. By default 1, unless the sizes in ``x0`` spread over decades
        (log10|x0| by a deviation above 1, over up to 256 entries, without ``hess_inv0``): then
        |x0|, and 1 where that is 0.
      state: ``result.state`` of an earlier call, to continue exactly where it stopped; ``x0`` then
        only gives the structure. Counters and budgets go on from there. ``args`` must be the same:
        for new data start anew from ``result.x``, with ``hess_inv0=result.hess_inv`` if you like.
      callback: called after every iteration with the result so far; a true return value stops the
        run. Eager calls only.
      progress: print a line to standard error about every second. Eager calls only.

    Returns:
      A :class:`MinimizeResult`. A run that ends badly is a status, never an exception.

    Raises:
      TypeError: a leaf of ``x0`` is not real floating, ``fun`` cannot be hashed, or an option is
        of the wrong type.
      ValueError: an unknown method, a negative tolerance, mixed dtypes, a ``hess_inv0`` of the
        wrong shape or not symmetric positive definite, an ``x_scale`` not like ``x0`` or not
        positive, an objective that is not scalar.
      NotImplementedError: it is being differentiated.

    Cost: one evaluation of value and gradient per trip, and O(n²) per iteration: one product with
    H and the share of writing it (see :func:`jaxqn.dense`). Memory: n² + O(n). With "lbfgs", two
    passes over a history of 20 vectors, which are not ravelled and stay sharded as ``x0`` is.

    Example:
      >>> import jax.numpy as jnp
      >>> rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
      >>> result = minimize(rosenbrock, jnp.zeros(2))
      >>> bool(result.success), [round(float(v), 3) for v in result.x]
      (True, [1.0, 1.0])

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithm 6.1; the updates are in
      :mod:`jaxqn.updates`, the search in :func:`jaxqn.wolfe`.
    """
    problem = problem_of(fun, method, linesearch, has_aux, args)
    check_callback(callback)
    x0, dtype, n = check_x0(x0)
    tol = tolerances(dtype, n, gtol, ftol, xtol, maxiter, maxfun)
    H0, x_scale = problem.initial(hess_inv0, x0), check_x_scale(x_scale, x0)
    begin = functools.partial(_start, problem=problem)
    if state is None:
        state = begin(x0, args, H0, x_scale)
    elif H0 is not None or x_scale is not None:
        given = "hess_inv0" if x_scale is None else "x_scale"
        raise ValueError(f"{given} is for a new run, but this one continues a state")
    else:
        if not problem.qn.dense:
            state = _repacked(state, x0)
        # What a run was given, its state holds: a diagonal in a limited memory, and units.
        held = (
            getattr(getattr(state, "approx", None), "start", None),
            getattr(state, "x_scale", None),
        )
        like = [None if part is None else x0 for part in held]
        check_state(state, jax.eval_shape(begin, x0, args, *like))
    go = functools.partial(_run, args=args, problem=problem)
    if callback is None and not progress:
        return go(x0, state, tol)
    return _observed(go, x0, state, tol, callback, progress)


# What a result says of curvature, each compiled, for a kind of state once.


@jax.jit
def _matrix(state: LoopState) -> Array:
    u, unit = state.x_scale, state.scalars[..., 0, None, None]
    H = inverse_hessian(state.approx) / unit
    return H if u is None else u[..., :, None] * u[..., None, :] * H


@jax.jit
def _dense_product(state: LoopState, v: ArrayTree) -> ArrayTree:
    vector, back = jax.flatten_util.ravel_pytree(v)
    Hv = dense().apply(state.approx, out_of_units(vector, state.x_scale))
    return back(out_of_units(Hv / state.scalars[0], state.x_scale))


@jax.jit
def _limited_product(state: LoopState, v: ArrayTree) -> ArrayTree:
    u, unit = unpacked(state.x_scale, v), state.scalars[0]
    Hv = inverse_hessian_product(state.approx, out_of_units(v, u))
    return out_of_units(jax.tree.map(lambda h: h / unit.astype(h.dtype), Hv), u)


@jax.jit
def _pairs(state: LoopState, x: ArrayTree) -> tuple[ArrayTree, ArrayTree, Array]:
    S, Y, valid = stored_pairs(state.approx)
    unit, u = state.scalars[0], jax.tree.map(lambda u: u[None], unpacked(state.x_scale, x))
    S, Y = unpacked(S, x), unpacked(Y, x)
    Y = jax.tree.map(lambda y: unit.astype(y.dtype) * y, Y)
    return out_of_units(S, u), in_units(Y, u), valid


@functools.partial(jax.jit, static_argnames=("problem",))
def _start(x0: ArrayTree, args: Any, H0: Any, x_scale: Any, *, problem: Problem) -> LoopState:
    """The state before the first evaluation."""
    return problem.start(x0, args, H0, x_scale)


def _repacked(state: LoopState, x0: ArrayTree) -> LoopState:
    """The state of a run in a process with another number of devices, packed as here."""
    if not isinstance(state, LoopState) or not isinstance(state.approx, MemoryState):
        return state
    as_here = functools.partial(repack, x=x0)
    return state._replace(
        point=state.point._replace(x=as_here(state.point.x), g=as_here(state.point.g)),
        best=state.best._replace(g=as_here(state.best.g)),
        Hg=as_here(state.Hg),
        approx=as_here(state.approx),
        x_scale=as_here(state.x_scale),
    )


@functools.partial(jax.jit, static_argnames=("problem",))
def _run(
    x0: ArrayTree, state: LoopState, tol: Tolerances, *, args: Any, problem: Problem
) -> MinimizeResult:
    """Run the loop to a status."""
    evaluate, hessian = problem.on_vectors(x0, args, state.x_scale)
    state = run(state, evaluate, problem.qn, problem.linesearch, tol, hessian)
    best, back = lowest(state, alone=True), problem.vector(x0)[1]
    nit, nfev, *_ = state.counts
    return MinimizeResult(
        x=back(best.x),
        fun=best.f,
        jac=back(best.g),
        status=state.status,
        nit=nit,
        nfev=nfev,
        state=state,
        aux=best.aux,
    )


def _observed(
    go: Callable[..., MinimizeResult],
    x0: ArrayTree,
    state: LoopState,
    tol: Tolerances,
    callback: Callable[[MinimizeResult], Any] | None,
    progress: bool,
) -> MinimizeResult:
    """The same run in slices, each of which ends where somebody wants to look."""
    if is_traced((x0, state, tol)):
        raise TypeError(
            "callback and progress need concrete numbers, but this call is being traced (jit, vmap "
            "or scan): call minimize eagerly, or run it in slices with maxiter= and state="
        )
    last_print, slice_length = time.monotonic(), 1
    while True:
        reached = int(state.counts[0])
        pause = min(int(tol.maxiter), reached + (1 if callback else slice_length))
        result = go(x0, state, tol._replace(maxiter=np.int32(pause)))
        state = result.state
        over = int(result.status) != Status.MAX_ITER or pause == int(tol.maxiter)
        elapsed = time.monotonic() - last_print
        slice_length = min(2 * slice_length, 1024) if elapsed < 0.5 else max(slice_length // 2, 1)
        if progress and (over or elapsed >= 1):
            last_print = time.monotonic()
            _print_progress(result)
        wants_stop = callback is not None and int(result.nit) > reached and bool(callback(result))
        if over:
            return result
        if wants_stop:
            return result._replace(status=jnp.int32(Status.STOPPED))


def _print_progress(result: MinimizeResult) -> None:
    g_norm = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(result.jac))
    print(
        f"iteration {int(result.nit):6d}  evaluations {int(result.nfev):6d}  "
        f"f {float(result.fun): .9e}  max|g| {g_norm:.2e}",
        file=sys.stderr,
        flush=True,
    )
