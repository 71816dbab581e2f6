"""The compiled program of a batch: arguments split by problem, devices, results put together."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._arguments import check_count
from jaxqn._axes import Layout, common_size, split
from jaxqn._checks import check_x0, check_x_scale
from jaxqn._lanes import WIDE, Queue, narrow, run_queue
from jaxqn._problem import Problem, tolerances
from jaxqn._stacks import size
from jaxqn._typing import Array, ArrayTree
from jaxqn.loop import LoopState
from jaxqn.minimize import MinimizeResult
from jaxqn.quasi_newton import QuasiNewton
from jaxqn.termination import Tolerances

__all__ = ["BatchState", "solve_batch"]


class BatchState(NamedTuple):
    """How the lanes of a batch were used; the problems' own states are not kept.

    Attributes:
      lanes: lanes of the two stages, the full and the narrow one, which has 0 where there is none;
        int32, shape ``(devices, 2)``.
      trips: trips that the lanes of a stage made together, int32, shape ``(devices, 2)``.
    """

    lanes: Array
    trips: Array

    def occupancy(self, nfev: Array) -> Array:
        """The share of lanes and trips that evaluated something needed, given all ``nfev``."""
        made = self.lanes.astype(jnp.float32) * self.trips.astype(jnp.float32)
        return jnp.sum(nfev.astype(jnp.float32)) / jnp.sum(made)


def solve_batch(
    problem: Problem,
    x0: ArrayTree,
    args: tuple[Any, ...],
    in_axes: Any,
    lanes: int | None,
    options: dict[str, Any],
    *,
    hess_inv0: Any = None,
    x_scale: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    target: Array | None = None,
) -> MinimizeResult:
    """Check, and run the compiled program; ``options`` are tolerances and budgets."""
    x0, dtype, _ = check_x0(x0)
    mapped, shared, layout = split(in_axes, (x0, *args))
    count = common_size(mapped)
    one: Any = jax.eval_shape(lambda leaves: layout.join([a[0] for a in leaves], shared)[0], mapped)
    n = size(one)
    tol = tolerances(dtype, n, **options)
    H0, x_scale = problem.initial(hess_inv0, one), check_x_scale(x_scale, one)
    if not isinstance(mesh, jax.sharding.Mesh | None):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, but it is {mesh!r}")
    if mesh is not None:  # also one with explicit axes: nothing outside sees them
        mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
    devices = 1 if mesh is None else mesh.size
    each = -(-count // devices)
    width = _width(lanes, each, n, problem.qn)
    if target is not None:
        target = target.astype(dtype)
    solve = functools.partial(_solve, problem=problem, layout=layout, lanes=width, mesh=mesh)
    return solve(mapped, shared, tol, H0, x_scale, target, count=count)


def _width(lanes: int | None, count: int, n: int, qn: QuasiNewton) -> int:
    """How many lanes: as asked, or as many as the device makes good use of."""
    if lanes is not None:
        return min(check_count("lanes", lanes), count)
    numbers = n * n if qn.dense else 20 * n
    if jax.default_backend() == "cpu":
        # What fits a cache and keeps the end of the queue short; more than WIDE gain nothing.
        return min(count, max(min(WIDE, 2**22 // numbers, count // 16), 16))
    # A trip of kernels takes as long for one lane as for a thousand, until memory is kept busy.
    return min(count, max(min(2**16, 2**25 // numbers), 16))


@functools.partial(jax.jit, static_argnames=("problem", "layout", "lanes", "mesh", "count"))
def _solve(
    mapped: list[Array],
    shared: list[Any],
    tol: Tolerances,
    H0: Any,
    x_scale: Any,
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
            in_specs=(each, same, same, same, same, same),
            out_specs=(each, each),
            check_vma=False,
        )
    result, trips = queued(mapped, shared, tol, H0, x_scale, target)
    result = jax.tree.map(lambda leaf: leaf[:count], result)
    widths = jnp.array([lanes, narrow(lanes)], jnp.int32)
    state: Any = BatchState(jnp.broadcast_to(widths, trips.shape), trips)
    return result._replace(state=state)


def _queued(
    mapped: list[Array],
    shared: list[Any],
    tol: Tolerances,
    H0: Any,
    x_scale: Any,
    target: Array | None,
    *,
    problem: Problem,
    layout: Layout,
    lanes: int,
) -> tuple[MinimizeResult, Array]:
    """The problems of one device."""

    def data(index: Array) -> list[Array]:
        return [leaf.at[index].get(mode="clip") for leaf in mapped]

    def begin(one: list[Array]) -> LoopState:
        x, *args = layout.join(one, shared)
        return problem.start(x, args, H0, x_scale)

    def on_vectors(one: list[Array], x_scale: Any) -> Any:
        x, *args = layout.join(one, shared)
        return problem.on_vectors(x, args, x_scale)

    queue = Queue(mapped[0].shape[0], data, begin, on_vectors)
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
