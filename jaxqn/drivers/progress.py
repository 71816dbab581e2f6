"""A run in slices, each of which ends where a callback or a reader wants to look."""

import contextlib
import importlib
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
from jaxqn.loop import LoopState, Status, Tolerances, merged

__all__ = ["observed"]


def observed(
    go: Callable[..., Any],
    x0: ArrayTree,
    state: LoopState,
    tol: Tolerances,
    callback: Callable[[Any], Any] | None,
    every: int,
    progress: bool,
    numbers: Callable[[Any], str] | None = None,
) -> Any:
    """Run in slices: of ``every`` iterations for a callback, of about a second for progress.

    ``numbers`` says of a result what progress shows; by default that of a :class:`MinimizeResult`.
    """
    if is_traced((x0, state, tol)):
        raise TypeError(
            "callback and progress need concrete numbers, but this call is being traced (jit, vmap "
            "or scan): call minimize eagerly, or run it in slices with maxiter= and state="
        )
    report, slice_length, history = _reporter(numbers or _numbers) if progress else None, 1, None
    while True:
        reached, started = int(state.nit), time.monotonic()
        pause = min(int(tol.maxiter), reached + (every if callback else slice_length))
        result = go(x0, state, tol._replace(maxiter=np.int32(pause)))
        if getattr(result, "history", None) is not None:
            table = result.history.table
            table = table if history is None else merged(history.table, table)
            history = result.history._replace(table=table)
            result = result._replace(history=history)
        state = result.state
        over = int(result.status) != Status.MAX_ITER or pause == int(tol.maxiter)
        brief = time.monotonic() - started < 0.5
        slice_length = min(2 * slice_length, 1024) if brief else max(slice_length // 2, 1)
        if report is not None:
            report(result, over)
        wants_stop = callback is not None and int(result.nit) > reached and bool(callback(result))
        if over:
            return result
        if wants_stop:
            return result._replace(status=jnp.int32(Status.STOPPED))


def _numbers(result: MinimizeResult) -> str:
    g_norm = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(result.jac))
    return f"f {float(result.fun): .9e}  max|g| {g_norm:.2e}"


def _reporter(numbers: Callable[[Any], str]) -> Callable[[Any, bool], None]:
    """Shows how a run goes, about every second: on tqdm's bar, or in lines."""
    bar = None
    with contextlib.suppress(ImportError):
        bar = importlib.import_module("tqdm").tqdm(unit=" iterations")
    start = last = time.monotonic()

    def report(result: Any, over: bool) -> None:
        nonlocal last
        now = time.monotonic()
        if not over and now < last + 1:
            return
        last, nit, nfev = now, int(result.nit), int(result.nfev)
        shown = numbers(result)
        if bar is not None:
            bar.set_postfix_str(f"evaluations {nfev}  {shown}", refresh=False)
            bar.update(nit - bar.n)
            if over:
                bar.close()
            return
        rate = nit / max(now - start, 1e-9)
        line = f"iteration {nit:6d}  evaluations {nfev:6d}  {shown}  {rate:.0f} iterations/s"
        print(line, file=sys.stderr, flush=True)

    return report
