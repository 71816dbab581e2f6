"""Square systems of equations, and a fixed point of dimension 1e4.

The systems are the classical ones of ``tests/equations.py``, from their usual
starts and from ten and a hundred times those, and the square ones of sif2jax
with n <= 200. Solved means max|F_i| <= 1e-8.
"""

import importlib.util
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tests.equations import CLASSICAL

MAXFUN = 2000
LARGEST = 200


def add_arguments(parser) -> None:
    """The options of this workload."""
    group = parser.add_argument_group("roots")
    group.add_argument("--no-sif2jax", action="store_true", help="the classical systems only")


def systems(with_sif2jax: bool):
    """``(name, fun, x0)`` of every system."""
    found = []
    for fun, x0 in CLASSICAL:
        for factor in (1.0, 10.0, 100.0):
            if factor > 1 and not np.any(x0):
                continue
            name = f"{fun.__name__}-{x0.size}" + (f" x{factor:g}" if factor > 1 else "")
            found.append((name, fun, factor * x0))
    if not with_sif2jax or importlib.util.find_spec("sif2jax") is None:
        return found
    import sif2jax

    for problem in sif2jax.nonlinear_equations_problems:
        x0, unravel = ravel_pytree(problem.y0)
        if x0.size > LARGEST:
            continue
        equalities, inequalities = jax.eval_shape(problem.constraint, problem.y0)
        rows = [sum(a.size for a in jax.tree.leaves(part)) for part in (equalities, inequalities)]
        if rows != [x0.size, 0]:
            continue

        def fun(x, problem=problem, unravel=unravel):
            return ravel_pytree(problem.constraint(unravel(x))[0])[0].astype(x.dtype)

        found.append((problem.name, fun, np.asarray(x0)))
    return found


class Counted:
    """Compiled F and Jacobian for hosts in Python, counted."""

    def __init__(self, fun):
        self.F, self.J = jax.jit(fun), jax.jit(jax.jacfwd(fun))
        self.nfev = self.njev = 0

    def fun(self, x):
        """F(x)."""
        self.nfev += 1
        if self.nfev > 20 * MAXFUN:
            raise RuntimeError("too many evaluations")
        return np.asarray(self.F(x))

    def jac(self, x):
        """The Jacobian."""
        self.njev += 1
        return np.asarray(self.J(x))


def jaxqn_solver(method):
    """A method of ``jaxqn.root``."""
    from jaxqn import root

    def solve(fun, x0):
        result = root(fun, jnp.asarray(x0), method=method, maxfun=MAXFUN)
        return result.x, int(result.nfev), int(result.njev), int(result.status)

    return solve


def scipy_solver(method, with_jacobian=False, **options):
    """A method of ``scipy.optimize.root``."""
    import scipy.optimize

    def solve(fun, x0):
        counted = Counted(fun)
        jac = {"jac": counted.jac} if with_jacobian else {}
        try:
            x = scipy.optimize.root(counted.fun, x0, method=method, options=options, **jac).x
        except Exception:
            x = x0
        return x, counted.nfev, counted.njev, None

    return solve


def optimistix_solver(name):
    """A root finder of optimistix."""
    import optimistix

    solver = getattr(optimistix, name)(rtol=1e-9, atol=1e-9)

    def solve(fun, x0):
        result = optimistix.root_find(
            lambda x, _: fun(x), solver, jnp.asarray(x0), max_steps=MAXFUN, throw=False
        )
        steps = int(result.stats["num_steps"])
        return result.value, steps, steps if name == "Newton" else 1, None

    return solve


def jaxopt_solver():
    """jaxopt's Broyden."""
    import jaxopt

    def solve(fun, x0):
        count = [0]

        def tick():
            count[0] += 1

        def counted(x):
            jax.debug.callback(tick)
            return fun(x)

        solver = jaxopt.Broyden(counted, maxiter=500, tol=1e-9)
        x = jax.block_until_ready(solver.run(jnp.asarray(x0)).params)
        jax.effects_barrier()
        return x, count[0], 0, None

    return solve


def solvers():
    """Every solver by name, those that are installed."""
    found = {
        "jaxqn broyden": jaxqn_solver("broyden"),
        "jaxqn broyden-bad": jaxqn_solver("broyden-bad"),
        "jaxqn newton": jaxqn_solver("newton"),
        "jaxqn lbroyden": jaxqn_solver("lbroyden"),
        "jaxqn newton-krylov": jaxqn_solver("newton-krylov"),
        "scipy hybr": scipy_solver("hybr", maxfev=50 * MAXFUN),
        "scipy hybr, jac": scipy_solver("hybr", with_jacobian=True, maxfev=MAXFUN),
        "scipy broyden1": scipy_solver("broyden1", maxiter=500),
        "scipy krylov": scipy_solver("krylov", maxiter=200),
    }
    if importlib.util.find_spec("optimistix"):
        found["optimistix Newton"] = optimistix_solver("Newton")
        found["optimistix Chord"] = optimistix_solver("Chord")
    if importlib.util.find_spec("jaxopt"):
        found["jaxopt Broyden"] = jaxopt_solver()
    return found


def run_all(names, problems, verbose=False):
    """What every solver makes of every system."""
    runs = {}
    known = solvers()
    for name in names:
        runs[name] = {}
        for system, fun, x0 in problems:
            size = jax.jit(lambda x, fun=fun: jnp.max(jnp.abs(fun(x))))
            try:
                x, nfev, njev, status = known[name](fun, x0)
                end = float(size(jnp.asarray(x)))
            except Exception as error:
                print(f"{name} on {system}: {error!r:.100}")
                x, nfev, njev, status, end = x0, 0, 0, None, np.nan
            solved = bool(end <= 1e-8)
            runs[name][system] = {
                "n": int(np.size(x0)),
                "nfev": nfev,
                "njev": njev,
                "end": end,
                "solved": solved,
                "status": status,
            }
            if verbose:
                print(f"{name:20s} {system:32s} {nfev:6d} {njev:5d} {end:.2e} {status}", flush=True)
    return runs


def print_table(runs):
    """Percent solved, and evaluations over the systems that hybr solves too."""
    base = runs.get("scipy hybr")
    print(
        f"{'':22s}  solved %   evaluations  Jacobians  evaluations + n Jacobians (geometric means)"
    )
    for name, systems in runs.items():
        percent = 100 * np.mean([run["solved"] for run in systems.values()])
        both = [s for s in systems if systems[s]["solved"] and (not base or base[s]["solved"])]
        rows = np.array(
            [
                [r["nfev"], r["njev"], r["nfev"] + r["n"] * r["njev"]]
                for r in (systems[s] for s in both)
            ],
            float,
        )
        means = (
            np.exp(np.mean(np.log(np.maximum(rows, 0.5)), axis=0)) if len(rows) else [np.nan] * 3
        )
        ratio = ""
        if base and len(rows):
            against = np.array([base[s]["nfev"] for s in both], float)
            ratio = f"  all over hybr's {np.exp(np.mean(np.log(rows[:, 2] / against))):.2f}"
        print(
            f"{name:22s} {percent:8.1f} {means[0]:12.1f} {means[1]:10.1f} {means[2]:12.1f}{ratio}"
            f"  ({len(both)})"
        )


def equilibrium_layer(tokens=20, features=500, gain=1.5, seed=0):
    """A deep-equilibrium layer of dimension 1e4: z = g(z, injected)."""
    rng = np.random.default_rng(seed)
    W = jnp.asarray(gain * rng.normal(size=(features, features)) / features**0.5)
    injected = jnp.asarray(rng.normal(size=(tokens, features)))

    def g(z):
        mixed = z @ W.T + injected + 0.3 * jnp.mean(z, axis=0, keepdims=True)
        return jnp.tanh(mixed)

    return g, jnp.zeros((tokens, features))


def equilibrium(tol=1e-8) -> dict:
    """Evaluations and times of fixed points of dimension 1e4."""
    from jaxqn import fixed_point, root

    found = {}
    for gain in (0.6, 0.9, 1.5):
        g, z0 = equilibrium_layer(gain=gain)

        def F(z, g=g):
            return g(z) - z

        solves = {
            "jaxqn lbroyden": lambda F=F, z0=z0: root(F, z0, method="lbroyden", tol=tol),
            "jaxqn anderson": lambda g=g, z0=z0: fixed_point(g, z0, tol=tol, memory=10),
            "jaxqn newton-krylov": lambda F=F, z0=z0: root(F, z0, method="newton-krylov", tol=tol),
        }
        print(f"\nfixed point of dimension {z0.size}, gain {gain}: evaluations, max|F|, seconds")
        for name, solve in solves.items():
            seconds, result = timed(solve)
            end = float(jnp.max(jnp.abs(F(result.x))))
            found[f"{name}, gain {gain}"] = [int(result.nfev), end, seconds]
            counts = f"{int(result.nfev):6d} and {int(result.njev)} Jacobians"
            print(f"{name:22s} {counts} {end:.1e} {seconds:.2f}", flush=True)
        if importlib.util.find_spec("jaxopt"):
            found |= jaxopt_equilibrium(g, F, z0, gain, tol)
    return found


def jaxopt_equilibrium(g, F, z0, gain, tol):
    """The same of jaxopt."""
    import jaxopt

    found = {}
    options = {"maxiter": 500, "tol": tol}
    kinds = {
        "jaxopt Broyden": lambda f: jaxopt.Broyden(f, history_size=10, **options),
        "jaxopt Anderson": lambda f: jaxopt.AndersonAcceleration(f, history_size=10, **options),
    }
    for name, kind in kinds.items():
        fun, count = (F if name == "jaxopt Broyden" else g), [0]

        def counted(z, fun=fun, count=count):
            jax.debug.callback(lambda: count.__setitem__(0, count[0] + 1))
            return fun(z)

        jax.block_until_ready(kind(counted).run(z0))
        jax.effects_barrier()
        solver = kind(fun)
        seconds, result = timed(lambda solver=solver: solver.run(z0))
        end = float(jnp.max(jnp.abs(F(result.params))))
        found[f"{name}, gain {gain}"] = [count[0], end, seconds]
        print(f"{name:22s} {count[0]:6d} {end:.1e} {seconds:.2f}", flush=True)
    return found


def timed(solve):
    """Seconds of the second call, and its result."""
    jax.block_until_ready(solve())
    started = time.perf_counter()
    result = jax.block_until_ready(solve())
    return time.perf_counter() - started, result


def main(options) -> dict:
    """Runs the workload and prints its table."""
    warnings.filterwarnings("ignore")
    with_sif2jax = not options.no_sif2jax
    problems = systems(with_sif2jax)
    if options.quick:
        problems = [p for p in problems if p[2].size <= 12]
    names = options.solvers or list(solvers())
    if with_sif2jax and "sif2jax" not in sys.modules:
        print("without sif2jax's systems: it is not installed")
    runs = run_all(names, problems, options.verbose)
    print(f"\n{len(problems)} systems")
    print_table(runs)
    return {"systems": runs, "equilibrium": equilibrium()}
