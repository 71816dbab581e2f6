"""Many problems at once: ``minimize_batch`` and ``multi_start``."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree, Objective
from jaxqn.drivers.batch_bounds import with_box
from jaxqn.drivers.batch_solve import BatchState, solve_batch
from jaxqn.drivers.result import MinimizeResult
from jaxqn.loop import MinimizeOptions, Status, completed, problem_of

__all__ = ["BatchState", "MultiStartResult", "minimize_batch", "multi_start"]


def minimize_batch(
    fun: Objective,
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    in_axes: Any = 0,
    lanes: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **options: Unpack[MinimizeOptions],
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
      lanes: problems under way at once; by default up to 64 on a CPU, fewer of large or few
        problems, and up to 65 536 elsewhere, as many as 2²⁵ numbers of matrices or histories allow.
        More than 64 cost a second loop to compile, for the last ones.
      mesh: devices to share the problems evenly, each with lanes of its own and a queue of its
        own; nothing is communicated between them.
      **options: ``bounds``, which runs over problems if ``in_axes`` has one more entry for it, the
        last: an axis, or one for the lower and one for the upper side; and those of
        :func:`jaxqn.minimize` from ``method`` to ``implicit``, the same for every problem. Without
        ``x_scale`` each problem has that of its own ``x0``.

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

    """
    settings = completed("minimize_batch", options)
    problem = problem_of(fun, args, settings)
    in_axes, arguments = with_box(settings, in_axes, x0, args)
    return solve_batch(problem, settings, arguments, in_axes=in_axes, lanes=lanes, mesh=mesh)


class MultiStartResult(NamedTuple):
    """What :func:`multi_start` returns.

    Attributes:
      best: of the runs that came to an end, the one with the lowest finite value, as
        :func:`jaxqn.minimize` would give it.
      ranking: indices of the starting points, from the best run to the worst, int32; those that
        ``target`` cut short come last.
      runs: all of them. One that ``target`` cut short has the status STOPPED, and one that it left
        in the queue no evaluations and an infinite value.
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
    mesh: jax.sharding.Mesh | None = None,
    **options: Unpack[MinimizeOptions],
) -> MultiStartResult:
    """Minimise one function from many starting points, and rank what was found.

    Args:
      fun: objective ``fun(x, *args)``.
      x0s: starting points, a pytree with a leading axis of starts.
      args: further arguments of ``fun``, the same for every start.
      target: stop everything as soon as a run succeeds with a value of at most this; ``jnp.inf``
        stops at the first success. By default every run goes to its end. On several devices, each
        stops by itself.
      lanes: see :func:`minimize_batch`.
      mesh: see :func:`minimize_batch`.
      **options: see :func:`minimize_batch`.

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
    settings = completed("multi_start", options)
    problem = problem_of(fun, args, settings)
    if target is not None:
        target = jnp.asarray(target)
    axes, arguments = with_box(settings, (0,) + (None,) * len(args), x0s, args)
    runs = solve_batch(
        problem, settings, arguments, in_axes=axes, lanes=lanes, mesh=mesh, target=target
    )
    values = jnp.where(jnp.isfinite(runs.fun), runs.fun, jnp.inf)
    ranking = jnp.lexsort((values, runs.status == Status.STOPPED)).astype(jnp.int32)
    best = jax.tree.map(lambda leaf: leaf[ranking[0]], runs._replace(state=None))
    return MultiStartResult(best._replace(state=runs.state), ranking, runs)
