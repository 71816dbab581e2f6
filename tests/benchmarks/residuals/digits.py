"""NIST's regression problems under everybody's own stop rules.

A run is solved with four correct digits of the worst parameter; it is a false
success where the solver claims convergence with fewer. In float32 the measure
is the certified standard deviation of each parameter. Lanczos1, whose residuals
are rounding, does not count there.
"""

import collections

import numpy as np

from . import nist, solvers

SOLVED = 4
GOOD = 0.85
"""Runs are common where every solver of this share of solved runs solves them."""
FITTERS = (
    solvers.ours("structured"),
    solvers.ours("lm"),
    solvers.scipy("lm"),
    solvers.scipy("lm", solvers.TIGHT),
    solvers.scipy("trf"),
    solvers.scipy("trf", solvers.TIGHT, x_scale="jac"),
    solvers.optimistix(1e-8),
    solvers.optimistix(1e-12),
    solvers.jaxopt(1e-12),
    solvers.minimize(),
)


def runs_of(problem, fitters, data, dtype) -> list[dict]:
    """Both starts of one problem, by every solver."""
    rows = []
    for fitter in fitters:
        solve = fitter.make(problem.residual)
        for label, start in problem.runs():
            run = solve(np.asarray(start, dtype), data)
            x = np.asarray(run.x, float)
            sds = np.max(np.abs(x - problem.certified) / problem.sd)
            rows.append(
                {
                    "run": label,
                    "solver": fitter.name,
                    "digits": nist.digits(x, problem.certified),
                    "sds": float(np.nan_to_num(sds, nan=np.inf)),
                    "evaluations": run.nfev,
                    "success": run.success,
                    "status": run.status,
                }
            )
    return rows


def collect(options, fitters, dtype) -> dict[str, list[dict]]:
    """All rows, by solver."""
    rows = collections.defaultdict(list)
    for problem in nist.problems(options):
        data = tuple(np.asarray(a, dtype) for a in problem.data)
        for row in runs_of(problem, fitters, data, dtype):
            rows[row["solver"]].append(row)
            if options.verbose:
                print(f"  {row}", flush=True)
    return rows


def common_runs(rows: dict[str, list[dict]]) -> set[str]:
    """Runs that all good solvers solve."""
    solved = {
        name: {row["run"] for row in mine if row["digits"] >= SOLVED} for name, mine in rows.items()
    }
    good = [solved[name] for name, mine in rows.items() if len(solved[name]) >= GOOD * len(mine)]
    return set.intersection(*good) if good else set()


def statuses(rows) -> str:
    """How often each end occurred."""
    counts = collections.Counter(row["status"] for row in rows)
    return ", ".join(f"{status}: {count}" for status, count in counts.most_common())


def nist64(options) -> dict:
    """Correct digits in float64."""
    rows = collect(options, solvers.available(FITTERS, options), np.float64)
    common = common_runs(rows)
    print(f"({len(common)}): evaluations over the {len(common)} common runs")
    columns = f"{'solver':24}{'solved':>8}{'>=6':>5}{'>=8':>5}{'digits':>8}{'evals':>8}"
    print(f"{columns}{f'({len(common)})':>7}{'median':>8}{'max':>6}  false success; ends")
    for name, mine in rows.items():
        digits = np.array([row["digits"] for row in mine])
        solved = digits >= SOLVED
        evaluations = np.array([row["evaluations"] for row in mine])
        shared = sum(row["evaluations"] for row in mine if row["run"] in common)
        false = [r["run"] for r in mine if r["success"] and r["digits"] < SOLVED]
        print(
            f"{name:24}{f'{solved.sum()}/{len(mine)}':>8}{(digits >= 6).sum():5}"
            f"{(digits >= 8).sum():5}{np.median(digits[solved]):8.1f}{evaluations.sum():8}"
            f"{shared:7}{np.median(evaluations[solved]):8.0f}{evaluations[solved].max():6}"
            f"  {', '.join(false) or '-'}; {statuses(mine)}",
            flush=True,
        )
    return rows


def nist32(options) -> dict:
    """Standard deviations off the certified values in float32, ours alone."""
    fitters = [f for f in FITTERS[:2] if f in solvers.available(FITTERS[:2], options)]
    with solvers.float32():
        rows = collect(options, fitters, np.float32)
    for name, all_rows in rows.items():
        mine = [row for row in all_rows if not row["run"].startswith("Lanczos1")]
        within = sum(row["sds"] <= 0.1 for row in mine)
        cut = [row["run"] for row in mine if row["status"] in ("MAX_FUN", "MAX_ITER")]
        far = [f"{r['run']} ({r['sds']:.3g})" for r in mine if r["sds"] > 1 and r["success"]]
        near = sum(row["sds"] <= 1 for row in mine)
        total = sum(row["evaluations"] for row in mine)
        print(f"{name}: {within}/{len(mine)} within 0.1 sd, {near} within 1; {total} evaluations")
        print(f"  did not end by themselves: {', '.join(cut) or '-'}")
        print(f"  beyond 1 sd and CONVERGED: {', '.join(far) or '-'}")
        print(f"  {statuses(mine)}", flush=True)
    return rows
