"""Scores of traces: percent solved, performance profiles, statuses."""

import collections

import numpy as np

WITHIN = (10, 30, 100, 300, 1000)
LOG_RATIO = 6.0


def evaluations_to_solve(trace: dict, problem: dict, tau: float) -> float:
    """Evaluations until f <= f_best + tau (f0 - f_best); inf where never."""
    target = problem["f_best"] + tau * (problem["f0"] - problem["f_best"])
    return next((k for k, f in trace["improvements"] if f <= target), np.inf)


def cost_table(runs: dict, problems: list, tau: float) -> np.ndarray:
    """Evaluations to solve, one row per solver; NaN where it was not run."""
    return np.array(
        [
            [
                evaluations_to_solve(traces[p["id"]], p, tau) if p["id"] in traces else np.nan
                for p in problems
            ]
            for traces in runs.values()
        ]
    )


def profile_areas(costs: np.ndarray) -> np.ndarray:
    """Area under each solver's performance profile, 1 for always the best.

    The profile is the share of problems solved within a factor r of the fewest
    evaluations (Dolan and Moré, Math. Program. 91 (2002)); the area is over
    log2 r in 0..6, divided by 6. A problem contributes 1 - log2(r) / 6 to the
    area, so no grid is needed. Unsolved and not run contribute nothing.
    """
    costs = np.where(np.isnan(costs), np.inf, costs)
    best = costs.min(axis=0)
    # inf / inf where no solver solved the problem: nobody gains
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isfinite(costs), costs / best, np.inf)
    return np.clip(1.0 - np.log2(ratio) / LOG_RATIO, 0.0, 1.0).mean(axis=1)


def print_table(runs: dict, problems: list, title: str) -> None:
    """Prints percent solved at two accuracies and within k evaluations."""
    loose, tight = (cost_table(runs, problems, tau) for tau in (1e-5, 1e-7))
    areas = profile_areas(loose)
    print(f"\n{title}: {len(problems)} problems, percent solved")
    print(f"(k and area at tau = 1e-5; area over the {len(runs)} solvers of this table)")
    columns = ("1e-5", "1e-7", *(f"k<={k}" for k in WITHIN), "area")
    print(f"{'solver':22}" + "".join(f"{c:>8}" for c in columns) + "  ended")
    for row, (name, traces) in enumerate(runs.items()):
        share = [np.mean(np.isfinite(costs[row])) for costs in (loose, tight)]
        share += [np.mean(loose[row] <= k) for k in WITHIN]
        cells = "".join(f"{100 * s:8.1f}" for s in share) + f"{areas[row]:8.3f}"
        run = [traces[p["id"]] for p in problems if p["id"] in traces]
        ended = collections.Counter(trace["ended"] for trace in run)
        how = ", ".join(f"{k} {n}" for k, n in ended.most_common())
        missing = len(problems) - len(run)
        how += f"; {missing} NOT RUN, counted as unsolved" if missing else ""
        print(f"{name:22}{cells}  {how}")


def print_unsolved(runs: dict, problems: list) -> None:
    """Prints what each solver did not solve, with how far it got."""
    print("not solved at 1e-5 (fraction of f0 - f_best left, evaluations, end):")
    for name, traces in runs.items():
        for p in problems:
            trace = traces.get(p["id"])
            if trace is None or np.isfinite(evaluations_to_solve(trace, p, 1e-5)):
                continue
            best = min((f for _, f in trace["improvements"]), default=np.nan)
            left = (best - p["f_best"]) / (p["f0"] - p["f_best"])
            print(f"  {name:22}{p['id']:14}{left:10.1e}{trace['evaluations']:7d}  {trace['ended']}")


def print_saddles(runs: dict, problems: list) -> None:
    """Prints at how many ends the Hessian has a negative eigenvalue, and where."""
    print("ends with an eigenvalue below -1e-8 times the largest magnitude:")
    for name, traces in runs.items():
        lowest = {p["id"]: traces[p["id"]].get("lowest") for p in problems if p["id"] in traces}
        seen = {key: value for key, value in lowest.items() if value is not None}
        saddles = [f"{k} {v:.0e}" for k, v in seen.items() if not v >= -1e-8]
        print(f"  {name:22}{len(saddles)} of {len(seen)}  {', '.join(saddles)}")
