"""Dense methods at size: time per iteration over one read of the matrix.

A dense method must read its n-by-n matrix once per iteration; the time of
``H @ v`` inside a compiled loop is that floor. Runs have a fixed number of
iterations and no tolerance; the whole run's time, trials and start included,
is divided by the iterations it reports.
"""

import functools

import jax
import jax.numpy as jnp

from . import objectives, peers, timing
from .solver import Options

# They multiply n-by-n matrices: a few iterations once, and not at large n.
CUBIC = ("scipy-bfgs", "jax.scipy-bfgs", "jaxopt-bfgs")
CUBIC_MAX_N = 1000
# optimistix can only be told a number of trials; it needs several to a step.
TRIALS = 4


def objective(name: str, n: int):
    """``(fun, x0, args)`` of one of the two objectives; both cost O(n)."""
    if name == "rosenbrock":
        return objectives.rosenbrock, objectives.rosenbrock_start(n), ()
    d = jnp.logspace(0.0, 4.0, n)
    return objectives.scaled_quartic, jnp.zeros((n,), d.dtype), (d,)


def time_read(n: int):
    """A call that multiplies by an n-by-n matrix, and how often it does."""
    times = 100 if n <= 1000 else 20
    H = jax.random.normal(jax.random.key(0), (n, n)) / jnp.sqrt(n)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    run = timing.loop_of(lambda v, H: product(H, v), times)
    return timing.compiled(run, jnp.ones((n,)), H), times


def build(solver, fun, x0, args, iterations: int):
    """A call that runs a solver for a fixed number of iterations."""
    if solver.needs == "optimistix":
        iterations *= TRIALS
    solve = solver.make(fun, Options(gtol=0.0, maxiter=iterations))
    if solver.compiled:
        return timing.compiled(solve, x0, *args)
    solve(x0, *args)
    return lambda: solve(x0, *args)


def measure(name: str, n: int, solvers, rounds: int) -> dict:
    """Times one objective at one size and prints a row per solver."""
    fun, x0, args = objective(name, n)
    read, reads = time_read(n)
    evaluations = 200
    alone = timing.value_and_grad_loop(fun, evaluations)
    calls = {"read": read, "value_and_grad": timing.compiled(alone, x0, *args)}
    cubic = {}
    for solver in solvers:
        if solver.name not in CUBIC:
            iterations = 200 if n <= 1000 else 60
            calls[solver.name] = build(solver, fun, x0, args, iterations)
        elif n <= CUBIC_MAX_N:
            cubic[solver.name] = build(solver, fun, x0, args, 8)
        else:
            print(f"  skipped: {solver.name} at n = {n} (O(n^3))")
    times = timing.interleaved(calls, rounds) | timing.interleaved(cubic, 1)
    one_read = times["read"] / reads
    value_and_grad = times["value_and_grad"] / evaluations
    print(
        f"\n{name}, n = {n}: one read {1e6 * one_read:.0f} us,"
        f" value_and_grad alone {1e6 * value_and_grad:.0f} us"
    )
    print(f"{'solver':22}{'nit':>6}{'nfev':>6}{'us/nit':>10}{'reads/nit':>11}")
    rows = {"one_read": one_read, "value_and_grad": value_and_grad}
    for solver in solvers:
        if solver.name not in times:
            continue
        outcome = (calls | cubic)[solver.name]()
        nit, nfev = int(outcome.nit), int(outcome.nfev)
        each = times[solver.name] / max(nit, 1)
        rows[solver.name] = {"nit": nit, "nfev": nfev, "reads": each / one_read}
        print(
            f"{solver.name:22}{nit:6}{nfev:6}{1e6 * each:10.0f}{each / one_read:11.2f}",
            flush=True,
        )
    return rows


def main(options) -> dict:
    """Both objectives at each size."""
    solvers = [s for s in peers.available(options.solvers) if "lbfgs" not in s.name]
    sizes = (300,) if options.quick else (1000, 3000)
    rounds = 3 if options.quick else 5
    return {
        f"{name}, n = {n}": measure(name, n, solvers, rounds)
        for n in sizes
        for name in ("rosenbrock", "quartic")
    }
