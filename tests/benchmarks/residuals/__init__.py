"""Least squares: residual functions, `jaxqn.least_squares` beside its peers.

Parts, chosen by ``--parts``; without it all of them run:

  nist      correct digits on the regression problems of NIST, default stop rules
  nist32    the same fits in float32, in certified standard deviations
  traces    evaluations until the sum of squares is that of NIST, no stop rule
  cutest    residual problems of CUTEst (sif2jax), scored from traces
  bounds    NIST fits whose solution a bound cuts off
  losses    NIST fits with outliers, three robust losses
  laws      changes of units and batches that must not change a count
  batch     8192 two-peak fits, float64 and float32
  gpufit    2-D Gaussians on 5 x 5 points, float32, at most ten iterations
  compile   trace + compile over that of residuals and Jacobian alone
  pinn      the 3-D Poisson network in residual space

The data of NIST are read from the folder that ``--nist`` or the environment
variable ``NIST`` names; without it those parts are skipped (see `nist`). An
evaluation is one of the residuals, with or without their Jacobian.
"""

import os

from . import batches, bounds, compile, cutest, digits, laws, losses, network, traces

PARTS = {
    "nist": digits.nist64,
    "nist32": digits.nist32,
    "traces": traces.main,
    "cutest": cutest.main,
    "bounds": bounds.main,
    "losses": losses.main,
    "laws": laws.main,
    "batch": batches.two_peaks,
    "gpufit": batches.gpufit,
    "compile": compile.main,
    "pinn": network.main,
}
NEED_NIST = ("nist", "nist32", "traces", "bounds", "losses", "laws")


def add_arguments(parser):
    group = parser.add_argument_group("residuals")
    group.add_argument("--parts", help=f"comma-separated, of {', '.join(PARTS)}")
    group.add_argument(
        "--nist", metavar="FOLDER", default=os.environ.get("NIST"), help="nist.json and models.py"
    )
    group.add_argument("--fits", type=int, default=20_000, help="fits of gpufit (20 000)")


def main(options) -> dict:
    """Runs the chosen parts and prints their tables."""
    chosen = options.parts.split(",") if options.parts else list(PARTS)
    results = {}
    for name in chosen:
        if name not in PARTS:
            raise ValueError(f"unknown part {name!r}; known: {', '.join(PARTS)}")
        if name in NEED_NIST and not options.nist:
            print(f"skipped: {name} (name the folder of the data by --nist)")
            continue
        print(f"\n-- {name} --", flush=True)
        results[name] = PARTS[name](options)
    return results
