"""Limited-memory methods at size: time per iteration over one read of history.

The history of m pairs is 2 m vectors; the time of all inner products of one
vector with them, inside a compiled loop, is "one read". Two reads are the
floor of any form. Chained Rosenbrock, m = 10; objective and vector work are
included. Memory is what XLA plans for the whole program, the starting point
donated, in vectors of n numbers.
"""

import jax
import jax.numpy as jnp

from . import objectives, peers, timing
from .solver import Options

MEMORY = 10
NAMES = ("optax-lbfgs", "optimistix-lbfgs", "jaxopt-lbfgs")


def time_read(n: int):
    """A call that reads a history of 2 m vectors, and how often it does."""
    times = 200 if n <= 10_000 else 10
    history = jax.random.normal(jax.random.key(0), (2 * MEMORY, n))

    def step(v, history):
        products = history @ v
        return v + 1e-20 * products[0]

    return timing.compiled(timing.loop_of(step, times), jnp.ones((n,)), history), times


def memory(solve, x0) -> float:
    """Vectors that the whole program needs at once, `x0` handed over."""
    program = jax.jit(solve, donate_argnums=0).lower(x0).compile()
    plan = program.memory_analysis()
    total = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return (total - plan.alias_size_in_bytes) / x0.nbytes


def measure(n: int, solvers, rounds: int) -> dict:
    """Times one size and prints a row per solver."""
    fun, x0 = objectives.rosenbrock, objectives.rosenbrock_start(n)
    read, reads = time_read(n)
    evaluations = 100
    alone = timing.value_and_grad_loop(fun, evaluations)
    calls = {"read": read, "value_and_grad": timing.compiled(alone, x0)}
    vectors = {}
    for solver in solvers:
        iterations = 200 if n <= 10_000 else 40
        solve = solver.make(fun, Options(gtol=0.0, maxiter=iterations))
        calls[solver.name] = timing.compiled(solve, x0)
        vectors[solver.name] = memory(lambda x, solve=solve: solve(x).x, x0)
    times = timing.interleaved(calls, rounds)
    one_read = times["read"] / reads
    value_and_grad = times["value_and_grad"] / evaluations
    print(
        f"\nrosenbrock, n = {n}, m = {MEMORY}: one read {1e6 * one_read:.0f} us,"
        f" value_and_grad alone {1e6 * value_and_grad:.0f} us"
    )
    print(f"{'solver':22}{'nit':>6}{'nfev':>6}{'us/nit':>10}{'reads/nit':>11}{'vectors':>9}")
    rows = {"one_read": one_read, "value_and_grad": value_and_grad}
    for solver in solvers:
        outcome = calls[solver.name]()
        nit, nfev = int(outcome.nit), int(outcome.nfev)
        each = times[solver.name] / max(nit, 1)
        held = vectors[solver.name]
        rows[solver.name] = {
            "nit": nit,
            "nfev": nfev,
            "reads": each / one_read,
            "vectors": held,
        }
        print(
            f"{solver.name:22}{nit:6}{nfev:6}{1e6 * each:10.0f}{each / one_read:11.2f}{held:9.1f}",
            flush=True,
        )
    return rows


def main(options) -> dict:
    """Small and large n; jaxqn takes part once it has limited memory."""
    solvers = [
        s
        for s in peers.available(options.solvers)
        if s.name in NAMES or (s.ours and ("lbfgs" in s.name or "lsr1" in s.name))
    ]
    if not any(s.ours for s in solvers):
        print("skipped: jaxqn (no limited-memory method in it)")
    sizes = (10_000,) if options.quick else (10_000, 1_000_000)
    return {str(n): measure(n, solvers, 3 if options.quick else 5) for n in sizes}
