"""Solving power on CUTEst problems (sif2jax), scored from traces.

A problem is solved at tau once f <= f_best + tau (f0 - f_best), after as many
evaluations as the trace shows, whatever the solver says of itself (Moré and
Wild, SIAM J. Optim. 20 (2009)). jaxqn runs with its default tolerances and
must end by itself; peers run with tight ones, so that none stops too early.

Problems are unconstrained; those where solvers settle at different stationary
points have a table of their own. With ``--saddles`` the Hessian where a run of
jaxqn ends says whether that is a saddle. ``--out FILE`` keeps the traces, and
``--merge FILE`` puts kept ones into the tables without running them again.
"""

import importlib
import importlib.util
import json
import pathlib
import sys
import time
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from . import peers, recording, scores
from .solver import Options, says

BUDGET, SECONDS = 2000, 12.0
PEER_GTOL = {"float64": 1e-10, "float32": 1e-6}
QUICK = [
    "AKIVA",
    "BOX3",
    "BROWNDEN",
    "DENSCHND",
    "DIXMAANC",
    "ENGVAL2",
    "GAUSSIAN",
    "HATFLDD",
    "HEART6LS",
    "MGH09LS",
    "PALMER1C",
    "ROSENBR",
    "BIGGS6",
    "VIBRBEAM",
]


QUICK_BOUNDED = ["BIGGS3", "BQPGASIM", "HATFLDC", "HS38", "HS3MOD", "PALMER4", "TORSION1"]


def add_arguments(parser):
    group = parser.add_argument_group("cutest")
    group.add_argument("--problems", help="comma-separated problem ids")
    group.add_argument("--max-n", type=int, default=250, help="largest n (250)")
    group.add_argument("--gtol", type=float, help="gtol of jaxqn (its default)")
    group.add_argument(
        "--merge", action="append", default=[], metavar="FILE", help="add kept traces"
    )
    group.add_argument("--unsolved", action="store_true", help="list what was not solved")
    group.add_argument("--saddles", action="store_true", help="count ends at saddles")


def read_problems() -> list[dict]:
    """The problem descriptions beside this file."""
    path = pathlib.Path(__file__).with_name("cutest_open.json")
    return json.loads(path.read_text())["problems"]


def import_alone(module: str):
    """Imports a module without running its packages' __init__ files.

    Those of sif2jax import every problem there is, which takes half a minute.
    """
    root, *below = module.split(".")[:-1]
    if root not in sys.modules:
        spec = importlib.util.find_spec(root)
        path = pathlib.Path(spec.submodule_search_locations[0])
        sys.modules[root] = types.ModuleType(root)
        sys.modules[root].__path__ = [str(path)]
    name, path = root, pathlib.Path(sys.modules[root].__path__[0])
    for part in below:
        name, path = f"{name}.{part}", path / part
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(path)]
    return importlib.import_module(module)


def load(entry: dict):
    """Loads one problem.

    Returns:
      ``(fun, x0, bounds)`` on flat vectors; `fun` closes over the problem's
      data. `bounds` is None where there are none.
    """
    cls = getattr(import_alone(entry["module"]), entry["cls"])
    read_only = {
        name: value
        for name, value in entry["set"].items()
        if isinstance(getattr(cls, name, None), property)
    }
    if read_only:
        cls = type(cls.__name__, (cls,), read_only)
    problem = cls()
    for name, value in entry["set"].items():
        if name not in read_only:
            object.__setattr__(problem, name, value)
    x0, unravel = ravel_pytree(problem.y0)
    x0 = x0.astype(jnp.result_type(float))
    args = problem.args

    def fun(x):
        return jnp.asarray(problem.objective(unravel(x), args), x.dtype)

    if entry["kind"] != "bounded":
        return fun, x0, None
    bounds = tuple(ravel_pytree(side)[0].astype(x0.dtype) for side in problem.bounds)
    return fun, jnp.clip(x0, *bounds), bounds


def check_start(entry: dict, fun, x0) -> str:
    """An empty string, or how f(x0) differs from the published value."""
    f0 = float(jax.jit(fun)(x0))
    rtol = 1e-9 if x0.dtype == np.float64 else 1e-3
    if x0.size != entry["n"]:
        return f"{entry['id']}: n = {x0.size}, expected {entry['n']}"
    if not np.isclose(f0, entry["f0"], rtol=rtol, atol=rtol):
        return f"{entry['id']}: f(x0) = {f0!r}, expected {entry['f0']!r}"
    return ""


def lowest_curvature(fun, x) -> float:
    """The smallest eigenvalue of the exact Hessian over the largest magnitude of one."""
    values = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(fun))(jnp.asarray(x))))
    return float(values[0] / np.max(np.abs(values)))


def run_one(solver, fun, x0, gtol, bounds=None, *, saddles: bool = False) -> dict:
    """Runs one solver on one problem and returns its trace."""
    box = None if bounds is None else tuple(map(np.asarray, bounds))
    recorder = recording.Recorder(BUDGET, SECONDS, bounds=box)
    # jaxqn is told the budget and ends by itself; the recorder stops the rest.
    limit = BUDGET if solver.ours else None
    options = Options(gtol=gtol, maxfun=limit, bounds=bounds)
    solve = solver.make(recording.watched(fun, recorder), options)
    started = time.perf_counter()
    outcome = recording.run_recorded(jax.jit(solve) if solver.compiled else solve, recorder, x0)
    if outcome is None:
        ended = recorder.spent or "error"
    else:
        ended = says(solver, outcome) if solver.ours else "itself"
    looks = saddles and outcome is not None
    return {
        "evaluations": recorder.evaluations,
        "improvements": recorder.improvements,
        "outside": recorder.outside,
        "ended": ended,
        "nfev": None if outcome is None else int(outcome.nfev),
        "nit": None if outcome is None else int(outcome.nit),
        "seconds": round(time.perf_counter() - started, 3),
        "lowest": lowest_curvature(fun, outcome.x) if looks else None,
    }


def choose(options, kind: str = "unconstrained") -> list[dict]:
    """The problems asked for."""
    problems = [p for p in read_problems() if p["kind"] == kind]
    if options.problems:
        wanted = options.problems.split(",")
        for name in set(wanted) - {p["id"] for p in problems}:
            print(f"skipped: {name} (not among the {kind} problems)")
        return [p for p in problems if p["id"] in wanted]
    if options.quick:
        return [p for p in problems if p["id"] in QUICK + QUICK_BOUNDED]
    return [p for p in problems if p["n"] <= options.max_n]


def merge(files, dtype: str, runs: dict) -> None:
    """Adds the traces of earlier runs to `runs`, saying so."""
    for file in files:
        kept = json.loads(pathlib.Path(file).read_text())["cutest"]
        if kept["dtype"] != dtype:
            print(f"not merged: {file} is {kept['dtype']}")
            continue
        for name, traces in kept["runs"].items():
            fresh = runs.setdefault(name, {})
            added = {k: v for k, v in traces.items() if k not in fresh}
            fresh.update(added)
            if added:
                print(f"merged: {name}, {len(added)} traces of an EARLIER run, {file}")


def main(options) -> dict:
    """Runs the workload and prints its tables."""
    if "sif2jax" not in sys.modules and importlib.util.find_spec("sif2jax") is None:
        print("skipped: cutest (sif2jax is not available)")
        return {}
    # float32 runs: some problems ask for float64 constants
    warnings.filterwarnings("ignore", message="Explicitly requested dtype")
    return run_all(options, "unconstrained", peers.available(options.solvers))


def run_all(options, kind: str, solvers: list) -> dict:
    """Runs solvers on the problems of one kind and prints the tables."""
    problems = choose(options, kind)
    runs: dict[str, dict] = {s.name: {} for s in solvers}
    for entry in problems if solvers else ():
        fun, x0, bounds = load(entry)
        wrong = check_start(entry, fun, x0)
        if wrong:
            raise ValueError(wrong)
        counts = []
        for solver in solvers:
            gtol = options.gtol if solver.ours else PEER_GTOL[options.dtype]
            trace = run_one(
                solver, fun, x0, gtol, bounds, saddles=options.saddles and entry["several_minima"]
            )
            runs[solver.name][entry["id"]] = trace
            k = scores.evaluations_to_solve(trace, entry, 1e-5)
            counts.append(f"{solver.name} {'-' if np.isinf(k) else int(k)}")
        jax.clear_caches()
        if options.out:  # a stop loses nothing: what is kept can be merged
            kept = {"dtype": options.dtype, "budget": BUDGET, "runs": runs}
            pathlib.Path(options.out).write_text(json.dumps({"cutest": kept}))
        if options.verbose:
            print(f"  {entry['id']}: " + ", ".join(counts), flush=True)
    merge(options.merge, options.dtype, runs)
    runs = {name: traces for name, traces in runs.items() if traces}
    for several, title in ((False, "one minimum"), (True, "several minima")):
        chosen = [p for p in problems if p["several_minima"] == several]
        if chosen and runs:
            scores.print_table(runs, chosen, f"CUTEst, {kind}, {title}, {options.dtype}")
            if options.unsolved:
                scores.print_unsolved(runs, chosen)
            if options.saddles:
                scores.print_saddles(runs, chosen)
    return {"dtype": options.dtype, "budget": BUDGET, "runs": runs}
