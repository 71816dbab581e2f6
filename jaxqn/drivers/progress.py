"""A run in slices, each of which ends where a callback or a reader wants to look."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import ArrayTree
from jaxqn.checks import is_traced
from jaxqn.drivers.result import MinimizeResult
from jaxqn.loop import LoopState, Status, Tolerances

__all__ = ["observed"]


def observed(
    go: Callable[..., MinimizeResult],
    x0: ArrayTree,
    state: LoopState,
    tol: Tolerances,
    callback: Callable[[MinimizeResult], Any] | None,
    progress: bool,
) -> MinimizeResult:
    """Run in slices: of one iteration for a callback, of about a second for progress alone."""
    if is_traced((x0, state, tol)):
        raise TypeError(
            "callback and progress need concrete numbers, but this call is being traced (jit, vmap "
            "or scan): call minimize eagerly, or run it in slices with maxiter= and state="
        )
    last_print, slice_length = time.monotonic(), 1
    while True:
        reached = int(state.nit)
        pause = min(int(tol.maxiter), reached + (1 if callback else slice_length))
        result = go(x0, state, tol._replace(maxiter=np.int32(pause)))
        state = result.state
        over = int(result.status) != Status.MAX_ITER or pause == int(tol.maxiter)
        elapsed = time.monotonic() - last_print
        slice_length = min(2 * slice_length, 1024) if elapsed < 0.5 else max(slice_length // 2, 1)
        if progress and (over or elapsed >= 1):
            last_print = time.monotonic()
            _print_progress(result)
        wants_stop = callback is not None and int(result.nit) > reached and bool(callback(result))
        if over:
            return result
        if wants_stop:
            return result._replace(status=jnp.int32(Status.STOPPED))


def _print_progress(result: MinimizeResult) -> None:
    g_norm = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(result.jac))
    print(
        f"iteration {int(result.nit):6d}  evaluations {int(result.nfev):6d}  "
        f"f {float(result.fun): .9e}  max|g| {g_norm:.2e}",
        file=sys.stderr,
        flush=True,
    )
