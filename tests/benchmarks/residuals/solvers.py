"""Solvers of least-squares problems, each behind the same call.

A `Fitter` builds, from ``residual(x, *args)`` on a flat vector, a function
``solve(x0, args, bounds=None, loss="linear") -> Run`` on the host. All get
derivatives by forward mode and may evaluate `BUDGET` times. A peer that takes
no bounds or no loss is not asked for them.
"""

import contextlib
import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import recording

BUDGET = 2000
OURS = "jaxqn.least_squares"
TIGHT = 1e-15


class Run(NamedTuple):
    """How one fit ended.

    Attributes:
      x: final point.
      cost: half of the sum of rho there.
      nfev: evaluations of the residuals, by the solver's own count.
      success: the solver's claim of convergence.
      status: the name or number that the solver gives to its end.
    """

    x: Any
    cost: float
    nfev: int
    success: bool
    status: str


def ended(success) -> str:
    """The status of a solver that says nothing but yes or no."""
    return "success" if success else "failure"


FAILED = Run(np.nan, np.inf, 0, False, "error")


class Fitter(NamedTuple):
    """A named way to fit: ``make(residual) -> solve``."""

    name: str
    needs: str
    make: Callable[[Callable], Callable[..., Run]]


def half_sum(residual):
    """The scalar objective, 1/2 sum r^2."""

    def fun(x, *args):
        r = residual(x, *args)
        return 0.5 * jnp.vdot(r, r)

    return fun


def with_jacobian(residual):
    """``(x, *args) -> (r, J)``, by one linearisation."""

    def both(x, *args):
        r, push = jax.linearize(lambda x: residual(x, *args), x)
        return r, jax.vmap(push, out_axes=1)(jnp.eye(x.size, dtype=x.dtype))

    return both


@functools.cache
def compiled_jacobian(residual):
    """`with_jacobian` compiled, one program for all solvers on the host."""
    return jax.jit(with_jacobian(residual))


def ours(method: str, **settings) -> Fitter:
    """`jaxqn.least_squares`."""

    def make(residual):
        import jaxqn

        @functools.partial(jax.jit, static_argnames="loss")
        def run(x0, args, bounds, loss):
            return jaxqn.least_squares(
                residual, x0, args, bounds=bounds, loss=loss, method=method, **settings
            )

        def solve(x0, args=(), bounds=None, loss="linear"):
            r = jax.device_get(run(x0, args, bounds, loss)._replace(state=None))
            jax.effects_barrier()
            status = jaxqn.Status(int(r.status)).name
            return Run(r.x, float(r.cost), int(r.nfev), bool(r.success), status)

        return solve

    settings = {"maxfun": BUDGET, **settings}
    return Fitter(f"jaxqn {method}", OURS, make)


def minimize() -> Fitter:
    """`jaxqn.minimize` on the scalar."""

    def make(residual):
        import jaxqn

        fun = half_sum(residual)
        run = jax.jit(lambda x0, args: jaxqn.minimize(fun, x0, args, maxfun=BUDGET))

        def solve(x0, args=()):
            r = run(x0, args)
            status = jaxqn.Status(int(r.status)).name
            return Run(np.asarray(r.x), float(r.fun), int(r.nfev), bool(r.success), status)

        return solve

    return Fitter("jaxqn.minimize", "jaxqn", make)


def scipy(method: str, tolerance: float | None = None, **settings) -> Fitter:
    """SciPy's `least_squares`; residuals and Jacobian come from one program."""
    if tolerance is not None:
        settings |= {"ftol": tolerance, "xtol": tolerance, "gtol": tolerance}

    def make(residual):
        from scipy.optimize import least_squares

        both = compiled_jacobian(residual)

        def solve(x0, args=(), bounds=None, loss="linear"):
            seen: dict[str, Any] = {"x": None}
            count = 0

            def at(x):
                if not np.array_equal(x, seen["x"]):
                    r, J = both(x, *args)
                    seen.update(x=x.copy(), r=np.asarray(r), J=np.asarray(J))
                return seen

            def fun(x):
                nonlocal count
                count += 1
                return at(x)["r"]

            options = dict(settings)
            if bounds is not None:  # the first point has to be inside
                lower, upper = bounds
                x0 = np.clip(x0, np.nextafter(lower, np.inf), np.nextafter(upper, -np.inf))
                options["bounds"] = bounds
            with quiet():
                try:
                    r = least_squares(
                        fun,
                        x0,
                        jac=lambda x: at(x)["J"],
                        method=method,
                        loss=loss,
                        max_nfev=BUDGET,
                        **options,
                    )
                except (ValueError, np.linalg.LinAlgError) as error:
                    return FAILED._replace(nfev=count, status=type(error).__name__)
            jax.effects_barrier()
            return Run(r.x, float(r.cost), count, bool(r.success), str(r.status))

        return solve

    words = [f"scipy {method}", *settings.get("x_scale", "").split()]
    return Fitter(" ".join(words + ([f"{tolerance:g}"] if tolerance else [])), "scipy", make)


def optimistix(tolerance: float) -> Fitter:
    """Its Levenberg-Marquardt; a step is a trial, and an evaluation."""

    def make(residual):
        import optimistix as optx

        solver = optx.LevenbergMarquardt(tolerance, tolerance)

        @jax.jit
        def run(x0, args):
            r = optx.least_squares(
                lambda x, args: residual(x, *args), solver, x0, args, max_steps=BUDGET, throw=False
            )
            return r.value, r.stats["num_steps"], r.result == optx.RESULTS.successful

        def solve(x0, args=()):
            x, steps, success = run(jnp.asarray(x0), args)
            cost = half_sum(residual)(x, *args)
            return Run(np.asarray(x), float(cost), int(steps), bool(success), ended(success))

        return solve

    return Fitter(f"optimistix LM {tolerance:g}", "optimistix", make)


def jaxopt(tolerance: float) -> Fitter:
    """Its Levenberg-Marquardt by QR, all three tolerances alike."""

    def make(residual):
        with quiet():
            import jaxopt

        same = {"tol": tolerance, "xtol": tolerance, "gtol": tolerance}
        solver = jaxopt.LevenbergMarquardt(
            residual, maxiter=BUDGET, materialize_jac=True, solver="qr", **same
        )
        run = jax.jit(solver.run)

        def solve(x0, args=()):
            x, state = run(jnp.asarray(x0), *args)
            success = int(state.iter_num) < BUDGET
            cost = float(half_sum(residual)(x, *args))
            return Run(np.asarray(x), cost, int(state.iter_num), success, ended(success))

        return solve

    return Fitter(f"jaxopt LM QR {tolerance:g}", "jaxopt", make)


@contextlib.contextmanager
def quiet():
    """No warnings: the peers overflow at some trials, and so do the models."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def float32():
    """JAX's default precision, whatever precision the command line asked for."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def is_there(needs: str) -> bool:
    """Whether a module, or the function of a module, can be imported."""
    module, _, name = needs.partition(".")
    if importlib.util.find_spec(module) is None:
        return False
    return not name or hasattr(importlib.import_module(module), name)


def available(fitters, options) -> list[Fitter]:
    """Those that are there and that ``--solvers`` wants; the absent are printed."""
    kept = []
    for fitter in fitters:
        group = "jaxqn" if fitter.name.startswith("jaxqn") else "peers"
        names = options.solvers or (group,)
        if not any(name == group or fitter.name.startswith(name) for name in names):
            continue
        if is_there(fitter.needs):
            kept.append(fitter)
        else:
            print(f"skipped: {fitter.name} ({fitter.needs} is not available)")
    return kept


class Watched:
    """A residual function that reports cost and point to the latest recorder.

    One object serves every run of a problem, so that a solver compiles once.
    """

    def __init__(self, residual):
        self.residual = residual
        self.recorder = recording.Recorder(BUDGET)

    def __call__(self, x, *args):
        r = self.residual(x, *args)
        jax.debug.callback(self._report, 0.5 * jnp.vdot(r, r), x, ordered=True)
        return r

    def _report(self, cost, x):
        self.recorder(cost, x)

    def record(self, solve, *args, bounds=None, **more) -> tuple[Run, recording.Recorder]:
        """Runs a solver that was built for this object, on a new recorder."""
        self.recorder = recording.Recorder(BUDGET, bounds=bounds)
        if bounds is not None:
            more["bounds"] = bounds
        run = recording.run_recorded(functools.partial(solve, **more), self.recorder, *args)
        return run or FAILED, self.recorder
