"""The second eager call with the same function and shapes: traces and overhead.

The objective counts how often it is traced. The overhead is the time of an
eager call, in microseconds, beyond that of the very same program compiled
ahead; the problem is tiny, so the difference is dispatch and tracing.
"""

import jax
import jax.numpy as jnp

from . import objectives, peers, timing
from .solver import Options

CALLS = 20


class Counted:
    """An objective that counts its traces; one hashable object, as a user's."""

    def __init__(self):
        self.traces = 0

    def __call__(self, x, scale):
        self.traces += 1
        return scale * objectives.rosenbrock(x)


def measure(solver, rounds: int) -> dict:
    """Counts traces of the second call and times the eager and compiled ones."""
    fun = Counted()
    solve = solver.make(fun, Options(gtol=1e-5, maxiter=100))
    x0, scale = objectives.rosenbrock_start(2), jnp.ones(())
    jax.block_until_ready(solve(x0, scale))
    before = fun.traces
    jax.block_until_ready(solve(x0 + 0.01, 2.0 * scale))
    traces = fun.traces - before
    ahead = timing.compiled(solve, x0, scale)

    def eager():
        return [solve(x0, scale) for _ in range(CALLS if traces == 0 else 1)]

    def compiled():
        return [ahead() for _ in range(CALLS)]

    times = timing.interleaved({"eager": eager, "compiled": compiled}, rounds)
    each = times["eager"] / (CALLS if traces == 0 else 1)
    ahead_each = times["compiled"] / CALLS
    return {"traces": traces, "eager": each, "compiled": ahead_each}


def optax_update_traces() -> int:
    """Traces of the objective in one eager `update` of optax's own loop."""
    import optax

    fun = Counted()
    optimizer, x = optax.lbfgs(), objectives.rosenbrock_start(2)
    scale, state = jnp.ones(()), optimizer.init(objectives.rosenbrock_start(2))
    for _ in range(2):
        before = fun.traces
        value, grad = optax.value_and_grad_from_state(fun)(x, scale, state=state)
        updates, state = optimizer.update(
            grad, state, x, value=value, grad=grad, value_fn=fun, scale=scale
        )
        x = optax.apply_updates(x, updates)
    return fun.traces - before


def main(options) -> dict:
    """A row per compiled solver."""
    solvers = peers.available(options.solvers)
    rounds = 5 if options.quick else 15
    print(f"2-D Rosenbrock, {options.dtype}, medians of {rounds}")
    print(f"{'solver':22}{'traces':>7}{'eager us':>11}{'compiled us':>13}{'over us':>10}")
    rows = {}
    for solver in solvers:
        if not solver.compiled:
            continue
        row = rows[solver.name] = measure(solver, rounds)
        eager, ahead = 1e6 * row["eager"], 1e6 * row["compiled"]
        print(
            f"{solver.name:22}{row['traces']:7}{eager:11.0f}{ahead:13.0f}{eager - ahead:10.0f}",
            flush=True,
        )
    if "optax-lbfgs" in rows:
        traces = rows["optax-lbfgs"]["traces per update"] = optax_update_traces()
        print(f"optax.lbfgs, eager update: {traces} traces each")
    return rows
