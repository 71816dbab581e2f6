"""What must not change a fit: the units of r and x, and the fits beside it.

Residuals and parameters in units of powers of two are the same numbers with
other exponents, so that the counts have to be the same. With factors 1e-8 and
1e8 rounding may differ, and the end has to be the same point.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .. import batch
from . import nist, solvers

POWERS, FACTORS = (2.0**-27, 2.0**27), (1e-8, 1e8)
SAME_DIGITS = 6
LANES = 16
FITTERS = (solvers.ours("structured"), solvers.ours("lm"))


def in_units(residual):
    """`residual` times c, its parameters in given units."""

    def scaled(z, x, y, c, units):
        return c * residual(units * z, x, y)

    return scaled


def units_of_nist(options, fitters) -> dict:
    """Counts and ends of NIST's problems from the second start in other units."""
    rng = np.random.default_rng(0)
    counts = {f.name: {"r": [], "x": []} for f in fitters}
    ends = {f.name: {} for f in fitters}
    for problem in nist.problems(options):
        start = problem.starts[1]
        ones, units = np.ones(start.size), 2.0 ** rng.integers(-12, 13, start.size)
        residual = in_units(problem.residual)
        for fitter in fitters:
            solve = fitter.make(residual)

            def fit(c, units, solve=solve, start=start, problem=problem):
                return solve(start / units, (*problem.data, c, units))

            plain = fit(1.0, ones)
            row = counts[fitter.name]
            row["r"].append([plain.nfev, *(fit(c, ones).nfev for c in POWERS)])
            row["x"].append([plain.nfev, fit(1.0, units).nfev])
            ends[fitter.name][problem.name] = min(
                nist.digits(fit(c, ones).x, plain.x) for c in FACTORS
            )
    for name, row in counts.items():
        same = {key: sum(len(set(each)) == 1 for each in row[key]) for key in row}
        apart = {k: round(v, 1) for k, v in ends[name].items() if v < SAME_DIGITS}
        total = len(row["r"])
        print(
            f"{name}: same count in other units of r {same['r']}/{total}, of x {same['x']}/{total}"
        )
        print(
            f"  r times 1e-8 and 1e8: {total - len(apart)}/{total} end within {SAME_DIGITS} digits"
        )
        if apart:
            print(f"  the others, digits: {apart}", flush=True)
    return {"counts": counts, "ends": ends}


def batch_and_singles() -> dict:
    """Two-peak fits alone, under `vmap` and in a batch."""
    import jaxqn

    from .batches import residual

    x0, data = batch.draw(LANES)
    objective = jaxqn.sum_of_squares(residual)
    rows = {}
    for method in ("structured", "lm"):

        def fit(x, y, method=method):
            return jaxqn.least_squares(residual, x, (y,), method=method)

        def minimum(x, y, method=method):
            return jaxqn.minimize(objective, x, (y,), method=method)

        together = {
            "vmap of least_squares": (jax.jit(jax.vmap(fit))(x0, data), jax.jit(fit)),
            "minimize_batch": (
                jaxqn.minimize_batch(objective, x0, (data,), method=method),
                jax.jit(minimum),
            ),
        }
        for name, (many, alone) in together.items():
            each = [alone(x, y) for x, y in zip(x0, data, strict=True)]
            x = jnp.stack([one.x for one in each])
            same = sum(int(n) == int(one.nfev) for n, one in zip(many.nfev, each, strict=True))
            row = {"same count": same, "largest difference": float(jnp.max(abs(many.x - x)))}
            rows[f"{method}, {name}"] = row
            apart = row["largest difference"]
            print(f"{method}, {name}: {same} of {LANES} counts as alone, x within {apart:.1e}")
    return rows


def main(options) -> dict:
    """Units first, then batches."""
    fitters = solvers.available(FITTERS, options)
    if not fitters:
        return {}
    return {"units": units_of_nist(options, fitters), "batches": batch_and_singles()}
