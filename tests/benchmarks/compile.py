"""Compile time: trace + compile of a whole solve over its objective's.

Each repeat starts from empty caches and a new function object. The floor is a
plain gradient-descent loop. Beside it: how often the objective occurs in the
program, by counting a marker primitive in the jaxpr.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad, batching

from . import networks, objectives, peers
from .solver import Options, Outcome, Solver

TRANSFORMER = "transformer, 55 leaves"

marker = Primitive("objective_site")
marker.def_impl(lambda value: value)
marker.def_abstract_eval(lambda value: value)
# differentiation leaves one marker, on the value
ad.primitive_jvps[marker] = lambda primals, tangents: (
    marker.bind(*primals),
    tangents[0],
)
batching.primitive_batchers[marker] = lambda args, dims: (marker.bind(*args), dims[0])


def count_sites(jaxpr) -> int:
    """Occurrences of the marker in a jaxpr and everything inside it."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive is marker
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: isinstance(v, (Jaxpr, ClosedJaxpr))
        ):
            if isinstance(value, ClosedJaxpr):
                count += count_sites(value.jaxpr)
            elif isinstance(value, Jaxpr):
                count += count_sites(value)
    return count


def marked(fun):
    """`fun` with the marker on its value."""
    return lambda x, *args: marker.bind(fun(x, *args))


def gradient_descent(fun, options: Options):
    """The least a solver can be: one loop around one value and gradient."""

    def solve(x0, *args):
        def body(carry):
            x, _, k = carry
            value, grad = jax.value_and_grad(fun)(x, *args)
            return jax.tree.map(lambda a, g: a - 1e-3 * g, x, grad), value, k + 1

        def proceed(carry):
            return carry[2] < options.maxiter

        start = (x0, jnp.zeros((), jax.tree.leaves(x0)[0].dtype), jnp.zeros((), jnp.int32))
        x, value, k = jax.lax.while_loop(proceed, body, start)
        return Outcome(x, value, k, k, False)

    return solve


def objective(name: str):
    """A fresh function object each time, so that nothing is cached."""
    if name == "MLP 1-20-20-20-1":
        fun, x0, args = objectives.mlp_regression()
    elif name == TRANSFORMER:
        keys = jax.random.split(jax.random.key(0))
        fun, x0 = networks.loss_of(networks.TRANSFORMER), networks.transformer_init(keys[0], 4)
        args = (jax.random.normal(keys[1], (64, 8, 8), networks.DTYPE), jnp.arange(64) % 10)
    else:
        fun, x0, args = objectives.rosenbrock, objectives.rosenbrock_start(10), ()
    return (lambda x, *args: fun(x, *args)), x0, args


def flattened(fun, x0):
    """The same problem on a flat vector, for solvers that take nothing else."""
    flat, unravel = ravel_pytree(x0)
    return (lambda x, *args: fun(unravel(x), *args)), flat


def program(solver, fun, x0, args):
    """The function to compile: a solver's whole run, or the objective alone."""
    if solver is None:
        return jax.value_and_grad(fun), (x0, *args)
    if solver.needs == "jax":
        fun, x0 = flattened(fun, x0)
    options = Options(gtol=1e-6, maxiter=100)
    return solver.make(fun, options), (x0, *args)


def compile_seconds(solver, name: str) -> tuple[float, float]:
    """Seconds from empty caches: in all, and those of tracing alone."""
    jax.clear_caches()
    solve, arguments = program(solver, *objective(name))
    started = time.perf_counter()
    traced = jax.jit(solve).trace(*arguments)
    tracing = time.perf_counter() - started
    traced.lower().compile()
    return time.perf_counter() - started, tracing


def sites(solver, name: str) -> int:
    """Objective sites in the solver's program."""
    fun, x0, args = objective(name)
    solve, arguments = program(solver, marked(fun), x0, args)
    return count_sites(jax.make_jaxpr(solve)(*arguments).jaxpr)


def main(options) -> dict:
    """Three objectives; a row per compiled solver."""
    floor = Solver("gradient descent", "jax-loop", True, gradient_descent)
    solvers = [s for s in peers.available(options.solvers) if s.compiled]
    rounds = 3 if options.quick else 5
    results = {}
    for name in ("MLP 1-20-20-20-1", "Rosenbrock-10", TRANSFORMER):
        contestants = [None, floor, *solvers]
        if name == TRANSFORMER:  # many parameters: limited memory, and what is comparable
            contestants = [s for s in contestants if s is None or s is floor or "lbfgs" in s.name]
        times = {id(s): [] for s in contestants}
        for _ in range(rounds):
            for solver in contestants:
                times[id(solver)].append(compile_seconds(solver, name))
        median = {
            key: [statistics.median(column) for column in zip(*taken, strict=True)]
            for key, taken in times.items()
        }
        alone = median[id(None)][0]
        print(
            f"\n{name}, {options.dtype}: value_and_grad alone {alone:.3f} s (medians of {rounds})"
        )
        print(f"{'solver':22}{'seconds':>9}{'tracing':>9}{'ratio':>8}{'sites':>7}")
        rows = {"value_and_grad": alone}
        for solver in contestants[1:]:
            (seconds, tracing), found = median[id(solver)], sites(solver, name)
            rows[solver.name] = {"ratio": seconds / alone, "sites": found}
            print(
                f"{solver.name:22}{seconds:9.3f}{tracing:9.3f}{seconds / alone:8.2f}{found:7}",
                flush=True,
            )
        results[name] = rows
    return results
