"""Many small fits at once: two peaks, and Gpufit's own benchmark.

`two_peaks` takes the fits of the workload ``batch``; a fit is wrong where its
sum of squares exceeds the lowest of this table by more than 1e-4 of it.
`gpufit` is a symmetric Gaussian (amplitude, centre, width, offset) on 5 x 5
points in float32 with at most ten iterations, refused ones counted; there the
lowest sum of squares is that of fits without this limit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .. import batch, timing
from . import solvers

COUNT, WRONG = 8192, 1e-4
GTOL, LOOSE_OFFSET = batch.GTOL, 1e-4
SIDE, ITERATIONS = 5, 10
TRUTH = (500.0, 2.0, 2.0, 1.0, 10.0)
SPREAD = (50.0, 0.5, 0.5, 0.1, 1.0)
NOISE = 10.0


def residual(p, data):
    """The misfit of two peaks at each point; `data` has shape ``(64,)``."""
    t = jnp.linspace(-1.0, 1.0, batch.POINTS, dtype=data.dtype)
    return batch.peaks(p, t) - data


def gaussian(p, data):
    """The misfit of a symmetric Gaussian at each pixel, ``(25,)``."""
    i = jnp.arange(SIDE, dtype=p.dtype)
    along = (i - p[1]) ** 2
    across = (i - p[2]) ** 2
    bell = jnp.exp(-0.5 * (along[:, None] + across[None]) / p[3] ** 2)
    return (p[0] * bell + p[4]).ravel() - data


def by_jaxqn(residual, method, **settings):
    """`jaxqn.minimize_batch` of a sum of squares, by a least-squares method."""
    import jaxqn

    objective = jaxqn.sum_of_squares(residual)

    def solve(x0, data):
        r = jaxqn.minimize_batch(objective, x0, (data,), method=method, **settings)
        return r.x, r.nfev

    return solve


def by_minimize(fun, **settings):
    """`jaxqn.minimize_batch` of the scalar."""
    import jaxqn

    def solve(x0, data):
        r = jaxqn.minimize_batch(fun, x0, (data,), **settings)
        return r.x, r.nfev

    return solve


def by_optimistix(residual, tolerance, steps):
    """Its Levenberg-Marquardt under `vmap`."""
    import optimistix as optx

    solver = optx.LevenbergMarquardt(tolerance, tolerance)

    def one(x0, data):
        r = optx.least_squares(residual, solver, x0, data, max_steps=steps, throw=False)
        return r.value, r.stats["num_steps"]

    return jax.vmap(one)


def measure(contestants: dict, residual, x0, data, rounds: int, reference=None) -> dict:
    """Times all in one run and prints a row each.

    Args:
      contestants: ``(x0, data) -> (x, evaluations)`` of all fits, by name.
      residual: of one fit.
      x0: first points, a row per fit.
      data: of the fits, a row each.
      rounds: timed repeats.
      reference: one more of those, not timed, that helps to find the lowest sums.
    """

    def sums(x, data):
        return jnp.sum(jax.vmap(residual)(x, data) ** 2, axis=-1)

    calls = {name: timing.compiled(solve, x0, data) for name, solve in contestants.items()}
    found = {name: call() for name, call in calls.items()}
    values = {name: np.asarray(sums(x, data)) for name, (x, _) in found.items()}
    lowest = list(values.values())
    if reference:
        lowest.append(np.asarray(sums(jax.jit(reference)(x0, data)[0], data)))
    best = np.nanmin(np.stack(lowest), axis=0)
    times = timing.interleaved(calls, rounds)
    first = next(iter(times))
    print(f"\n{len(x0)} fits, {data.dtype}, medians of {rounds}")
    print(f"{'solver':34}{'mean':>7}{'99 %':>6}{'max':>6}{'wrong':>8}{'fits/s':>12}{'ratio':>7}")
    rows = {}
    for name, (_, nfev) in found.items():
        nfev = np.asarray(nfev)
        rows[name] = row = {
            "mean": float(nfev.mean()),
            "99 %": float(np.quantile(nfev, 0.99)),
            "max": int(nfev.max()),
            "wrong": int(np.sum(~(values[name] <= best * (1 + WRONG)))),
            "fits/s": len(x0) / times[name],
            "ratio": times[first] / times[name],
        }
        print(
            f"{name:34}{row['mean']:7.2f}{row['99 %']:6.0f}{row['max']:6}{row['wrong']:8}"
            f"{row['fits/s']:12.0f}{row['ratio']:7.2f}",
            flush=True,
        )
    return rows


def wanted(options) -> tuple[bool, bool]:
    """Whether ours and optimistix's are to run."""
    kinds = [solvers.ours("lm"), solvers.optimistix(GTOL)]
    there = [fitter.name for fitter in solvers.available(kinds, options)]
    return tuple(kind.name in there for kind in kinds)


def two_peaks_in(options, tolerance: float) -> dict:
    """The table in JAX's present precision; ratios are over the scalar's."""
    x0, data = batch.draw(128 if options.quick else COUNT)
    contestants = {"jaxqn scalar": by_minimize(batch.sum_of_squares, gtol=GTOL)}
    mine, peer = wanted(options)
    if mine:
        for method in ("structured", "lm"):
            contestants[f"jaxqn {method}"] = by_jaxqn(residual, method)
            contestants[f"jaxqn {method}, gtol {LOOSE_OFFSET:g}"] = by_jaxqn(
                residual, method, gtol=LOOSE_OFFSET
            )
    if peer:
        contestants["optimistix LM"] = by_optimistix(residual, tolerance, solvers.BUDGET)
    return measure(contestants, residual, x0, data, 2 if options.quick else 5)


def two_peaks(options) -> dict:
    """Both precisions."""
    results = {"float64": two_peaks_in(options, GTOL)} if options.dtype == "float64" else {}
    with solvers.float32():
        results["float32"] = two_peaks_in(options, 1e-4)
    return results


def draw_gaussians(count: int):
    """``(x0, data)``: first points off the truth by half of the truth's own spread."""
    keys = jax.random.split(jax.random.key(1), 3)
    spread = jnp.array(SPREAD)
    away = jax.random.uniform(keys[0], (2, count, 5), minval=-1.0)
    truth = jnp.array(TRUTH) + spread * away[0]
    x0 = truth + 0.5 * spread * away[1]
    noise = NOISE * jax.random.normal(keys[1], (count, SIDE**2))
    clean = jax.vmap(gaussian)(truth, jnp.zeros((count, SIDE**2)))
    return x0, clean + noise


def gpufit(options) -> dict:
    """Fits per second in float32."""
    with solvers.float32():
        x0, data = draw_gaussians(1000 if options.quick else options.fits)
        mine, peer = wanted(options)
        contestants, reference = {}, None
        if mine:
            for method in ("lm", "structured"):
                contestants[f"jaxqn {method}"] = by_jaxqn(gaussian, method, maxfun=ITERATIONS + 1)
            reference = by_jaxqn(gaussian, "structured")
        if peer:
            contestants["optimistix LM"] = by_optimistix(gaussian, 1e-4, ITERATIONS + 1)
            reference = reference or by_optimistix(gaussian, 1e-6, solvers.BUDGET)
        return measure(contestants, gaussian, x0, data, 5, reference) if contestants else {}
