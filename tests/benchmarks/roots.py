"""Square systems of equations, and a deep-equilibrium layer of dimension 1e4.

A system is solved where max|F_i| <= 1e-8 at the point that a solver ends with. Evaluations are
counted until F was first that small; solvers whose stopping test is another stop there, too, if
they run in Python, and are asked for 1e-9 if they do not. Jacobians are counted apart: dense ones,
or products J v and w J of methods without a matrix. hybr, broyden1 and krylov of SciPy take
differences of F instead, which are evaluations.
"""

import functools
import importlib.util
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.equilibrium import equilibrium
from tests.benchmarks.products import Counts
from tests.benchmarks.root_systems import systems

MAXFUN = 2000
MAXITER = 300
"""Steps of a peer whose evaluations it does not limit."""

SOLVED = 1e-8
LIMIT = 60.0
"""Seconds that a solver in Python may take for one system."""

PRODUCTS = 3
"""Products that limited memory takes of a Jacobian."""

MATRIX_FREE = ("jaxqn lbroyden", "jaxqn newton-krylov")
"""Solvers whose Jacobians are counted as products."""


def add_arguments(parser) -> None:
    """The options of this workload."""
    group = parser.add_argument_group("roots")
    group.add_argument("--no-sif2jax", action="store_true", help="the classical systems only")
    group.add_argument("--systems", help="comma-separated beginnings of names of systems")
    group.add_argument("--no-layer", action="store_true", help="without the fixed points")


class Enough(Exception):
    """Raised to stop a solver in Python."""


class Counted:
    """Compiled F and Jacobian for hosts in Python, counted."""

    def __init__(self, fun):
        self.F, self.J = compiled(fun)
        self.nfev = self.njev = 0
        self.end, self.until = None, time.perf_counter() + LIMIT

    def fun(self, x):
        """F(x)."""
        self.nfev += 1
        if self.nfev > 20 * MAXFUN or time.perf_counter() > self.until:
            raise Enough
        F = np.asarray(self.F(x))
        if np.max(np.abs(F)) <= SOLVED:
            self.end = np.array(x)
            raise Enough
        return F

    def jac(self, x):
        """The Jacobian."""
        self.njev += 1
        return np.asarray(self.J(x))


@functools.lru_cache(maxsize=2)
def compiled(fun):
    """F and its Jacobian."""
    return jax.jit(fun), jax.jit(jax.jacfwd(fun))


def jaxqn_solver(method):
    """A method of ``jaxqn.root``."""
    from jaxqn import root

    @functools.lru_cache(maxsize=1)
    def prepared(fun):
        counts = Counts(SOLVED)
        return counts, counts.of(fun)

    def solve(fun, x0):
        counts = None
        if method == "newton-krylov":
            counts, fun = prepared(fun)
            counts.clear()
        result = root(fun, jnp.asarray(x0), method=method, tol=SOLVED, maxfun=MAXFUN)
        jax.block_until_ready(result)
        jax.effects_barrier()
        jacobians = int(result.njev) * (PRODUCTS if method == "lbroyden" else 1)
        if counts is not None:
            jacobians = counts.products + counts.transposed
        return result.x, int(result.nfev), jacobians, int(result.status)

    return solve


def scipy_solver(method, with_jacobian=False, **options):
    """A method of ``scipy.optimize.root``."""
    import scipy.optimize

    def solve(fun, x0):
        counted = Counted(fun)
        jac = {"jac": counted.jac} if with_jacobian else {}
        try:
            x = scipy.optimize.root(counted.fun, x0, method=method, options=options, **jac).x
        except Exception:  # "Enough", or an overflow of its own
            x = x0
        return x if counted.end is None else counted.end, counted.nfev, counted.njev, None

    return solve


def compiled_solver(run, jacobians):
    """A solver of which ``run(counted F)`` is a function of x0 that can be compiled."""

    @functools.lru_cache(maxsize=1)
    def prepared(fun):
        counts = Counts(SOLVED)
        return counts, jax.jit(run(counts.of(fun)))

    def solve(fun, x0):
        counts, program = prepared(fun)
        counts.clear()
        x = jax.block_until_ready(program(jnp.asarray(x0)))
        jax.effects_barrier()
        return x, counts.until_small, jacobians(counts), None

    return solve


def optimistix_solver(name):
    """A root finder of optimistix."""
    import optimistix

    solver = getattr(optimistix, name)(rtol=1e-9, atol=1e-9)

    def run(fun):
        def F(x, _):
            return fun(x)

        return lambda x0: optimistix.root_find(F, solver, x0, max_steps=MAXITER, throw=False).value

    return compiled_solver(run, lambda counts: counts.until_small if name == "Newton" else 1)


def jaxopt_solver():
    """jaxopt's Broyden."""
    import jaxopt

    def run(fun):
        solver = jaxopt.Broyden(fun, maxiter=MAXITER, tol=1e-9)
        return lambda x0: solver.run(x0).params

    return compiled_solver(run, lambda _: 0)


def solvers():
    """Every solver by name, those that are installed."""
    found = {
        "jaxqn broyden": jaxqn_solver("broyden"),
        "jaxqn broyden-bad": jaxqn_solver("broyden-bad"),
        "jaxqn newton": jaxqn_solver("newton"),
        "jaxqn lbroyden": jaxqn_solver("lbroyden"),
        "jaxqn newton-krylov": jaxqn_solver("newton-krylov"),
        "scipy hybr": scipy_solver("hybr", maxfev=50 * MAXFUN, xtol=1e-12),
        "scipy hybr + jac": scipy_solver("hybr", with_jacobian=True, maxfev=MAXFUN, xtol=1e-12),
        "scipy broyden1": scipy_solver("broyden1", maxiter=MAXITER, fatol=SOLVED),
        "scipy krylov": scipy_solver("krylov", maxiter=MAXITER, fatol=SOLVED),
    }
    if importlib.util.find_spec("optimistix"):
        found["optimistix Newton"] = optimistix_solver("Newton")
        found["optimistix Chord"] = optimistix_solver("Chord")
    if importlib.util.find_spec("jaxopt"):
        found["jaxopt Broyden"] = jaxopt_solver()
    return found


def run_all(names, problems, verbose=False):
    """What every solver makes of every system."""
    runs = {name: {} for name in names}
    known = solvers()
    for system, fun, x0 in problems:
        jax.clear_caches()  # a process has room for so many programs only
        for name in names:
            started = time.perf_counter()
            try:
                x, nfev, njev, status = known[name](fun, x0)
                end = float(np.max(np.abs(compiled(fun)[0](jnp.asarray(x)))))
            except Exception as error:
                print(f"{name} on {system}: {error!r:.100}")
                nfev, njev, status, end = 0, 0, None, np.nan
            run = {"n": int(np.size(x0)), "nfev": nfev, "njev": njev, "end": end}
            runs[name][system] = run | {"solved": bool(end <= SOLVED), "status": status}
            if verbose:
                seconds = time.perf_counter() - started
                print(
                    f"{name:20s} {system:32s} {np.size(x0):4d} {nfev:6d} {njev:6d} {end:.2e} "
                    f"{status} {seconds:.1f}s",
                    flush=True,
                )
    return runs


def print_table(runs):
    """Percent solved, and evaluations over the systems that hybr solves too."""
    base = runs.get("scipy hybr")
    print(f"{'':22s}  solved %  evaluations  Jacobians  all  all over hybr's (geometric means)")
    for name, found in runs.items():
        percent = 100 * np.mean([run["solved"] for run in found.values()])
        both = [s for s in found if found[s]["solved"] and (not base or base[s]["solved"])]
        rows = np.array([[r["nfev"], r["njev"], cost(name, r)] for r in map(found.get, both)])
        if not len(rows):
            print(f"{name:22s} {percent:8.1f}")
            continue
        means = np.exp(np.mean(np.log(np.maximum(rows, 0.5)), axis=0))
        ratio = ""
        if base:
            against = np.array([base[s]["nfev"] for s in both], float)
            ratio = f"{np.exp(np.mean(np.log(rows[:, 2] / against))):6.2f}"
        print(
            f"{name:22s} {percent:8.1f} {means[0]:12.1f} {means[1]:10.1f} {means[2]:8.1f} "
            f"{ratio}  ({len(both)})"
        )


def cost(name, run):
    """Evaluations, a Jacobian being n of them and a product one."""
    return run["nfev"] + run["njev"] * (1 if name in MATRIX_FREE else run["n"])


def main(options) -> dict:
    """Runs the workload and prints its tables, of the classical systems and of the others."""
    warnings.filterwarnings("ignore")
    problems = systems(not options.no_sif2jax)
    if options.systems:
        problems = [p for p in problems if p[0].startswith(tuple(options.systems.split(",")))]
    if options.quick:
        problems = [p for p in problems if p[2].size <= 12]
    names = options.solvers or list(solvers())
    if not options.no_sif2jax and importlib.util.find_spec("sif2jax") is None:
        print("without sif2jax's systems: it is not installed")
    runs = run_all(names, problems, options.verbose)
    for title, chosen in (("classical", str.islower), ("sif2jax", lambda s: not s.islower())):
        part = {
            name: {system: run for system, run in found.items() if chosen(system)}
            for name, found in runs.items()
        }
        count = len(next(iter(part.values()), {}))
        if count:
            print(f"\n{count} {title} systems")
            print_table(part)
    return {"systems": runs, "equilibrium": None if options.no_layer else equilibrium()}
