"""A queue of problems through a few lanes, inside one compiled loop.

Every lane runs trips of :mod:`jaxqn.loop` on a problem of its own. A lane whose problem has ended
is held, which takes masks of scalars only, until a few such lanes have gathered; then they write
their results and take the next problems of the queue. When the queue is empty and most of many
lanes have ended, the others go on in fewer lanes. The cost is the sum of the evaluations over the
number of lanes, not the largest number of evaluations times the number of problems.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import update_if
from jaxqn.loop import (
    LoopState,
    Method,
    Path,
    Status,
    Tolerances,
    lowest_point,
    succeeded,
    trip,
)

__all__ = ["ONE_STAGE_LANES", "Ended", "Queue", "run_queue", "second_stage_lanes"]

REFILL_SHARE = 16
"""One lane in so many may wait before new problems are handed out."""

ONE_STAGE_LANES = 64
"""Lanes up to which a second stage would gain less at the end than it takes to compile."""

STAGE_RATIO = 8
"""How much narrower the lanes are once the queue is empty."""


def second_stage_lanes(lanes: int) -> int:
    """Lanes of the second stage; 0 if there is none."""
    return lanes // STAGE_RATIO if lanes > ONE_STAGE_LANES else 0


class Ended(NamedTuple):
    """What is kept of an ended problem. Each leaf has a leading axis of problems.

    Attributes:
      x: the lowest point, as a vector of the method.
      f: value there.
      g: gradient there.
      aux: auxiliary output there, or ``None``.
      counts: ``status``, ``nit``, ``nfev`` and ``njev``, int32, shape ``(4,)``.
    """

    x: ArrayTree
    f: Array
    g: ArrayTree
    aux: Any
    counts: Array

    @property
    def ends(self) -> tuple[Array, Array, Array]:
        """Status, iterations and evaluations of every problem, each of shape ``(B,)``."""
        status, nit, nfev, _ = jnp.unstack(self.counts, axis=-1)
        return status, nit, nfev

    @property
    def njev(self) -> Array:
        """Jacobians of every problem, shape ``(B,)``; 0 for a method that does not count them."""
        return self.counts[..., 3]


class Queue(NamedTuple):
    """The problems, and how to begin one.

    Attributes:
      size: how many there are.
      data: ``index -> data``: what is particular to problems, for an array of indices.
      begin: ``data -> LoopState`` of one problem.
      on_vectors: ``(data, x_scale) -> (evaluate, second, path)`` of one problem.
      path: ``(data, x_scale) -> Path`` of its steps.
      method: what solves them.
    """

    size: int
    data: Callable[[Array], Any]
    begin: Callable[[Any], LoopState]
    on_vectors: Callable[[Any, Any], tuple[Callable[..., Any], Callable[..., Any], Path]]
    path: Callable[[Any, Any], Path]
    method: Method


class LanesState(NamedTuple):
    """What the loop over lanes carries. W lanes work on B problems.

    Attributes:
      states: a run per lane.
      data: what is particular to the problem of a lane, per lane.
      problem: the problem of a lane, int32, shape ``(W,)``; B for a lane without one.
      next_problem: the first problem that no lane has had, int32.
      ended: results, per problem.
      trips: made at full and at reduced width, int32, shape ``(2,)``.
      reached: whether a run has reached the target.
    """

    states: LoopState
    data: Any
    problem: Array
    next_problem: Array
    ended: Ended
    trips: Array
    reached: Array


def run_queue(
    queue: Queue, lanes: int, tol: Tolerances, target: Array | None
) -> tuple[Ended, Array]:
    """All problems to their ends, and the trips made at full and at reduced width.

    With a ``target``, everything stops when a problem succeeds with a value of at most that.
    """

    def step(state: LoopState, data: Any) -> LoopState:
        return trip(state, functools.partial(queue.on_vectors, data), queue.method, tol)

    def drive(lanes: LanesState, few: int, stage: int) -> LanesState:
        """Trips until the queue is empty and at most a few lanes are running."""
        width = lanes.problem.size
        gathered = max(1, width // REFILL_SHARE)

        def going(now: LanesState) -> Array:
            running = jnp.sum(_running(now), dtype=jnp.int32)
            return ((now.next_problem < queue.size) | (running > few)) & ~now.reached

        def body(now: LanesState) -> LanesState:
            now = now._replace(
                states=jax.vmap(step)(now.states, now.data), trips=now.trips.at[stage].add(1)
            )
            if target is not None:
                now = now._replace(reached=_reaches(now.states, target))
            waiting = jnp.sum(_waiting(now, queue.size), dtype=jnp.int32)
            due = (now.next_problem < queue.size) & (waiting >= gathered) & ~now.reached
            return update_if(due, now, lambda now: _refill(now, queue), branch=True)

        return jax.lax.while_loop(going, body, lanes)

    few = second_stage_lanes(lanes)
    now = _stopped(drive(_started(queue, lanes), few, stage=0))
    if few:
        now = _stopped(drive(_in_fewer_lanes(now, queue, few), few=0, stage=1))
    return _recorded(now, queue), now.trips


def _running(now: LanesState) -> Array:
    return now.states.status == Status.RUNNING


def _waiting(now: LanesState, size: int) -> Array:
    """Lanes whose problem has ended and is not recorded yet."""
    return ~_running(now) & (now.problem < size)


def _reaches(states: LoopState, target: Array) -> Array:
    """Whether a lane has succeeded with a value of at most that."""
    return jnp.any(succeeded(states.status) & (states.point.f <= target))


def _stopped(now: LanesState) -> LanesState:
    """What still runs is stopped, if the target is reached."""
    stop = now.reached & _running(now)
    status = jnp.where(stop, jnp.int32(Status.STOPPED), now.states.status)
    return now._replace(states=now.states._replace(status=status))


def _started(queue: Queue, lanes: int) -> LanesState:
    """The first problems of the queue in their lanes."""
    index = jnp.arange(lanes, dtype=jnp.int32)
    data = queue.data(index)
    states = jax.vmap(queue.begin)(data)
    result = functools.partial(_result, queue)
    everyone = jax.eval_shape(jax.vmap(result), states, data)
    blank = jax.tree.map(
        lambda leaf: jnp.zeros((queue.size, *leaf.shape[1:]), leaf.dtype), everyone
    )
    counts = jnp.array([Status.STOPPED, 0, 0, 0], jnp.int32)
    ended = blank._replace(
        x=jax.vmap(lambda data: result(queue.begin(data), data).x)(
            queue.data(jnp.arange(queue.size))
        ),
        f=jnp.full_like(blank.f, jnp.inf),
        counts=jnp.broadcast_to(counts, blank.counts.shape),
    )
    return LanesState(
        states=states,
        data=data,
        problem=index,
        next_problem=jnp.int32(lanes),
        ended=ended,
        trips=jnp.zeros((2,), jnp.int32),
        reached=jnp.zeros((), bool),
    )


def _result(queue: Queue, state: LoopState, data: Any) -> Ended:
    best = lowest_point(state, queue.method, queue.path(data, state.x_scale))
    njev = getattr(state.approx, "njev", jnp.zeros_like(state.nit))
    counts = jnp.stack([state.status, state.nit, state.nfev, njev])
    return Ended(best.x, best.f, best.g, best.aux, counts)


def _recorded(now: LanesState, queue: Queue) -> Ended:
    """What has ended, with the results of the lanes that wait."""
    row = jnp.where(_waiting(now, queue.size), now.problem, queue.size)

    def put(all_rows: Array, rows: Array) -> Array:
        return all_rows.at[row].set(rows, mode="drop")

    rows = jax.vmap(functools.partial(_result, queue))(now.states, now.data)
    return jax.tree.map(put, now.ended, rows)


def _refill(now: LanesState, queue: Queue) -> LanesState:
    """Record the lanes that wait, and give them the next problems, as long as there are any."""
    waiting = _waiting(now, queue.size)
    ended = _recorded(now, queue)
    rank = jnp.cumsum(waiting.astype(jnp.int32)) - 1
    index = jnp.where(waiting, jnp.minimum(now.next_problem + rank, queue.size), now.problem)
    data = queue.data(index)
    fresh = waiting & (index < queue.size)

    def renew(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    states = jax.tree.map(renew, jax.vmap(queue.begin)(data), now.states)
    next_index = jnp.minimum(now.next_problem + jnp.sum(waiting, dtype=jnp.int32), queue.size)
    return now._replace(
        states=states, data=data, problem=index, next_problem=next_index, ended=ended
    )


def _in_fewer_lanes(now: LanesState, queue: Queue, width: int) -> LanesState:
    """The lanes that still run, in fewer; the others are recorded."""
    ended = _recorded(now, queue)
    chosen = jnp.argsort(~_running(now), stable=True)[:width]
    states, data, index = jax.tree.map(
        lambda leaf: leaf[chosen], (now.states, now.data, now.problem)
    )
    index = jnp.where(states.status == Status.RUNNING, index, queue.size)
    return now._replace(states=states, data=data, problem=index, ended=ended)
