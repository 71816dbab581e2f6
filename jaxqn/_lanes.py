"""A queue of problems through a few lanes, inside one compiled loop.

Every lane runs trips of ``jaxqn.loop`` on a problem of its own; lanes whose problem has ended are
held, which takes masks of scalars only, until a few of them have gathered. Then they write their
results and take the next problems of the queue. When the queue is empty and most of many lanes have
ended, the others go on in a narrower set of lanes. The cost is the sum of the evaluations over the
number of lanes, not the largest of them times the number of problems.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._branches import rarely
from jaxqn._problem import Problem
from jaxqn._typing import Array, ArrayTree
from jaxqn.loop import LoopState, lowest, trip
from jaxqn.termination import Status, Tolerances

__all__ = ["WIDE", "Ended", "Queue", "narrow", "run_queue"]

SHARE = 16
"""One lane in so many may wait before new problems are handed out."""

WIDE = 64
"""Lanes up to which a second stage would gain less at the end than it takes to compile."""

NARROW = 8
"""How much narrower the lanes are once the queue is empty."""


def narrow(lanes: int) -> int:
    """Lanes of the second stage; 0 if there is none."""
    return lanes // NARROW if lanes > WIDE else 0


class Ended(NamedTuple):
    """What is kept of an ended problem. Each leaf has a leading axis of problems.

    Attributes:
      x: the lowest point, as a vector of the method.
      f: value there.
      g: gradient there.
      aux: auxiliary output there, or ``None``.
      counts: status, iterations and evaluations, int32, shape ``(3,)``.
    """

    x: ArrayTree
    f: Array
    g: ArrayTree
    aux: Any
    counts: Array


class Queue(NamedTuple):
    """The problems, and how to begin one.

    Attributes:
      size: how many there are.
      data: ``index -> data``: what is particular to problems, for an array of indices.
      begin: ``data -> LoopState`` of one problem.
      on_vectors: ``(data, x_scale) -> (evaluate, hessian)`` of one problem.
    """

    size: int
    data: Callable[[Array], Any]
    begin: Callable[[Any], LoopState]
    on_vectors: Callable[[Any, Any], tuple[Callable[..., Any], Callable[..., Any]]]


class _Lanes(NamedTuple):
    """The loop's state: W lanes, the front of the queue, what has ended, and trips made so far."""

    states: LoopState
    data: Any
    holder: Array
    front: Array
    ended: Ended
    trips: Array
    reached: Array


def run_queue(
    queue: Queue, lanes: int, problem: Problem, tol: Tolerances, target: Array | None
) -> tuple[Ended, Array]:
    """All problems to their ends, and the trips made at full and at reduced width.

    With a ``target``, everything stops when a problem succeeds with a value of at most that.
    """

    def step(state: LoopState, data: Any) -> LoopState:
        evaluate, hessian = queue.on_vectors(data, state.x_scale)
        return trip(state, evaluate, problem.qn, problem.linesearch, tol, hessian)

    def drive(lanes: _Lanes, few: int, stage: int) -> _Lanes:
        """Trips until the queue is empty and at most a few lanes are running."""
        width = lanes.holder.size
        gathered = max(1, width // SHARE)

        def going(now: _Lanes) -> Array:
            running = jnp.sum(_running(now), dtype=jnp.int32)
            return ((now.front < queue.size) | (running > few)) & ~now.reached

        def body(now: _Lanes) -> _Lanes:
            now = now._replace(
                states=jax.vmap(step)(now.states, now.data), trips=now.trips.at[stage].add(1)
            )
            if target is not None:
                now = now._replace(reached=_reaches(now.states, target))
            waiting = jnp.sum(_waiting(now, queue.size), dtype=jnp.int32)
            due = (now.front < queue.size) & (waiting >= gathered) & ~now.reached
            return rarely(due, now, lambda now: _refill(now, queue), long=True)

        return jax.lax.while_loop(going, body, lanes)

    few = narrow(lanes)
    now = _stopped(drive(_first(queue, lanes), few, stage=0))
    if few:
        now = _stopped(drive(_narrowed(now, queue.size, few), few=0, stage=1))
    return _recorded(now, queue.size), now.trips


def _running(now: _Lanes) -> Array:
    return now.states.status == Status.RUNNING


def _waiting(now: _Lanes, size: int) -> Array:
    """Lanes whose problem has ended and is not recorded yet."""
    return ~_running(now) & (now.holder < size)


def _reaches(states: LoopState, target: Array) -> Array:
    """Whether a lane has succeeded with a value of at most that."""
    success = (states.status >= Status.CONVERGED) & (states.status <= Status.XTOL)
    return jnp.any(success & (states.point.f <= target))


def _stopped(now: _Lanes) -> _Lanes:
    """What still runs is stopped, if the target is reached."""
    stop = now.reached & _running(now)
    status = jnp.where(stop, jnp.int32(Status.STOPPED), now.states.status)
    return now._replace(states=now.states._replace(status=status))


def _first(queue: Queue, lanes: int) -> _Lanes:
    """The first problems of the queue in their lanes."""
    holder = jnp.arange(lanes, dtype=jnp.int32)
    data = queue.data(holder)
    states = jax.vmap(queue.begin)(data)
    everyone = jax.eval_shape(jax.vmap(_result), states)
    blank = jax.tree.map(
        lambda leaf: jnp.zeros((queue.size, *leaf.shape[1:]), leaf.dtype), everyone
    )
    counts = jnp.array([Status.STOPPED, 0, 0], jnp.int32)
    ended = blank._replace(
        x=jax.vmap(lambda data: _result(queue.begin(data)).x)(queue.data(jnp.arange(queue.size))),
        f=jnp.full_like(blank.f, jnp.inf),
        counts=jnp.broadcast_to(counts, blank.counts.shape),
    )
    return _Lanes(
        states=states,
        data=data,
        holder=holder,
        front=jnp.int32(lanes),
        ended=ended,
        trips=jnp.zeros((2,), jnp.int32),
        reached=jnp.zeros((), bool),
    )


def _result(state: LoopState) -> Ended:
    best = lowest(state)
    counts = jnp.stack([state.status, state.counts[0], state.counts[1]])
    return Ended(best.x, best.f, best.g, best.aux, counts)


def _recorded(now: _Lanes, size: int) -> Ended:
    """What has ended, with the results of the lanes that wait."""
    row = jnp.where(_waiting(now, size), now.holder, size)

    def put(all_rows: Array, rows: Array) -> Array:
        return all_rows.at[row].set(rows, mode="drop")

    return jax.tree.map(put, now.ended, jax.vmap(_result)(now.states))


def _refill(now: _Lanes, queue: Queue) -> _Lanes:
    """Record the lanes that wait, and give them the next problems, as long as there are any."""
    waiting = _waiting(now, queue.size)
    ended = _recorded(now, queue.size)
    rank = jnp.cumsum(waiting.astype(jnp.int32)) - 1
    holder = jnp.where(waiting, jnp.minimum(now.front + rank, queue.size), now.holder)
    data = queue.data(holder)
    fresh = waiting & (holder < queue.size)

    def renew(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    states = jax.tree.map(renew, jax.vmap(queue.begin)(data), now.states)
    front = jnp.minimum(now.front + jnp.sum(waiting, dtype=jnp.int32), queue.size)
    return now._replace(states=states, data=data, holder=holder, front=front, ended=ended)


def _narrowed(now: _Lanes, size: int, width: int) -> _Lanes:
    """The lanes that still run, in fewer; the others are recorded."""
    ended = _recorded(now, size)
    chosen = jnp.argsort(~_running(now), stable=True)[:width]
    states, data, holder = jax.tree.map(
        lambda leaf: leaf[chosen], (now.states, now.data, now.holder)
    )
    holder = jnp.where(states.status == Status.RUNNING, holder, size)
    return now._replace(states=states, data=data, holder=holder, ended=ended)
