"""Behaviour under stress: cases in which some peer fails, pass or fail.

Solvers: an objective multiplied by constants from 1e-8 to 1e8, float32, the
2-D Rosenbrock function, a non-convex quartic, a domain boundary, NaN at the
start. A run passes when it ends by itself within the budget and the problem is
solved (at NaN: when it does not claim so). Tolerances are each library's
defaults.

Optax transformations: see `composition`.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import composition, objectives, peers, recording
from .solver import Options, says

BUDGET = 2000
SCALES = (1e-8, 1e-4, 1.0, 1e4, 1e8)


class Case(NamedTuple):
    """One thing to ask of every solver.

    Attributes:
      name: as printed.
      dtype: "float32", "float64".
      runs: problems ``(label, fun, x0)`` that must all pass.
      solved: ``x -> bool``, with x a NumPy array; None where there is no
        solution and the solver must not claim one.
    """

    name: str
    dtype: str
    runs: Callable[[], list]
    solved: Callable | None


def _near_one(x, atol=1e-2) -> bool:
    return bool(np.max(np.abs(x - 1.0)) <= atol)


def _scaled():
    x0 = jnp.zeros((10,))

    def run(c):
        return f"c = {c:.0e}", (lambda x: c * objectives.rosenbrock(x)), x0

    return [run(c) for c in SCALES]


def _rosenbrock(n: int, x0=None):
    start = objectives.rosenbrock_start(n) if x0 is None else x0
    return [("", objectives.rosenbrock, start)]


def _quartic(x):
    """Minima at +-1 in each coordinate, a maximum at 0."""
    return jnp.sum(0.25 * x**4 - 0.5 * x**2)


def _barrier(x):
    """NaN outside x > 0; its minimum is at 1."""
    return jnp.sum(x - jnp.log(x)) + 50.0 * jnp.sum((x - 1.0) ** 2)


CASES = (
    Case("c * Rosenbrock(10)", "float32", _scaled, _near_one),
    Case("Rosenbrock-10", "float32", lambda: _rosenbrock(10, jnp.zeros((10,))), _near_one),
    Case("Rosenbrock-2", "float64", lambda: _rosenbrock(2), _near_one),
    Case(
        "non-convex quartic",
        "float64",
        lambda: [("", _quartic, jnp.linspace(-0.25, 0.3, 6))],
        lambda x: _near_one(np.abs(x)),
    ),
    Case(
        "NaN beyond a boundary",
        "float64",
        lambda: [("", _barrier, jnp.full((3,), 4.0))],
        _near_one,
    ),
    Case(
        "NaN at the start",
        "float64",
        lambda: [("", lambda x: jnp.sum(jnp.sqrt(x)), jnp.full((3,), -1.0))],
        None,
    ),
)


@contextlib.contextmanager
def precision(dtype: str):
    """JAX's default dtype for a while."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def judge(solver, case: Case, fun, x0) -> str:
    """An empty string for a pass, else what went wrong."""
    recorder = recording.Recorder(BUDGET, 30.0)
    # optax leaves the stopping test to its user: this is the documented loop's
    gtol = 1e-5 if solver.needs in ("optax", peers.PORT) else None
    # jaxqn is told the budget; the recorder stops the others there
    limit = BUDGET if solver.ours else None
    solve = solver.make(recording.watched(fun, recorder), Options(gtol=gtol, maxfun=limit))
    outcome = recording.run_recorded(jax.jit(solve) if solver.compiled else solve, recorder, x0)
    if outcome is None:
        return f"ran until stopped ({recorder.spent or 'error'})"
    x, said = np.asarray(outcome.x), says(solver, outcome)
    if case.solved is None:
        return "claims success" if outcome.success else ""
    if case.solved(x):
        return ""
    error = np.max(np.abs(np.abs(x) - 1.0))
    return f"says {said} after {recorder.evaluations} evaluations, |x - x*| = {error:.1g}"


def main(options) -> dict:
    """One block per case, one row per solver."""
    results: dict = {}
    solvers = peers.available(options.solvers)
    cases = CASES[1:] if options.quick else CASES
    for case in cases:
        print(f"\n{case.name}, {case.dtype}")
        rows = results[case.name] = {}
        for solver in solvers:
            with precision(case.dtype):
                verdicts = [
                    f"{label} {wrong}".strip()
                    for label, fun, x0 in case.runs()
                    if (wrong := judge(solver, case, fun, x0))
                ]
            rows[solver.name] = verdicts
            verdict = "pass" if not verdicts else "FAIL: " + "; ".join(verdicts)
            print(f"  {solver.name:22}{verdict}", flush=True)
        jax.clear_caches()
    results["composition"] = composition.run()
    return results
