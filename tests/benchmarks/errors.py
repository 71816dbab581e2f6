"""Error bars: covariances, the check of nonlinearity, profile intervals, batches.

Parts, chosen by ``--error-parts``; without it all of them run:

  digits    correct digits of the certified standard deviations of NIST
  profile   the linearised profile check on NIST beside true profiles, and the
            intervals of `jaxqn.profile_intervals` beside SciPy's nested fits
  minos     `jaxqn.profile_intervals` beside iminuit's MINOS on five likelihoods
  batch     8192 two-peak fits: error bars over the fits alone

NIST's data are read as by the workload ``residuals``.
"""

import math
import time

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from . import batch, timing
from .likelihoods import LIKELIHOODS
from .residuals import batches, nist

GAP, AGREE = 0.5, 0.05
"""A check flags from here on; a true profile agrees within this."""


def solved(problem):
    """The objective of a problem and its fit, which starts at the certified solution."""
    import jaxqn

    objective = jaxqn.sum_of_squares(problem.residual)
    start = jnp.asarray(problem.certified)
    return objective, jaxqn.minimize(objective, start, problem.data)


def digits(options) -> dict:
    """Correct digits of the worst standard deviation of every problem, at our own solution."""
    import jaxqn

    rows = {}
    for problem in nist.problems(options):
        objective, fit = solved(problem)
        found = jaxqn.covariance(objective, fit.x, problem.data, noise="estimated")
        rows[problem.name] = {
            "digits": nist.digits(found.standard_errors, problem.sd),
            "code": int(found.code),
            "nonlinearity": float(jnp.max(found.nonlinearity)),
            "condition": float(found.condition),
            "offset": float(found.offset),
        }
        print(
            f"{problem.name:10}" + "".join(f"  {k} {v:.3g}" for k, v in rows[problem.name].items())
        )
    good = sum(row["digits"] >= 9 for row in rows.values())
    print(f"at least 9 digits: {good} of {len(rows)}")
    return rows


def true_profile(problem, x, tangent, i):
    """t at both points x ± tangent of parameter i, the others refitted by SciPy from there."""
    from scipy import optimize

    residual = jax.jit(problem.residual)
    jacobian = jax.jit(jax.jacfwd(problem.residual))
    keep = np.arange(x.size) != i
    least = np.sum(np.asarray(residual(x, *problem.data)) ** 2)
    variance, ts = least / (problem.data[1].size - x.size), []
    for sign in (1, -1):
        z = x + sign * tangent

        def full(b, z=z):
            p = z.copy()
            p[keep] = b
            return p

        best = np.sum(np.asarray(residual(z, *problem.data)) ** 2)
        if keep.any() and np.isfinite(best):
            try:
                fit = optimize.least_squares(
                    lambda b: np.asarray(residual(full(b), *problem.data)),
                    z[keep],
                    jac=lambda b: np.asarray(jacobian(full(b), *problem.data))[:, keep],
                    x_scale="jac",
                    xtol=1e-13,
                    ftol=1e-13,
                    gtol=1e-13,
                    max_nfev=500,
                )
                best = 2 * fit.cost
            except ValueError:
                best = np.nan
        ts.append(math.sqrt(max(best - least, 0) / variance))
    return ts


def profile(options) -> dict:
    """The check beside the truth, two standard errors off; then the intervals."""
    import jaxqn

    rows, agreeing, flagged = {}, 0, 0
    for problem in nist.problems(options):
        objective, fit = solved(problem)
        x = np.asarray(fit.x)
        found = jaxqn.covariance(objective, fit.x, problem.data, noise="estimated")
        errors, C = np.asarray(found.standard_errors), np.asarray(found.matrix)
        truth = np.zeros(x.size)
        for i in range(x.size):
            ts = true_profile(problem, x, 2 * C[i] / errors[i], i)
            with np.errstate(divide="ignore"):
                truth[i] = np.max(np.abs(np.log(np.array(ts) / 2)))
        check = np.asarray(found.nonlinearity)
        worst, seen = truth.max(), check.max()
        off = np.max(np.abs(np.minimum(check, 9) - np.minimum(truth, 9)))
        agreeing += bool(off <= AGREE)
        flagged += bool(off > AGREE and seen > GAP)
        started = time.perf_counter()
        ends = jaxqn.profile_intervals(objective, fit, problem.data, noise="estimated")
        jax.block_until_ready(ends)
        codes = np.concatenate([ends.lower_code, ends.upper_code])
        rows[problem.name] = {
            "check": float(seen),
            "true": float(worst),
            "off": float(off),
            "codes": codes.tolist(),
            "evaluations": int(ends.nfev),
            "rounds": int(ends.rounds),
            "seconds": time.perf_counter() - started,
        }
        print(
            f"{problem.name:10} check {seen:7.3f}  true {worst:7.3f}  off by {off:6.3f}   ends: "
            f"{int(ends.nfev):4} evaluations in {int(ends.rounds):2} rounds for {codes.size:2}, "
            f"codes {sorted(set(codes.tolist()))}",
            flush=True,
        )
    print(f"within {AGREE:.0%} of the true profile: {agreeing}; of the others flagged: {flagged}")
    return rows


def minos(_) -> dict:
    """Ends over widths, and evaluations: ours with gradients, Minuit's with and without."""
    import jaxqn

    try:
        import iminuit
    except ImportError:
        print("skipped: iminuit (not installed)")
        return {}
    rows = {}
    for name, fun, start, args, true in LIKELIHOODS:
        x0 = jnp.asarray(start)
        fit = jaxqn.minimize(fun, x0, args)
        ends = jaxqn.profile_intervals(fun, fit, args, level=true)
        value, slope = jax.jit(fun), jax.jit(jax.grad(fun))
        counts = {"value": 0, "slope": 0}

        def f(x):
            counts["value"] += 1  # noqa: B023
            return float(value(jnp.asarray(x), *args))  # noqa: B023

        def g(x):
            counts["slope"] += 1  # noqa: B023
            return np.asarray(slope(jnp.asarray(x), *args))  # noqa: B023

        results = {}
        for kind, grad in (("differences", None), ("gradients", g)):
            minuit = iminuit.Minuit(f, np.asarray(fit.x), grad=grad)
            minuit.errordef, minuit.strategy, minuit.tol = 0.5, 2, 1e-6
            minuit.migrad()
            counts.update(value=0, slope=0)
            minuit.minos(cl=true)
            errors = list(minuit.merrors.values())
            valid = np.array([[e.lower_valid, e.upper_valid] for e in errors])
            away = np.array([[e.lower, e.upper] for e in errors])
            results[kind] = dict(counts), np.array(minuit.values)[:, None] + away, valid
        _, theirs, valid = results["gradients"]
        ours = np.stack([ends.lower, ends.upper], axis=1)
        width = theirs[:, 1] - theirs[:, 0]
        off = np.where(valid, np.abs(ours - theirs) / width[:, None], 0)
        rows[name] = {
            "off": float(np.max(off)),
            "not valid": int(np.sum(~valid)),
            "open": int(np.sum(np.isinf(ours))),
            "evaluations": int(ends.nfev),
            "rounds": int(ends.rounds),
            "ends": ours.size,
            "minuit": {kind: counts for kind, (counts, *_) in results.items()},
            "code": int(jaxqn.covariance(fun, fit.x, args).code),
        }
        row = rows[name]
        print(
            f"{name:10} {ours.size} ends, off by {row['off']:.1e} of the width, "
            f"{row['open']} open, {row['not valid']} not valid by MINOS; "
            f"evaluations {row['evaluations']} in {row['rounds']} rounds; MINOS {row['minuit']}",
            flush=True,
        )
    return rows


def bars(options) -> dict:
    """Fits alone, and with error bars, without and with the check."""
    import jaxqn

    count = 256 if options.quick else batches.COUNT
    x0, data = batch.draw(count)
    objective = jaxqn.sum_of_squares(batches.residual)

    def fits(x0, data):
        return jaxqn.minimize_batch(objective, x0, (data,), method="lm").x

    def errors(profile):
        def run(x, data):
            def one(x, y):
                found = jaxqn.covariance(objective, x, (y,), noise="estimated", profile=profile)
                return found.standard_errors, found.code

            return jax.vmap(one)(x, data)

        return run

    x = fits(x0, data)
    calls = {
        "fits": timing.compiled(fits, x0, data),
        "errors": timing.compiled(errors(False), x, data),
        "errors, checked": timing.compiled(errors(True), x, data),
    }
    times = timing.interleaved(calls, 3 if options.quick else 7)
    codes = np.asarray(calls["errors, checked"]()[1])
    rows = {name: {"seconds": t, "over fits": t / times["fits"]} for name, t in times.items()}
    for name, row in rows.items():
        print(f"{name:18} {row['seconds']:.3f} s, {row['over fits']:.2f} of the fits alone")
    print("codes: " + ", ".join(f"{c}: {np.sum(codes == c)}" for c in np.unique(codes)))
    return rows


PARTS = {"digits": digits, "profile": profile, "minos": minos, "batch": bars}
NEED_NIST = ("digits", "profile")


def add_arguments(parser):
    group = parser.add_argument_group("errors")
    group.add_argument("--error-parts", help=f"comma-separated, of {', '.join(PARTS)}")


def main(options) -> dict:
    """Runs the chosen parts."""
    chosen = options.error_parts.split(",") if options.error_parts else list(PARTS)
    results = {}
    for name in chosen:
        if name in NEED_NIST and not options.nist:
            print(f"skipped: {name} (name the folder of the data by --nist)")
            continue
        print(f"\n-- {name} --", flush=True)
        results[name] = PARTS[name](options)
    return results
