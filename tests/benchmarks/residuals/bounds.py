"""NIST's problems with a bound that cuts the solution off.

From the second start, parameter i (i < 3) is held three certified standard
deviations away from its certified value, on the side of the start. A value is
best within 1e-6 of the lowest that any solver of the run reached.
"""

import numpy as np

from . import compare, nist, solvers

RTOL = 1e-6
FITTERS = (
    solvers.ours("structured"),
    solvers.ours("lm"),
    solvers.scipy("trf", 1e-12, x_scale="jac"),
    solvers.scipy("dogbox", 1e-12, x_scale="jac"),
)


def boxes(problem):
    """``(label, bounds)`` for each of the first three parameters."""
    start = problem.starts[1]
    for i in range(min(start.size, 3)):
        bounds = np.full(start.size, -np.inf), np.full(start.size, np.inf)
        above = start[i] >= problem.certified[i]
        edge = 3 * problem.sd[i] if above else -3 * problem.sd[i]
        bounds[0 if above else 1][i] = problem.certified[i] + edge
        yield f"{problem.name} {i}", bounds


def main(options) -> dict:
    """A row per solver, and its points outside of the box."""
    fitters = solvers.available(FITTERS, options)
    runs, outside = {f.name: {} for f in fitters}, dict.fromkeys((f.name for f in fitters), 0)
    for problem in nist.problems(options):
        watched = solvers.Watched(problem.residual)
        for fitter in fitters:
            solve = fitter.make(watched)
            for label, box in boxes(problem):
                start = np.clip(problem.starts[1], *box)
                run, recorder = watched.record(solve, start, problem.data, bounds=box)
                runs[fitter.name][label] = run
                outside[fitter.name] += recorder.outside
                # The last point counts too: a solver may move what it returns.
                outside[fitter.name] += bool(np.any((run.x < box[0]) | (run.x > box[1])))
    rows = compare.print_table(runs, RTOL)
    for name, count in outside.items():
        print(f"{name}: {count} points outside of the box")
        rows[name]["outside"] = count
    return rows
