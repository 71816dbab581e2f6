"""Residual problems of CUTEst as ported in sif2jax, scored from traces.

Those whose scalar form is among the open problems of ``cutest_open.json`` and
a few more of that half, at most 64 unknowns; bounds are left out. A problem is
solved once f <= f_best + 1e-7 (f0 - f_best), f_best that of this table. jaxqn
ends by its default rules, SciPy runs with tight ones.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import cutest
from . import solvers

TAU = 1e-7
WITHIN = (5, 10, 20, 30, 100, 300, 1000)
PACKAGE = "sif2jax.cutest._nonlinear_equations"
NAMES = """
biggs6ne box3ne boxbod brownbsne browndene daniwood denschnbne denschndne denschnfne devgla1ne
engval2ne enso exp2ne fbrain fbrain2ne fbrain3 fbrainne gauss1 gauss2 gauss3 growth hatfldcne
hatflddne hatfldene hatfldflne heart6 hs1ne inteqne kirby2 koebhelbne lanczos1 lanczos2 mgh09
mgh10s mgh17 misra1a nelson palmer1ne palmer2ane palmer2bne palmer2ene palmer2ne palmer3ane
palmer3bne palmer4ne palmer5bne palmer6ane palmer6ene palmer7ene palmer8ane pfit2 powellbs rat43
trigon1ne vardimne vesuviou vibrbeamne
"""
LARGE_RESIDUAL = "browndene"
FITTERS = (
    solvers.ours("structured"),
    solvers.ours("lm"),
    solvers.scipy("lm", solvers.TIGHT, x_scale="jac"),
    solvers.scipy("trf", solvers.TIGHT, x_scale="jac"),
)


def load(name: str):
    """``(residual, x0)`` of one problem, on flat vectors."""
    problem = getattr(cutest.import_alone(f"{PACKAGE}.{name}"), name.upper())()
    x0, unravel = ravel_pytree(problem.y0)
    x0 = x0.astype(jnp.result_type(float))

    def residual(x):
        equations, _ = problem.constraint(unravel(x))
        return ravel_pytree(equations)[0].astype(x.dtype)

    return residual, np.asarray(x0)


def main(options) -> dict:
    """Percent solved within k evaluations."""
    if importlib.util.find_spec("sif2jax") is None:
        print("skipped: cutest (sif2jax is not available)")
        return {}
    fitters = solvers.available(FITTERS, options)
    names = NAMES.split()[:: 5 if options.quick else 1]
    if options.problems:
        wanted = options.problems.lower().split(",")
        names = [name for name in NAMES.split() if name in wanted]
    traces = {fitter.name: {} for fitter in fitters}
    for name in names:
        residual, x0 = load(name)
        watched = solvers.Watched(residual)
        for fitter in fitters:
            run, recorder = watched.record(fitter.make(watched), x0)
            traces[fitter.name][name] = {
                "improvements": recorder.improvements,
                "evaluations": run.nfev,
                "ended": run.status,
            }
            if options.verbose:
                value = recorder.improvements[-1][1]
                print(f"  {name}, {fitter.name}: {run.nfev}, {value:.8g}, {run.status}", flush=True)
        jax.clear_caches()
    print_table(traces, names)
    return traces


def print_table(traces: dict, names) -> None:
    """One row a solver."""
    needed = {solver: [] for solver in traces}
    for name in names:
        values = [mine[name]["improvements"] for mine in traces.values()]
        best = min(improvements[-1][1] for improvements in values)
        goal = best + TAU * (values[0][0][1] - best)
        for solver, mine in traces.items():
            reached = (k for k, f in mine[name]["improvements"] if f <= goal)
            needed[solver].append(next(reached, np.inf))
    print(f"{len(names)} problems, percent solved at {TAU:g} within k evaluations")
    columns = "".join(f"{k:>7}" for k in WITHIN)
    print(f"{'solver':24}{columns}{'median':>8}  {LARGE_RESIDUAL} to its own end")
    for solver, counts in needed.items():
        cells = "".join(f"{100 * np.mean(np.array(counts) <= k):7.1f}" for k in WITHIN)
        own = traces[solver].get(LARGE_RESIDUAL, {}).get("evaluations", "")
        print(f"{solver:24}{cells}{np.median(counts):8.0f}  {own}", flush=True)
