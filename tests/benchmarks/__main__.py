"""Runs the benchmarks: ``python -m tests.benchmarks [workload ...]``.

Workloads, each printing jaxqn and every installed peer side by side:

  cutest      solving power on CUTEst problems, scored from traces
  bounded     the same on CUTEst problems with bounds
  applied     the same on models of statistics, engineering and physics
  rosenbrock  evaluations of every method on 2-D Rosenbrock
  dense       time per iteration over one read of the n-by-n matrix
  limited     time per iteration over one read of the limited-memory history
  batch       independent small fits per second
  first_call  a fresh process: import, compile and fit three parameters
  compile     trace + compile of a solve over that of its objective
  pinn        a physics-informed network for the 3-D Poisson equation
  roots       square systems of equations, and a fixed point of dimension 1e4
  residuals   least squares: NIST, CUTEst, bounds, losses, batches, a network
  derivatives derivatives of solutions: accuracy, time and memory
  errors      covariances, the check of nonlinearity, profile intervals
  behaviour   scaling, float32 and optax-composition cases, pass or fail
  honest      how often CONVERGED is not true, and a minimum not called one
  eager       cost of a second eager call
  newton      Newton's method with and without the spectral correction
  eigenpairs  extremal eigenpairs of a network's Hessian
  digits      SGD and Adam with the spectral correction, for a CNN and an RNN
  training    mini-batch methods on a CNN, an RNN and a transformer
  fingerprint hashes of traced programs, to show that a rearrangement changes none

A peer that is not installed is skipped by name; the environment variable
SSBROYDEN_PORT may name a file with the self-scaled optax port (see `peers`).
Times are medians of interleaved repeats and are given as ratios within the run.

The CUTEst traces of the peers need not be taken twice:

  python -m tests.benchmarks cutest --solvers peers --out peers.json
  python -m tests.benchmarks cutest --solvers jaxqn --merge peers.json
"""

import argparse
import importlib
import json
import os
import pathlib
import platform
import time

WORKLOADS = (
    "rosenbrock",
    "cutest",
    "bounded",
    "applied",
    "dense",
    "limited",
    "batch",
    "first_call",
    "compile",
    "pinn",
    "roots",
    "residuals",
    "derivatives",
    "errors",
    "behaviour",
    "honest",
    "eager",
    "newton",
    "eigenpairs",
    "digits",
    "training",
    "fingerprint",
)
MEASUREMENTS = WORKLOADS[:-1]
"""What runs unless something is named: all that measures."""

VERSIONS = ("jax", "jaxqn", "optax", "optimistix", "jaxopt", "scipy", "scikit-learn", "sif2jax")


def parse(argv=None):
    """Parses the command line; each workload adds the options it needs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "workloads", nargs="*", metavar="workload", help=f"any of {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--quick", action="store_true", help="smaller and fewer")
    parser.add_argument(
        "--solvers", help='comma-separated names; "jaxqn" and "peers" name all of a kind'
    )
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--out", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--verbose", action="store_true", help="print as it goes")
    for name in WORKLOADS:
        module = importlib.import_module(f".{name}", __package__)
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser)
    options = parser.parse_args(argv)
    unknown = set(options.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workload {unknown}; known: {', '.join(WORKLOADS)}")
    options.solvers = options.solvers.split(",") if options.solvers else None
    return options


def print_versions() -> dict:
    """Prints what runs, so that a table can be read later."""
    from importlib import metadata

    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in versions.items())
    )
    return versions


def main(argv=None) -> None:
    """Runs the chosen workloads in order and writes the JSON file."""
    options = parse(argv)
    import jax

    jax.config.update("jax_enable_x64", options.dtype == "float64")
    results = {"versions": print_versions(), "dtype": options.dtype}
    for name in options.workloads or MEASUREMENTS:
        print(f"\n== {name} ==", flush=True)
        started = time.perf_counter()
        module = importlib.import_module(f".{name}", __package__)
        results[name] = module.main(options)
        print(f"({name} took {time.perf_counter() - started:.0f} s)", flush=True)
        if options.out:  # after each workload, so that a stop loses little
            pathlib.Path(options.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
