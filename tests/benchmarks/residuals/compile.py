"""Trace + compile of a fit over that of its residuals and Jacobian alone.

Each repeat starts from empty caches and a new function object.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from .. import batch, objectives
from . import batches, solvers


def two_peaks():
    """Seven parameters, 64 points."""
    x0, data = batch.draw(1)
    return (lambda x, y: batches.residual(x, y)), x0[0], (data[0],)


def rosenbrock():
    """Chained Rosenbrock in 10 variables as 18 residuals."""

    def residual(x):
        return jnp.concatenate([10.0 * (x[1:] - x[:-1] ** 2), 1.0 - x[:-1]])

    return residual, objectives.rosenbrock_start(10), ()


PROBLEMS = {"two peaks": two_peaks, "Rosenbrock-10": rosenbrock}


def alone(residual):
    """Residuals and Jacobian: the denominator."""
    return solvers.with_jacobian(residual)


def by_jaxqn(method):
    def build(residual):
        import jaxqn

        return lambda x0, *args: jaxqn.least_squares(residual, x0, args, method=method)

    return build


def by_optimistix(residual):
    import optimistix as optx

    solver = optx.LevenbergMarquardt(1e-8, 1e-8)
    return lambda x0, *args: (
        optx.least_squares(lambda x, args: residual(x, *args), solver, x0, args, throw=False).value
    )


def seconds(build, problem) -> float:
    """From empty caches to an executable."""
    jax.clear_caches()
    residual, x0, args = problem()
    run = build(residual)
    started = time.perf_counter()
    jax.jit(run).lower(x0, *args).compile()
    return time.perf_counter() - started


def main(options) -> dict:
    """A table per problem."""
    builds = {"r and J alone": alone}
    mine, peer = batches.wanted(options)
    if mine:
        builds |= {f"jaxqn {method}": by_jaxqn(method) for method in ("structured", "lm")}
    if peer:
        builds["optimistix LM"] = by_optimistix
    rounds = 3 if options.quick else 5
    results = {}
    for title, problem in PROBLEMS.items():
        taken = {name: [] for name in builds}
        for _ in range(rounds):
            for name, build in builds.items():
                taken[name].append(seconds(build, problem))
        median = {name: statistics.median(times) for name, times in taken.items()}
        print(f"\n{title} (medians of {rounds})")
        print(f"{'':24}{'seconds':>9}{'over r, J':>11}{'over optimistix':>17}")
        for name, time_ in median.items():
            over = f"{time_ / median['optimistix LM']:.2f}" if peer else ""
            floor = median["r and J alone"]
            print(f"{name:24}{time_:9.3f}{time_ / floor:11.2f}{over:>17}", flush=True)
        results[title] = median
    return results
