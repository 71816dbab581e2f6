"""Honest ends: how often CONVERGED is not true, and how often a minimum is not called one.

Classical functions and small fits from starts near and far, every method, float32 and float64. A
run is judged in float64, by going on from its end with other methods: it is *false* if it claims
success where that lowers f by more than 1e-5 of the value at the standard start and more than
100 roundings of f; it is *unsung* if it claims none where nothing beyond those is to be had. Beside
it SciPy and optax with their own tests of convergence, from the same starts.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from . import classical, peers
from .solver import Options

SCALES = (1.0, 10.0, 100.0, 1e3, 1e4)
PEERS = ("scipy-bfgs", "scipy-lbfgsb", "optax-lbfgs")


def add_arguments(parser) -> None:
    """The options of this workload."""
    parser.add_argument("--methods", help="honest: comma-separated names of methods")
    parser.add_argument("--worst", type=int, default=0, help="honest: print so many false ends")


def gone_on(x, numbers):
    """The lowest float64 value found from each point: Newton's method, then two others."""
    import jaxqn

    for method in ("newton", "bfgs", "lbfgs", "newton"):
        options = {"method": method, "gtol": 0.0, "maxiter": 500}
        r = jaxqn.minimize_batch(classical.numbered, x, (numbers,), lanes=64, **options)
        better = np.asarray(r.fun) <= np.asarray(values_at(x, numbers))
        x = np.where(better[:, None], np.asarray(r.x), x)
    return np.asarray(values_at(x, numbers))


@jax.jit
def values_at(x, numbers):
    """The float64 values."""
    return jax.vmap(classical.numbered)(x.astype(jnp.float64), numbers)


def judged(x, claims, numbers, eps):
    """``(false, unsung, excess)`` per run."""
    end = np.asarray(values_at(x, numbers))
    standard = np.array([f.fun(jnp.asarray(f.x0)) for f in classical.FUNCTIONS])[numbers]
    with np.errstate(invalid="ignore"):
        excess = end - gone_on(np.asarray(x, np.float64), numbers)
        more = excess > 1e-5 * np.abs(standard) + 100 * eps * np.abs(end)
    more |= ~np.isfinite(excess)
    return claims & more, ~claims & ~more, excess


def report(label, false, unsung, sizes, status, nfev):
    """One row of the table."""
    by_scale = " ".join(f"{int(np.sum(false[sizes == s])):4d}" for s in SCALES)
    at_minimum = int(np.sum(unsung))
    print(
        f"{label:22}{len(false):6d}{int(np.sum(false)):7d}  [{by_scale}]{at_minimum:8d}"
        f" {np.mean(nfev):8.1f}   {status}",
        flush=True,
    )


def main(options) -> dict:
    """A row per method and dtype."""
    import jaxqn

    jax.config.update("jax_enable_x64", True)
    methods = options.methods.split(",") if options.methods else list(jaxqn.METHODS)
    per_scale = 2 if options.quick else 4
    x0, numbers, sizes = classical.starts(SCALES, per_scale)
    print(f"{len(classical.FUNCTIONS)} functions, starts at {SCALES} times the standard one")
    print(f"{'method':22}{'runs':>6}{'false':>7}   by scale {'':14}{'unsung':>8} {'nfev':>8}")
    results = {}
    for dtype in (jnp.float32, jnp.float64):
        eps = float(jnp.finfo(dtype).eps)
        for method in methods:
            start, fun = jnp.asarray(x0, dtype), classical.numbered
            r = jaxqn.minimize_batch(fun, start, (numbers,), method=method, lanes=64)
            claims = np.asarray(r.success)
            false, unsung, excess = judged(np.asarray(r.x), claims, numbers, eps)
            ends = collections.Counter(jaxqn.Status(int(s)).name for s in r.status)
            label = f"{method} {jnp.dtype(dtype).name}"
            report(label, false, unsung, sizes, dict(ends.most_common(4)), np.asarray(r.nfev))
            for kind, rows in (("false", false), ("unsung", unsung)):
                for i in np.flatnonzero(rows)[: options.worst]:
                    print(
                        f"    {kind} {i} {classical.FUNCTIONS[numbers[i]].name} x{sizes[i]:g}: "
                        f"{jaxqn.Status(int(r.status[i])).name}, nfev {int(r.nfev[i])}, f "
                        f"{float(r.fun[i]):.6g}, excess {excess[i]:.3g}"
                    )
            results[label] = {"false": int(false.sum()), "unsung": int(unsung.sum())}
    if not options.methods:
        results |= peers_rows(x0, numbers, sizes)
    return results


def peers_rows(x0, numbers, sizes) -> dict:
    """The same for solvers with a test of convergence of their own."""
    results = {}
    for solver in peers.available(list(PEERS)):
        for dtype in (jnp.float32, jnp.float64):
            solve = solver.make(classical.numbered, Options(maxiter=2000))
            solve = jax.jit(solve) if solver.compiled else solve
            outs = [solve(jnp.asarray(x, dtype), n) for x, n in zip(x0, numbers, strict=True)]
            x = np.stack([np.asarray(out.x, np.float64) for out in outs])
            claims = np.array([bool(out.success) for out in outs])
            eps = float(jnp.finfo(dtype).eps)
            false, unsung, _ = judged(x, claims, numbers, eps)
            label = f"{solver.name} {jnp.dtype(dtype).name}"
            report(label, false, unsung, sizes, "", np.array([int(out.nfev) for out in outs]))
            results[label] = {"false": int(false.sum()), "unsung": int(unsung.sum())}
    return results
