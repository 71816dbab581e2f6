"""The trace of a run: every objective value a solver asked for, in order.

Solvers count differently and stop for reasons of their own, so workloads that
score solving power look only at the trace. `watched` puts a host callback
inside the objective; the callback counts, keeps the improvements, and ends the
run by an exception once its budget is spent. That works for any solver, jitted
or not, without its help.
"""

import logging
import time
from collections.abc import Callable

import jax
import numpy as np

logging.getLogger("jax._src.debugging").setLevel(logging.CRITICAL)


class BudgetSpent(Exception):
    """Raised inside the objective to end a run."""


class Recorder:
    """Counts evaluations and keeps the improvements.

    One call is one evaluation, with or without the gradient. A call at the
    very point of the call before it (a value first, its gradient next) belongs
    to that evaluation and is not counted again; a third call in a row is.

    Attributes:
      evaluations: evaluations so far.
      improvements: ``[k, f]`` for each evaluation k that lowered the best f.
      best_x: the point of the last improvement.
      snapshots: best point after the evaluation counts in `at`, by count.
      times: seconds since the first call at each count in `at`.
      outside: evaluations outside of the bounds, by however little. One by more
        than 1e-10 is no improvement.
      spent: whether the budget ended the run: "", "evaluations" or "time".
    """

    def __init__(self, budget: int, seconds: float = np.inf, at: tuple[int, ...] = (), bounds=None):
        self.budget, self.seconds, self.at, self.bounds = budget, seconds, at, bounds
        self.outside = 0
        self.evaluations, self.improvements = 0, []
        self.best_x, self.snapshots, self.times = None, {}, {}
        self.spent = ""
        self._started, self._last, self._paired = None, None, False

    def __call__(self, f, x) -> None:
        now = time.perf_counter()
        if self._started is None:
            self._started, self._started_busy = now, time.process_time()
        f, x = float(f), np.asarray(x)
        same = self._last is not None and np.array_equal(x, self._last)
        if same and not self._paired:
            self._paired = True
            return
        if self.evaluations >= self.budget:
            self._stop("evaluations")
        if now - self._started > self.seconds and self._busy() > self.seconds:
            self._stop("time")
        self._last, self._paired = x.copy(), False
        self.evaluations += 1
        if (
            np.isfinite(f)
            and not self._misses(x)
            and (not self.improvements or f < self.improvements[-1][1])
        ):
            self.improvements.append([self.evaluations, f])
            self.best_x = self._last
        if self.evaluations in self.at:
            self.snapshots[self.evaluations] = self.best_x
            self.times[self.evaluations] = now - self._started

    def _misses(self, x) -> bool:
        """Counts a point outside of the bounds; whether it is far outside."""
        if self.bounds is None:
            return False
        lower, upper = self.bounds
        by = np.maximum(lower - x, x - upper)
        self.outside += bool(np.any(by > 0))
        return bool(np.any(by > 1e-10 * (1 + np.abs(x))))

    def _busy(self) -> float:
        """Processor seconds since the first call: a busy machine stops nobody."""
        return time.process_time() - self._started_busy

    def _stop(self, why: str):
        self.spent = why
        raise BudgetSpent(why)


def watched(fun: Callable, recorder: Recorder) -> Callable:
    """`fun` on flat vectors, reporting its value and point to `recorder`."""

    def fun_watched(x, *args):
        value = fun(x, *args)
        jax.debug.callback(recorder, value, x, ordered=True)
        return value

    return fun_watched


def run_recorded(solve: Callable, recorder: Recorder, *args):
    """Runs a built solver to its end or its budget.

    Returns:
      The outcome with its arrays on the host, or None where the budget (or an
      error inside the solver, which is printed) ended it.
    """
    try:
        outcome = jax.device_get(solve(*args))
        jax.effects_barrier()
        return outcome
    except Exception as error:  # XLA wraps BudgetSpent in an error of its own
        if not recorder.spent:
            print(f"    ended by {type(error).__name__}: {str(error).splitlines()[:1]}")
        return None
