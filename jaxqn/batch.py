"""Many problems at once: ``minimize_batch`` and ``multi_start``."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._axes import Layout, common_size, split
from jaxqn._checks import check_hashable, check_initial, check_values, check_x0
from jaxqn._lanes import Queue, narrow, run_queue
from jaxqn._problem import Problem, tolerances
from jaxqn._typing import Array, ArrayTree, Objective
from jaxqn.linesearch import LineSearch, wolfe
from jaxqn.loop import LoopState
from jaxqn.methods import method_by_name
from jaxqn.minimize import DEFAULT_METHOD, MinimizeResult
from jaxqn.quasi_newton import QuasiNewton
from jaxqn.termination import Tolerances

__all__ = ["BatchState", "MultiStartResult", "minimize_batch", "multi_start"]


class BatchState(NamedTuple):
    """How the lanes of a batch were used; the problems' own states are not kept.

    Attributes:
      lanes: lanes of the two stages, the full and the narrow one, int32, shape ``(devices, 2)``.
      trips: trips that the lanes of a stage made together, int32, shape ``(devices, 2)``.
    """

    lanes: Array
    trips: Array

    def occupancy(self, nfev: Array) -> Array:
        """The share of lanes and trips that evaluated something needed, given all ``nfev``."""
        made = self.lanes.astype(jnp.float32) * self.trips.astype(jnp.float32)
        return jnp.sum(nfev.astype(jnp.float32)) / jnp.sum(made)


def minimize_batch(
    fun: Objective,
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    in_axes: Any = 0,
    lanes: int | None = None,
    method: str | QuasiNewton = DEFAULT_METHOD,
    linesearch: LineSearch | None = None,
    gtol: Any = None,
    ftol: Any = 0.0,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    hess_inv0: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> MinimizeResult:
    """Minimise the same function for many starting points or data sets.

    B problems go through W lanes of one compiled loop. A lane whose problem has ended takes the
    next one from the queue, so that the cost is the sum of all evaluations over W; under
    ``jax.vmap(minimize)`` it is B times the largest. Every problem has the result, status and
    counters that :func:`jaxqn.minimize` gives it alone, up to rounding; none touches another.

    Args:
      fun: objective ``fun(x, *args)`` of one problem; see :func:`jaxqn.minimize`.
      x0: first points, a pytree of real floating arrays of one dtype.
      args: further arguments of ``fun``.
      in_axes: which axis of ``(x0, *args)`` runs over problems, as for ``jax.vmap``: one for all,
        or a tuple of axes, ``None`` for what the problems share, or pytrees of these.
      lanes: problems under way at once; by default 256, or fewer for large or few problems.
      method: as in :func:`jaxqn.minimize`, as are all the options up to ``hess_inv0``; they are
        the same for every problem.
      linesearch: see there.
      gtol: see there.
      ftol: see there.
      xtol: see there.
      maxiter: see there.
      maxfun: see there.
      has_aux: see there.
      hess_inv0: see there; one for all problems.
      mesh: devices to share the problems evenly, each with lanes of its own and a queue of its
        own; nothing is communicated between them.

    Returns:
      A :class:`jaxqn.MinimizeResult` with a leading axis of problems. ``state`` is a
      :class:`jaxqn.BatchState`; the inverse Hessians are not kept.

    Raises:
      TypeError: see :func:`jaxqn.minimize`.
      ValueError: see there; and no axis of problems, or axes of different sizes.

    Cost: memory for W states, of n² numbers each with a dense method, and B results.

    Example:
      >>> def fun(x, target):
      ...     return jnp.sum((x - target) ** 2)
      >>> targets = jnp.arange(6.0).reshape(3, 2)
      >>> result = minimize_batch(fun, jnp.zeros(2), (targets,), in_axes=(None, 0))
      >>> bool(jnp.allclose(result.x, targets, atol=1e-5)), bool(result.success.all())
      (True, True)

    References:
      The lanes are those of a thread pool; the trips are those of :mod:`jaxqn.loop`.
    """
    options = Tolerances(gtol, None, ftol, xtol, maxiter, maxfun)
    problem = _problem(fun, method, linesearch, has_aux, args)
    return _batch(problem, x0, args, in_axes, lanes, options, hess_inv0, mesh, None)


class MultiStartResult(NamedTuple):
    """What :func:`multi_start` returns.

    Attributes:
      best: the run with the lowest finite value, as :func:`jaxqn.minimize` would give it.
      ranking: indices of the starting points, from the best run to the worst, int32.
      runs: all of them; one that ``target`` cut short has the status STOPPED.
    """

    best: MinimizeResult
    ranking: Array
    runs: MinimizeResult


def multi_start(
    fun: Objective,
    x0s: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    target: Any = None,
    lanes: int | None = None,
    method: str | QuasiNewton = DEFAULT_METHOD,
    linesearch: LineSearch | None = None,
    gtol: Any = None,
    ftol: Any = 0.0,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> MultiStartResult:
    """Minimise one function from many starting points, and rank what was found.

    Args:
      fun: objective ``fun(x, *args)``.
      x0s: starting points, a pytree with a leading axis of starts.
      args: further arguments of ``fun``, the same for every start.
      target: stop everything as soon as a run succeeds with a value of at most this; ``jnp.inf``
        stops at the first success. By default every run goes to its end. On several devices, each
        stops by itself.
      lanes: see :func:`minimize_batch`, as for all the other options.
      method: see there.
      linesearch: see there.
      gtol: see there.
      ftol: see there.
      xtol: see there.
      maxiter: see there.
      maxfun: see there.
      has_aux: see there.
      mesh: see there.

    Returns:
      A :class:`jaxqn.MultiStartResult`.

    Raises:
      TypeError: see :func:`minimize_batch`, also for ValueError.

    Cost: that of :func:`minimize_batch`.

    Example:
      >>> def double_well(x):
      ...     return jnp.sum((x**2 - 1) ** 2 + 0.2 * x)
      >>> found = multi_start(double_well, jnp.array([[2.0], [-0.5], [0.9]]))
      >>> round(float(found.best.x[0]), 3), int(found.ranking[0])
      (-1.024, 1)

    References:
      Rinnooy Kan & Timmer, Mathematical Programming 39 (1987), for what many starts can tell.
    """
    options = Tolerances(gtol, None, ftol, xtol, maxiter, maxfun)
    problem = _problem(fun, method, linesearch, has_aux, args)
    if target is not None:
        target = jnp.asarray(target)
    in_axes = (0,) + (None,) * len(args)
    runs = _batch(problem, x0s, args, in_axes, lanes, options, None, mesh, target)
    values = jnp.where(jnp.isfinite(runs.fun), runs.fun, jnp.inf)
    ranking = jnp.argsort(values).astype(jnp.int32)
    best = jax.tree.map(lambda leaf: leaf[ranking[0]], runs._replace(state=None))
    return MultiStartResult(best._replace(state=runs.state), ranking, runs)


def _problem(fun: Any, method: Any, linesearch: Any, has_aux: bool, args: Any) -> Problem:
    qn = method_by_name(method) if isinstance(method, str) else method
    linesearch = wolfe() if linesearch is None else linesearch
    check_values(qn, linesearch, args, None)
    check_hashable(fun)
    return Problem(fun, qn, linesearch, has_aux)


def _batch(
    problem: Problem,
    x0: ArrayTree,
    args: tuple[Any, ...],
    in_axes: Any,
    lanes: int | None,
    options: Tolerances,
    hess_inv0: Any,
    mesh: jax.sharding.Mesh | None,
    target: Array | None,
) -> MinimizeResult:
    """Check, and run the compiled program."""
    x0, dtype, _ = check_x0(x0)
    mapped, shared, layout = split(in_axes, (x0, *args))
    count = common_size(mapped)
    one: Any = jax.eval_shape(lambda leaves: layout.join([a[0] for a in leaves], shared)[0], mapped)
    n = sum(leaf.size for leaf in jax.tree.leaves(one))
    tol = tolerances(dtype, n, *options[:1], *options[2:])
    H0 = None if hess_inv0 is None else check_initial(hess_inv0, one, problem.qn.dense)
    if H0 is not None and problem.qn.renew is not None:
        raise ValueError("hess_inv0 starts a quasi-Newton method; this one takes the Hessian at x0")
    if mesh is not None:  # also one with explicit axes: nothing outside sees them
        mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
    devices = 1 if mesh is None else mesh.size
    each = -(-count // devices)
    width = _width(lanes, each, n, problem.qn)
    if target is not None:
        target = target.astype(dtype)
    solve = functools.partial(_solve, problem=problem, layout=layout, lanes=width, mesh=mesh)
    return solve(mapped, shared, tol, H0, target, count=count)


def _width(lanes: int | None, count: int, n: int, qn: QuasiNewton) -> int:
    """How many lanes: as asked, or by what fits a cache and keeps the end of the queue short."""
    if lanes is not None:
        if isinstance(lanes, bool) or not hasattr(lanes, "__index__") or int(lanes) < 1:
            raise ValueError(f"lanes must be a whole number of at least 1, but it is {lanes!r}")
        return min(int(lanes), count)
    numbers = n * n if qn.dense else 20 * n
    most = 256 if jax.default_backend() == "cpu" else 4096
    return min(count, max(min(most, 2**22 // numbers, count // 16), 16))


@functools.partial(jax.jit, static_argnames=("problem", "layout", "lanes", "mesh", "count"))
def _solve(
    mapped: list[Array],
    shared: list[Any],
    tol: Tolerances,
    H0: Any,
    target: Array | None,
    *,
    problem: Problem,
    layout: Layout,
    lanes: int,
    mesh: jax.sharding.Mesh | None,
    count: int,
) -> MinimizeResult:
    """All problems, on one device or evenly on all of a mesh."""
    queued = functools.partial(_queued, problem=problem, layout=layout, lanes=lanes)
    if mesh is not None:
        spare = -count % mesh.size
        mapped = [jnp.concatenate([a, jnp.repeat(a[-1:], spare, axis=0)]) for a in mapped]
        each, same = jax.sharding.PartitionSpec(mesh.axis_names), jax.sharding.PartitionSpec()
        queued = jax.shard_map(
            queued,
            mesh=mesh,
            in_specs=(each, same, same, same, same),
            out_specs=(each, each),
            check_vma=False,
        )
    result, trips = queued(mapped, shared, tol, H0, target)
    result = jax.tree.map(lambda leaf: leaf[:count], result)
    widths = jnp.array([lanes, narrow(lanes)], jnp.int32)
    state: Any = BatchState(jnp.broadcast_to(widths, trips.shape), trips)
    return result._replace(state=state)


def _queued(
    mapped: list[Array],
    shared: list[Any],
    tol: Tolerances,
    H0: Any,
    target: Array | None,
    *,
    problem: Problem,
    layout: Layout,
    lanes: int,
) -> tuple[MinimizeResult, Array]:
    """The problems of one device."""
    size = mapped[0].shape[0]

    def data(index: Array) -> list[Array]:
        return [leaf.at[index].get(mode="clip") for leaf in mapped]

    def begin(one: list[Array]) -> LoopState:
        x, *args = layout.join(one, shared)
        return problem.start(x, args, H0)

    def on_vectors(one: list[Array]) -> Any:
        x, *args = layout.join(one, shared)
        return problem.on_vectors(x, args)

    queue = Queue(size, data, begin, on_vectors)
    ended, trips = run_queue(queue, lanes, problem, tol, target)
    first = layout.join([leaf[0] for leaf in mapped], shared)[0]
    back = jax.vmap(problem.vector(first)[1])
    status, nit, nfev = jnp.unstack(ended.counts, axis=1)
    result = MinimizeResult(
        x=back(ended.x),
        fun=ended.f,
        jac=back(ended.g),
        status=status,
        nit=nit,
        nfev=nfev,
        state=None,
        aux=ended.aux,
    )
    return result, trips[None]
