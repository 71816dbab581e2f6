"""The compiled program of a batch: arguments split by problem, devices, results put together."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_count, check_x0
from jaxqn.drivers.in_axes import Layout, common_size, split
from jaxqn.drivers.lanes import ONE_STAGE_LANES, Queue, run_queue, second_stage_lanes
from jaxqn.drivers.result import MinimizeResult
from jaxqn.linalg import vectors
from jaxqn.loop import (
    Box,
    LoopState,
    MinimizeOptions,
    Minimum,
    Path,
    Problem,
    RootProblem,
    Tolerances,
    active,
    constant,
    differentiable,
    inside,
    tolerances,
)
from jaxqn.quasi_newton import QuasiNewton

__all__ = ["BatchState", "solve_batch"]


class BatchState(NamedTuple):
    """How the lanes of a batch were used; the problems' own states are not kept.

    Attributes:
      lanes: lanes of the two stages, the full and the narrow one, which has 0 where there is none;
        int32, shape ``(devices, 2)``.
      trips: trips that the lanes of a stage made together, int32, shape ``(devices, 2)``.
      njev: Jacobians that every problem evaluated, int32; 0 for a method that does not count them.
    """

    lanes: Array
    trips: Array
    njev: Array

    def occupancy(self, nfev: Array) -> Array:
        """The share of lanes and trips that evaluated something needed, given all ``nfev``."""
        made = self.lanes.astype(jnp.float32) * self.trips.astype(jnp.float32)
        return jnp.sum(nfev.astype(jnp.float32)) / jnp.sum(made)


class Operands(NamedTuple):
    """What a compiled batch works on.

    Attributes:
      mapped: the leaves of ``(x0, *args)``, and of a box, with a leading axis of problems.
      shared: the leaves that all problems share.
      tol: tolerances and budgets.
      H0: an initial inverse Hessian for all problems, or ``None``.
      x_scale: sizes of the parameters for all problems, or ``None``.
      target: a value at which everything stops, or ``None``.
    """

    mapped: list[Array]
    shared: list[Any]
    tol: Tolerances
    H0: Any
    x_scale: Any
    target: Array | None


def solve_batch(
    problem: Problem | RootProblem,
    options: MinimizeOptions,
    arguments: tuple[Any, ...],
    *,
    in_axes: Any,
    lanes: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    target: Array | None = None,
) -> MinimizeResult:
    """Check, and run the compiled program.

    Args:
      problem: what all have in common.
      options: complete.
      arguments: x0 and those of the objective; with bounds, their box comes last.
      in_axes: the axes of these that run over problems.
      lanes: see :func:`jaxqn.minimize_batch`.
      mesh: see there.
      target: see :func:`jaxqn.multi_start`.
    """
    x0, *others = arguments
    x0, dtype, _ = check_x0(x0)
    mapped, shared, layout = split(in_axes, (x0, *others))
    count = common_size(mapped)
    one: Any = jax.eval_shape(lambda leaves: layout.join([a[0] for a in leaves], shared)[0], mapped)
    n = vectors.size(one)
    tol = tolerances(dtype, n, options)
    H0, x_scale = problem.starts(options, one)
    if not isinstance(mesh, jax.sharding.Mesh | None):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, but it is {mesh!r}")
    if mesh is not None:  # also one with explicit axes: nothing outside sees them
        mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
    devices = 1 if mesh is None else mesh.size
    each = -(-count // devices)
    width = _width(lanes, each, n, problem.method.qn)
    if target is not None:
        target = target.astype(dtype)
    operands = Operands(mapped, shared, tol, H0, x_scale, target)
    result = _solve(
        constant(operands), problem=problem, layout=layout, lanes=width, mesh=mesh, count=count
    )
    if not problem.has_derivatives:
        return result
    return _differentiable(result, mapped, shared, problem=problem, layout=layout)


def _width(lanes: int | None, count: int, n: int, qn: QuasiNewton) -> int:
    """How many lanes: as asked, or as many as the device makes good use of."""
    if lanes is not None:
        return min(check_count("lanes", lanes), count)
    numbers = n * n if qn.dense else 20 * n
    if jax.default_backend() == "cpu":
        # What fits a cache and keeps the end of the queue short; more lanes gain nothing.
        return min(count, max(min(ONE_STAGE_LANES, 2**22 // numbers, count // 16), 16))
    # A trip of kernels takes as long for one lane as for a thousand, until memory is kept busy.
    return min(count, max(min(2**16, 2**25 // numbers), 16))


@functools.partial(jax.jit, static_argnames=("problem", "layout", "lanes", "mesh", "count"))
def _solve(
    operands: Operands,
    *,
    problem: Problem | RootProblem,
    layout: Layout,
    lanes: int,
    mesh: jax.sharding.Mesh | None,
    count: int,
) -> MinimizeResult:
    """All problems, on one device or evenly on all of a mesh."""
    queued = functools.partial(_queued, problem=problem, layout=layout, lanes=lanes)
    if mesh is not None:
        spare = -count % mesh.size
        operands = operands._replace(
            mapped=[
                jnp.concatenate([a, jnp.repeat(a[-1:], spare, axis=0)]) for a in operands.mapped
            ]
        )
        each, same = jax.sharding.PartitionSpec(mesh.axis_names), jax.sharding.PartitionSpec()
        specs: Any = (each, *[same] * (len(operands) - 1))
        queued = jax.shard_map(
            queued,
            mesh=mesh,
            in_specs=(Operands(*specs),),
            out_specs=(each, each),
            check_vma=False,
        )
    result, trips = queued(operands)
    result = jax.tree.map(lambda leaf: leaf[:count], result)
    widths = jnp.array([lanes, second_stage_lanes(lanes)], jnp.int32)
    state: Any = BatchState(jnp.broadcast_to(widths, trips.shape), trips, result.state)
    return result._replace(state=state)


@functools.partial(jax.jit, static_argnames=("problem", "layout"))
def _differentiable(
    result: MinimizeResult,
    mapped: list[Array],
    shared: list[Any],
    *,
    problem: Problem,
    layout: Layout,
) -> MinimizeResult:
    """Every result as a function of its own data and of those that all share."""

    def one(result: MinimizeResult, mapped: list[Array]) -> MinimizeResult:
        _, *args = layout.join(mapped, shared)
        box = args.pop() if problem.bounded else None
        ended = Minimum(result.x, result.fun, result.jac, result.aux, None, result.status)
        x, f, g, aux, _, _ = differentiable(problem, ended, tuple(args), box, None)
        return result._replace(x=x, fun=f, jac=g, aux=aux)

    return jax.vmap(one)(result._replace(state=None), mapped)._replace(state=result.state)


def _queued(
    operands: Operands, *, problem: Problem | RootProblem, layout: Layout, lanes: int
) -> tuple[MinimizeResult, Array]:
    """The problems of one device."""
    mapped, shared, tol, H0, x_scale, target = operands

    def data(index: Array) -> list[Array]:
        return [leaf.at[index].get(mode="clip") for leaf in mapped]

    def parts(one: list[Array]) -> tuple[ArrayTree, Any, Box | None]:
        x, *args = layout.join(one, shared)
        return (x, args[:-1], args[-1]) if problem.bounded else (x, args, None)

    def begin(one: list[Array]) -> LoopState:
        x, args, box = parts(one)
        return problem.start(x, args, H0, x_scale, box)

    def on_vectors(one: list[Array], x_scale: Any) -> Any:
        return problem.on_vectors(*parts(one), x_scale)

    def path(one: list[Array], x_scale: Any) -> Path:
        return problem.path(parts(one)[2], x_scale)

    queue = Queue(mapped[0].shape[0], data, begin, on_vectors, path, problem.method)
    ended, trips = run_queue(queue, lanes, tol, target)
    first = layout.join([leaf[0] for leaf in mapped], shared)[0]
    back = jax.vmap(problem.vector(first)[1])
    status, nit, nfev = ended.ends
    x, jac, holds = back(ended.x), back(ended.g), None
    if problem.bounded:
        box, axis = layout.join(mapped, shared)[-1], 0 if layout.mapped[-1] else None
        x = jax.vmap(inside, (0, axis))(x, box)
        holds = jax.vmap(active, (0, 0, axis))(x, jac, box)
    result = MinimizeResult(
        x=x,
        fun=ended.f,
        jac=jac,
        status=status,
        nit=nit,
        nfev=nfev,
        state=ended.njev,
        aux=ended.aux,
        active=holds,
    )
    return result, trips[None]
