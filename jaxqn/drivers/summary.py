"""Results as text for a person."""

import importlib
from typing import Any

import jax
import numpy as np

from jaxqn._typing import ArrayTree
from jaxqn.checks import is_traced
from jaxqn.loop import MESSAGES, History, Status

__all__ = ["plot_history", "shown", "status_name", "summary"]

FEW = 6
"""Entries up to which a leaf is shown in full."""

MOST_ROWS = 40
"""Parameters that a summary lists."""

WORST = 5
"""Problems of a batch that a summary names."""


def status_name(status: Any) -> Any:
    """The name of a status; of a batch, an array of names."""
    if is_traced(status):
        raise TypeError("status_name needs a concrete status, but this one is being traced")
    names = np.array([known.name for known in Status])
    return str(names[int(status)]) if np.ndim(status) == 0 else names[np.asarray(status)]


def shown(tree: ArrayTree) -> Any:
    """The tree for a repr: leaves of many entries by shape and dtype."""

    def of_leaf(leaf: Any) -> Any:
        if is_traced(leaf) or np.size(leaf) <= FEW:
            return leaf
        return _Short(f"<{leaf.dtype}{list(leaf.shape)}>")

    return jax.tree.map(of_leaf, tree)


class _Short(str):
    """A text whose repr has no quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def plot_history(history: History | None, axis: Any) -> Any:
    """Value above the lowest, and gradient, against evaluations; returns the axis."""
    if history is None:
        raise ValueError("there is no history: ask for it, as in minimize(..., history=100)")
    if axis is None:
        axis = importlib.import_module("matplotlib.pyplot").subplots()[1]
    nfev, fun, jac = (np.asarray(a, np.float64) for a in (history.nfev, history.fun, history.jac))
    above = fun - np.nanmin(fun)
    axis.semilogy(nfev, np.where(above > 0, above, np.nan), label="value above the lowest")
    axis.semilogy(nfev, np.where(jac > 0, jac, np.nan), label="largest entry of the gradient")
    axis.set_xlabel("evaluations")
    axis.legend()
    return axis


def summary(result: Any, value: str, errors: ArrayTree | None) -> str:
    """A result in aligned lines; see :meth:`jaxqn.MinimizeResult.summary`."""
    if is_traced(result.status):
        raise TypeError("summary needs concrete numbers, but this result is being traced")
    return (_of_one if np.ndim(result.status) == 0 else _of_batch)(result, value, errors)


def _of_one(result: Any, value: str, errors: ArrayTree | None) -> str:
    status = int(result.status)
    lines = [
        f"{Status(status).name}: {value} {float(getattr(result, value)):.9g} after "
        f"{int(result.nit)} iterations and {int(result.nfev)} evaluations",
        MESSAGES[Status(status)],
    ]
    rows = _rows(result.x)
    bars = None if errors is None else [bar for _, bar in _rows(errors)]
    held = None if result.active is None else [side for _, side in _rows(result.active)]
    width = max(len(name) for name, _ in rows[:MOST_ROWS])
    for k, (name, number) in enumerate(rows[:MOST_ROWS]):
        line = f"  {name:{width}}  {number: .6g}"
        line += "" if bars is None else f" ± {bars[k]:.2g}"
        line += "" if held is None or not held[k] else f"  at its {_SIDES[int(held[k])]} bound"
        lines.append(line)
    if len(rows) > MOST_ROWS:
        lines.append(f"  and {len(rows) - MOST_ROWS} more")
    return "\n".join(lines)


_SIDES = {-1: "lower", 1: "upper"}


def _rows(tree: ArrayTree) -> list[tuple[str, float]]:
    """Every entry, by name."""
    rows = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = f"x{jax.tree_util.keystr(path)}"
        for place, number in np.ndenumerate(np.asarray(leaf)):
            rows.append((name + (str([int(k) for k in place]) if place else ""), float(number)))
    return rows


def _of_batch(result: Any, value: str, errors: ArrayTree | None) -> str:
    if errors is not None:
        raise ValueError("errors are for one problem; a batch has too many numbers for a text")
    status, values = np.asarray(result.status).ravel(), np.asarray(getattr(result, value)).ravel()
    nfev = np.asarray(result.nfev).ravel()
    lines = [f"{status.size} problems, {int(nfev.sum())} evaluations, {int(nfev.max())} at most"]
    for known in Status:
        count = int(np.sum(status == known))
        if count:
            lines.append(f"  {known.name:18} {count:8d}   {MESSAGES[known].split(': ')[0]}")
    worst = np.argsort(np.where(np.isnan(values), -np.inf, -values), kind="stable")[:WORST]
    listed = ", ".join(f"[{k}] {values[k]:.6g}" for k in worst)
    lines.append(f"  {value}: median {np.median(values):.6g}; largest {listed}")
    return "\n".join(lines)
