"""Evaluations until the sum of squares is NIST's, whatever stops a solver.

Tolerances are so tight that no solver stops before. Sums, medians and mean
ratios are over the runs that all solvers of the table bring there.
"""

import collections

import numpy as np

from . import nist, solvers

WITHIN = (1e-4, 1e-8)
FLOOR = 1e-20
"""A certified sum below this (Lanczos1) is below rounding in float64."""
FITTERS = (
    solvers.ours("structured", gtol=0.0),
    solvers.ours("lm", gtol=0.0),
    solvers.scipy("lm", solvers.TIGHT, x_scale="jac"),
    solvers.scipy("trf", solvers.TIGHT, x_scale="jac"),
    solvers.optimistix(solvers.TIGHT),
)


def needed(recorder, goal: float) -> float:
    """Evaluations until the cost was at most `goal`; inf where it never was."""
    return next((k for k, cost in recorder.improvements if cost <= goal), np.inf)


def main(options) -> dict:
    """A table for each of the two distances."""
    fitters = solvers.available(FITTERS, options)
    found = {tol: collections.defaultdict(list) for tol in WITHIN}
    for problem in nist.problems(options):
        watched = solvers.Watched(problem.residual)
        goal = max(problem.cost, FLOOR)
        for fitter in fitters:
            solve = fitter.make(watched)
            for label, start in problem.runs():
                _, recorder = watched.record(solve, start, problem.data)
                for tol in WITHIN:
                    found[tol][fitter.name].append(needed(recorder, goal * (1 + tol)))
                if options.verbose:
                    print(f"  {label}, {fitter.name}: {found[WITHIN[-1]][fitter.name][-1]}")
    for tol, rows in found.items():
        print_table(tol, {name: np.array(row) for name, row in rows.items()})
    return {str(tol): rows for tol, rows in found.items()}


def print_table(tol: float, rows: dict[str, np.ndarray]) -> None:
    """One row a solver; the ratios are over the first."""
    if not rows:
        return
    common = np.all(np.isfinite(list(rows.values())), axis=0)
    first = next(iter(rows))
    print(f"\nwithin {tol:g}: {common.sum()} runs that all reach")
    print(f"{'solver':24}{'reached':>9}{'sum':>7}{'median':>8}{'max':>6}{'ratio':>7}")
    for name, row in rows.items():
        shared = row[common]
        ratio = np.exp(np.mean(np.log(shared / rows[first][common])))
        print(
            f"{name:24}{f'{np.isfinite(row).sum()}/{row.size}':>9}{shared.sum():7.0f}"
            f"{np.median(shared):8.0f}{shared.max():6.0f}{ratio:7.2f}",
            flush=True,
        )
