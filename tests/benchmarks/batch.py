"""Batches: independent fits of two Gaussian peaks and an offset, per second.

Seven parameters, 64 points, noise 0.02, f = sum of squares. Every solver runs
under ``vmap`` with a gradient tolerance of 1e-6; optimistix has no such test
and stops far looser. A fit counts as good within 1e-4 (relative) of the best f
any solver of the run reached on it. jaxqn's batches run twice, the second time
with the parameters' sizes at the start as their units (``x_scale``).
"""

import jax
import jax.numpy as jnp
import numpy as np

from . import peers, timing
from .solver import Options, Outcome, Solver

POINTS, NOISE, GTOL = 64, 0.02, 1e-6
START = (1.0, -0.4, 0.15, 1.0, 0.4, 0.15, 0.2)
# amplitude, centre, width, amplitude, centre, width, offset
LOW = (0.5, -0.6, 0.08, 0.5, 0.2, 0.08, 0.0)
HIGH = (2.0, -0.2, 0.2, 2.0, 0.6, 0.2, 0.5)
PATIENCE = 60.0
BATCH, BATCH_IN_UNITS = "batch", "batch, x_scale"


def peaks(p, t):
    """Two Gaussian peaks and an offset at times `t`."""
    first = p[0] * jnp.exp(-0.5 * ((t - p[1]) / p[2]) ** 2)
    second = p[3] * jnp.exp(-0.5 * ((t - p[4]) / p[5]) ** 2)
    return first + second + p[6]


def sum_of_squares(p, data):
    """The misfit of one lane; `data` has shape ``(64,)``."""
    t = jnp.linspace(-1.0, 1.0, POINTS, dtype=data.dtype)
    return jnp.sum((peaks(p, t) - data) ** 2)


def draw(count: int):
    """``(x0, data)`` of `count` fits."""
    keys = jax.random.split(jax.random.key(0))
    low, high = jnp.array(LOW), jnp.array(HIGH)
    truth = jax.random.uniform(keys[0], (count, 7), minval=low, maxval=high)
    t = jnp.linspace(-1.0, 1.0, POINTS)
    noise = NOISE * jax.random.normal(keys[1], (count, POINTS))
    data = jax.vmap(peaks, (0, None))(truth, t) + noise
    return jnp.tile(jnp.array(START), (count, 1)), data


def our_batch_solvers(solvers):
    """`jaxqn.minimize_batch` per method, where jaxqn has it, with and without units."""
    ours = [s for s in solvers if s.ours]
    if not ours:
        return []
    import jaxqn

    if not hasattr(jaxqn, "minimize_batch"):
        print("skipped: jaxqn.minimize_batch (not in it)")
        return []

    def make(method, sizes):
        def build(fun, options):
            settings = {"method": method, "gtol": options.gtol}

            def solve(x0, data):
                units = jnp.abs(jnp.array(START, x0.dtype)) if sizes else None
                r = jaxqn.minimize_batch(fun, x0, (data,), x_scale=units, **settings)
                return Outcome(r.x, r.fun, r.nit, r.nfev, r.success, r.status)

            return solve

        return build

    return [
        Solver(f"{s.name} {kind}", "jaxqn", True, make(s.name.removeprefix("jaxqn-"), sizes))
        for s in ours
        for kind, sizes in ((BATCH, False), (BATCH_IN_UNITS, True))
    ]


def build(solver, x0, data):
    """A call that runs all fits."""
    options = Options(gtol=GTOL, maxiter=1000, maxfun=3000)
    solve = solver.make(sum_of_squares, options)
    if not solver.name.endswith((BATCH, BATCH_IN_UNITS)):
        solve = jax.vmap(solve)

    def values(x0, data):
        r = solve(x0, data)
        # not every library returns the value at the point it returns
        return jax.vmap(sum_of_squares)(r.x, data), jnp.broadcast_to(r.nfev, r.fun.shape)

    return timing.compiled(values, x0, data)


def measure(count: int, solvers, rounds: int, previous: dict) -> dict:
    """Times one batch size and prints a row per solver."""
    x0, data = draw(count)
    calls, values, evaluations = {}, {}, {}
    for solver in solvers:
        # a batch costs at least its size times the cost per fit so far
        expected = count / previous.get(solver.name, {}).get("fits/s", np.inf)
        if expected > PATIENCE:
            print(f"  skipped: {solver.name} at B = {count} (about {expected:.0f} s)")
            continue
        calls[solver.name] = build(solver, x0, data)
        values[solver.name], evaluations[solver.name] = map(np.asarray, calls[solver.name]())
    times = timing.interleaved(calls, rounds)
    best = np.nanmin(np.stack(list(values.values())), axis=0)
    print(f"\nB = {count}, {data.dtype}, medians of {rounds}")
    print(f"{'solver':30}{'fits/s':>10}{'good %':>9}{'mean nfev':>11}{'max nfev':>10}")
    rows = {}
    for name, f in values.items():
        row = {
            "fits/s": count / times[name],
            "good": float(np.mean(f <= best * (1.0 + 1e-4))),
            "mean nfev": float(evaluations[name].mean()),
            "max nfev": int(evaluations[name].max()),
        }
        rows[name] = row
        print(
            f"{name:30}{row['fits/s']:10.0f}{100 * row['good']:9.2f}"
            f"{row['mean nfev']:11.1f}{row['max nfev']:10}",
            flush=True,
        )
    return rows


def main(options) -> dict:
    """Two batch sizes; those too slow at the first are skipped at the second."""
    solvers = [s for s in peers.available(options.solvers) if s.compiled]
    solvers = our_batch_solvers(solvers) + solvers
    sizes = (128,) if options.quick else (1024, 8192)
    results: dict = {}
    previous: dict = {}
    for count in sizes:
        previous = measure(count, solvers, 2 if options.quick else 3, previous)
        results[str(count)] = previous
    return results
