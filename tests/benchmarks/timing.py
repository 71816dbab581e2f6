"""Fair timing: interleaved repeats, medians, ratios of medians.

A machine's speed drifts while a benchmark runs. Every contestant is therefore
timed once per round, rounds follow each other, and only ratios of medians of
the same rounds are compared.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import jax


def seconds(call: Callable) -> float:
    """Wall-clock seconds of one call, results on the device awaited."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def interleaved(calls: Mapping[str, Callable], rounds: int) -> dict[str, float]:
    """Median seconds of each call over `rounds` rounds of all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: statistics.median(taken) for name, taken in times.items()}


def compiled(fun: Callable, *args) -> Callable:
    """`fun` compiled for these arguments and run once, as a call without any.

    Neither tracing, compiling nor the first run's allocations are timed.
    """
    program = jax.jit(fun).lower(*args).compile()
    jax.block_until_ready(program(*args))
    return lambda: program(*args)


def loop_of(step: Callable, times: int) -> Callable:
    """A compiled loop of `times` steps ``x -> x``, each fed the one before."""

    def run(x, *args):
        return jax.lax.fori_loop(0, times, lambda _, x: step(x, *args), x)

    return run


def value_and_grad_loop(fun: Callable, times: int) -> Callable:
    """A loop of `times` evaluations of `fun` with its gradient, and no more.

    Each evaluation is at a point moved imperceptibly along the gradient, so
    that none can be hoisted out of the loop or dropped.
    """

    def step(x, *args):
        value, grad = jax.value_and_grad(fun)(x, *args)
        return jax.tree.map(lambda a, g: a - 1e-20 * (g + value), x, grad)

    return loop_of(step, times)
