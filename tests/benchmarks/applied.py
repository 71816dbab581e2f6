"""Solving power on models of statistics, engineering and physics, scored as `cutest` is.

No method or search was chosen by them (see `models`), so they tell how far
the figures on CUTEst carry. The best value of a problem is the lowest of the run.
"""

import jax
import numpy as np

from . import peers, scores
from .cutest import PEER_GTOL, run_one
from .models import MODELS


def main(options) -> dict:
    """Runs the workload and prints its table."""
    solvers = peers.available(options.solvers)
    models = MODELS[::4] if options.quick else MODELS
    runs: dict[str, dict] = {s.name: {} for s in solvers}
    problems = []
    for number, model in enumerate(models if solvers else ()):
        fun, x0 = model(np.random.default_rng(number))
        problem = {"id": model.__name__, "f0": float(jax.jit(fun)(x0)), "f_best": np.inf}
        for solver in solvers:
            gtol = options.gtol if solver.ours else PEER_GTOL[options.dtype]
            trace = run_one(solver, fun, x0, gtol)
            runs[solver.name][problem["id"]] = trace
            lowest = trace["improvements"][-1][1] if trace["improvements"] else np.inf
            problem["f_best"] = min(problem["f_best"], lowest)
        problems.append(problem)
        jax.clear_caches()
        if options.verbose:
            costs = scores.cost_table(runs, [problem], 1e-5)[:, 0]
            told = [f"{name} {cost}" for name, cost in zip(runs, costs, strict=True)]
            print(f"  {problem['id']}: " + ", ".join(told), flush=True)
    if problems:
        scores.print_table(runs, problems, f"models, {options.dtype}")
        if options.unsolved:
            scores.print_unsolved(runs, problems)
    return {"dtype": options.dtype, "runs": runs}
