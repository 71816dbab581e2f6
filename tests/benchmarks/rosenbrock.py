"""2-D Rosenbrock from (-1.2, 1): evaluations, end and value of every method."""

import jax
import numpy as np

from . import objectives, peers, recording
from .solver import Options, says

BUDGET = 1000


def main(options) -> dict:
    """Prints one row per solver, each at its default tolerances."""
    x0 = objectives.rosenbrock_start(2)
    f0 = float(objectives.rosenbrock(x0))
    if not np.isclose(f0, 24.2):
        raise ValueError(f"this is not Rosenbrock's function: f(x0) = {f0}")
    solvers = peers.available(options.solvers)
    print(f"{options.dtype}; f(x0) = {f0:.4g}; 'to 1e-8' counts evaluations")
    header = f"{'solver':22}{'evaluations':>12}{'claimed':>9}{'to 1e-8':>9}"
    print(header + f"{'nit':>6}{'f':>11}  says")
    rows = {}
    for solver in solvers:
        recorder = recording.Recorder(BUDGET, 30.0)
        fun = recording.watched(objectives.rosenbrock, recorder)
        gtol = None if solver.name != "optax-lbfgs" else 1e-6  # its loop is ours
        # the recorder stops whoever cannot be told the budget
        limit = Options(gtol=gtol, maxiter=BUDGET, maxfun=BUDGET)
        solve = solver.make(fun, limit)
        solve = jax.jit(solve) if solver.compiled else solve
        outcome = recording.run_recorded(solve, recorder, x0)
        solved = next((k for k, f in recorder.improvements if f <= 1e-8), None)
        row = {"evaluations": recorder.evaluations, "to 1e-8": solved}
        row["f"] = recorder.improvements[-1][1]
        if outcome is None:
            row |= {"claimed": None, "nit": None, "says": f"stopped: {recorder.spent}"}
        else:
            row |= {"claimed": int(outcome.nfev), "nit": int(outcome.nit)}
            row["f"] = float(outcome.fun)
            row["says"] = says(solver, outcome)
        rows[solver.name] = row
        cells = [row["evaluations"], row["claimed"], row["to 1e-8"], row["nit"]]
        widths = (12, 9, 9, 6)
        text = "".join(
            f"{'-' if c is None else c:>{w}}" for c, w in zip(cells, widths, strict=True)
        )
        print(f"{solver.name:22}{text}{row['f']:11.2e}  {row['says']}", flush=True)
    return rows
