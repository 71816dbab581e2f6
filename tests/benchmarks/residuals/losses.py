"""NIST's problems with outliers under robust losses.

From the second start; every tenth response is moved by 10 to 30 certified
standard deviations of the residuals, which are the unit of the residuals too.
A value is best within 1e-7 of the lowest that any solver of the run reached.
"""

import numpy as np

from . import compare, nist, solvers

RTOL, SMALLEST = 1e-7, 1e-9
LOSSES = ("huber", "soft_l1", "cauchy")
FITTERS = (
    solvers.ours("structured"),
    solvers.ours("lm"),
    solvers.scipy("trf", 1e-14, x_scale="jac"),
)


def with_outliers(residual):
    """`residual` plus a given vector, in given units."""

    def moved(b, x, y, by, unit):
        return (residual(b, x, y) + by) / unit

    return moved


def outliers(problem):
    """``(by, unit)``: what is added to the residuals, and their unit."""
    rng = np.random.default_rng(1)
    unit = max(problem.deviation, SMALLEST)
    by = np.zeros(problem.data[1].size)
    chosen = by[3::10]
    chosen[:] = rng.uniform(10, 30, chosen.size) * unit * rng.choice([-1, 1], chosen.size)
    return by, unit


def main(options) -> dict:
    """A row per solver."""
    fitters = solvers.available(FITTERS, options)
    runs = {fitter.name: {} for fitter in fitters}
    for problem in nist.problems(options):
        residual = with_outliers(problem.residual)
        data = (*problem.data, *outliers(problem))
        for fitter in fitters:
            solve = fitter.make(residual)
            for loss in LOSSES:
                run = solve(problem.starts[1], data, loss=loss)
                runs[fitter.name][f"{problem.name} {loss}"] = run
    return compare.print_table(runs, RTOL)
