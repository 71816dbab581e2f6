"""One adapter per solver, so that every workload runs all of them alike.

A `Solver` builds, from an objective ``fun(x, *args)`` on a flat vector and the
stopping `Options`, a function ``solve(x0, *args) -> Outcome``. A *compiled*
solver's ``solve`` is traceable (``jit``, ``vmap``); the others (SciPy) run on
the host and compile only the value and gradient.

Libraries are imported when a solver is built, never before: `available`
prints by name what cannot be imported and leaves it out.

The self-scaled optax port that circulates as a file (optax pull request 1659)
is not on a package index. Name a copy of it in the environment variable
``SSBROYDEN_PORT`` and it joins the table as ``port-ssbroyden`` and
``port-ssbfgs``.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .solver import Options, Outcome, Solver

UNLIMITED = 1_000_000
PORT = "SSBROYDEN_PORT"


def _given(**options) -> dict:
    """The options that were set."""
    return {name: value for name, value in options.items() if value is not None}


def _jaxqn(method: str, *, in_line: bool = False):
    def make(fun, options):
        import jaxqn

        settings = _given(**options._asdict(), linesearch=jaxqn.wolfe() if in_line else None)

        def solve(x0, *args):
            r = jaxqn.minimize(fun, x0, args, method=method, **settings)
            return Outcome(r.x, r.fun, r.nit, r.nfev, r.success, r.status)

        return solve

    return make


def _scipy(method: str):
    def make(fun, options):
        from scipy.optimize import minimize

        value_and_grad = jax.jit(jax.value_and_grad(fun))
        settings = _given(gtol=options.gtol, maxiter=options.maxiter or UNLIMITED)
        if method == "TNC":
            settings = _given(gtol=options.gtol, maxfun=options.maxfun or UNLIMITED)
            if options.gtol is not None:
                settings |= {"ftol": 0.0, "xtol": 0.0}
        if method == "L-BFGS-B":
            settings |= {"maxcor": 10, "maxfun": options.maxfun or UNLIMITED}
            if options.gtol is not None:
                settings["ftol"] = 0.0  # its other test would stop it earlier

        def solve(x0, *args):
            x0 = jnp.asarray(x0)

            def on_host(x):
                f, g = value_and_grad(jnp.asarray(x, x0.dtype), *args)
                return float(f), np.asarray(g, np.float64)

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bounds = options.bounds and list(zip(*map(np.asarray, options.bounds), strict=True))
                r = minimize(on_host, x0, jac=True, method=method, options=settings, bounds=bounds)
            return Outcome(r.x, r.fun, r.nit, r.nfev, r.success, r.status)

        return solve

    return make


def run_optax(optimizer, fun, options: Options):
    """The loop of optax's documentation, compiled, for any line-search chain.

    The evaluations are those of the zoom search, plus the first.
    """
    import optax

    tol = 0.0 if options.gtol is None else options.gtol
    maxiter = options.maxiter or UNLIMITED
    maxfun = options.maxfun or UNLIMITED

    def solve(x0, *args):
        def objective(x):
            return fun(x, *args)

        value_and_grad = optax.value_and_grad_from_state(objective)

        def body(carry):
            x, state, nit, nfev = carry
            value, grad = value_and_grad(x, state=state)
            updates, state = optimizer.update(
                grad, state, x, value=value, grad=grad, value_fn=objective
            )
            x = optax.apply_updates(x, updates)
            trials = state[-1].info.num_linesearch_steps.astype(nfev.dtype)
            return x, state, nit + 1, nfev + trials

        def proceed(carry):
            _, state, nit, nfev = carry
            error = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
            return (nit == 0) | ((nit < maxiter) & (nfev < maxfun) & (error > tol))

        zero = jnp.zeros((), jnp.int32)
        start = (x0, optimizer.init(x0), zero, zero + 1)
        x, state, nit, nfev = jax.lax.while_loop(proceed, body, start)
        error = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
        return Outcome(x, optax.tree.get(state, "value"), nit, nfev, error <= tol)

    return solve


def _optax_lbfgs(fun, options):
    import optax

    return run_optax(optax.lbfgs(), fun, options)


def _port(name: str):
    def make(fun, options):
        return run_optax(getattr(_load_port(), name)(), fun, options)

    return make


@functools.cache
def _load_port():
    spec = importlib.util.spec_from_file_location("ssbroyden_port", os.environ[PORT])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _optimistix(name: str):
    def make(fun, options):
        import optimistix

        # Its steps are trials: each costs one evaluation.
        steps = options.maxfun or options.maxiter or UNLIMITED

        def solve(x0, *args):
            tol = options.gtol  # it has no default: a usual one for the dtype
            if tol is None:
                tol = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(x0))).eps) ** 0.5
            r = optimistix.minimise(
                lambda x, args: fun(x, *args),
                getattr(optimistix, name)(rtol=tol, atol=tol),
                x0,
                args,
                max_steps=steps,
                throw=False,
            )
            success = r.result == optimistix.RESULTS.successful
            # The value at the accepted point; its count starts with x0's.
            nit = r.state.num_accepted_steps - 1
            return Outcome(r.value, r.state.f_info.f, nit, r.stats["num_steps"], success)

        return solve

    return make


def _jaxopt(name: str):
    def make(fun, options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jaxopt

        settings = _given(tol=options.gtol)
        solver = getattr(jaxopt, name)(
            fun,
            maxiter=options.maxiter or UNLIMITED,
            implicit_diff=False,
            **settings,
        )

        def solve(x0, *args):
            bounds = () if options.bounds is None else (options.bounds,)
            x, state = solver.run(x0, *bounds, *args)
            success = state.error <= solver.tol
            return Outcome(x, state.value, state.iter_num, state.num_fun_eval, success)

        return solve

    return make


def _jax_scipy(fun, options):
    from jax.scipy.optimize import minimize

    settings = _given(gtol=options.gtol, maxiter=options.maxiter)

    def solve(x0, *args):
        r = minimize(fun, x0, args, method="BFGS", options=settings)
        return Outcome(r.x, r.fun, r.nit, r.nfev, r.success, r.status)

    return solve


PEERS = (
    Solver("scipy-bfgs", "scipy", False, _scipy("BFGS")),
    Solver("scipy-lbfgsb", "scipy", False, _scipy("L-BFGS-B")),
    Solver("optax-lbfgs", "optax", True, _optax_lbfgs),
    Solver("optimistix-bfgs", "optimistix", True, _optimistix("BFGS")),
    Solver("optimistix-lbfgs", "optimistix", True, _optimistix("LBFGS")),
    Solver("jaxopt-lbfgs", "jaxopt", True, _jaxopt("LBFGS")),
    Solver("jaxopt-bfgs", "jaxopt", True, _jaxopt("BFGS")),
    Solver("jax.scipy-bfgs", "jax", True, _jax_scipy),
    Solver("port-ssbroyden", PORT, True, _port("ssbroyden")),
    Solver("port-ssbfgs", PORT, True, _port("ssbfgs")),
)


BOUNDED = (
    Solver("scipy-lbfgsb", "scipy", False, _scipy("L-BFGS-B")),
    Solver("scipy-tnc", "scipy", False, _scipy("TNC")),
    Solver("jaxopt-lbfgsb", "jaxopt", True, _jaxopt("LBFGSB")),
)
"""The peers that take bounds."""


def _importable(module: str) -> bool:
    if module == PORT:
        return PORT in os.environ
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(module)
    except ImportError:
        return False
    return module != "jaxqn" or hasattr(found, "minimize")


def our_solvers() -> tuple[Solver, ...]:
    """One solver per method of the jaxqn that is installed, default first."""
    if not _importable("jaxqn"):
        return ()
    from jaxqn.demo.iris import METHODS
    from jaxqn.loop import default_method

    default = default_method(None)
    methods = [name for name in METHODS if name != "newton"]  # Hessians are another budget
    names = sorted(methods, key=lambda name: name != default)
    return tuple(Solver(f"jaxqn-{n}", "jaxqn", True, _jaxqn(n)) for n in names)


def line_forms() -> tuple[Solver, ...]:
    """The line-search forms of the methods that step within a trust region, for those who ask."""
    if not _importable("jaxqn"):
        return ()
    names = ("sr1", "lsr1")
    return tuple(Solver(f"jaxqn-{n}-line", "jaxqn", True, _jaxqn(n, in_line=True)) for n in names)


def available(names: Sequence[str] | None = None, peers: Sequence[Solver] = PEERS) -> list[Solver]:
    """The solvers asked for that can be imported; the others are printed.

    Args:
      names: solver names; ``"peers"`` and ``"jaxqn"`` stand for all of a kind,
        None for everything but "jaxqn-sr1-line" and "jaxqn-lsr1-line".
      peers: those there are.
    """
    ours = our_solvers()
    if not ours and (names is None or any(n.startswith("jaxqn") for n in names)):
        print("skipped: jaxqn (not importable)")
    table = {s.name: s for s in (*ours, *line_forms(), *peers)}
    groups = {"jaxqn": [s.name for s in ours], "peers": [s.name for s in peers]}
    wanted = []
    for name in names or ("jaxqn", "peers"):
        wanted += groups.get(name, [name])
    solvers = []
    for name in dict.fromkeys(wanted):
        if name not in table:
            print(f"skipped: {name} (unknown; known: {', '.join(table)})")
        elif not _importable(table[name].needs):
            print(f"skipped: {name} ({table[name].needs} is not available)")
        else:
            solvers.append(table[name])
    return solvers
