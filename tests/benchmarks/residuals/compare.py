"""Solvers compared by the lowest value that any of them reached."""

import numpy as np

from .solvers import Run


def print_table(runs: dict[str, dict[str, Run]], rtol: float) -> dict:
    """One row per solver: how often its value is the best, and at what price.

    Args:
      runs: by solver and by label of the fit, the same labels for all.
      rtol: what counts as the best value.
    """
    if not runs:
        return {}
    labels = list(next(iter(runs.values())))
    costs = np.array([[mine[label].cost for label in labels] for mine in runs.values()])
    good = np.isfinite(costs) & (costs <= np.nanmin(costs, axis=0) * (1 + rtol))
    common = good.all(axis=0)
    print(f"{len(labels)} fits; evaluations over the {common.sum()} where all reach the best")
    print(f"{'solver':24}{'best':>6}{'evals':>7}{'median':>8}{'max':>6}  claims success off it")
    rows = {}
    for (name, mine), best in zip(runs.items(), good, strict=True):
        evaluations = np.array([mine[label].nfev for label in labels])
        off = [label for label, ok in zip(labels, best, strict=True) if not ok]
        false = [label for label in off if mine[label].success]
        print(
            f"{name:24}{best.sum():6}{evaluations[common].sum():7}"
            f"{np.median(evaluations):8.0f}{evaluations.max():6}"
            f"  {len(false)}: {', '.join(false) or '-'}",
            flush=True,
        )
        rows[name] = {
            "best": int(best.sum()),
            "evaluations": int(evaluations[common].sum()),
            "false": false,
            "off": {label: mine[label].status for label in off},
        }
    return rows
