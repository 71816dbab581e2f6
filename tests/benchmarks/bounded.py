"""Solving power on bounded CUTEst problems, and evaluations outside of the box.

The problems, the scores and the options are those of ``cutest``; every solver
is given the bounds, and the trace counts the points that miss them.
"""

import importlib.util
import sys
import warnings

from . import cutest, peers


def main(options) -> dict:
    """Runs the workload and prints its tables."""
    if "sif2jax" not in sys.modules and importlib.util.find_spec("sif2jax") is None:
        print("skipped: bounded (sif2jax is not available)")
        return {}
    warnings.filterwarnings("ignore", message="Explicitly requested dtype")
    names = options.solvers or ["jaxqn-osbfgs", "jaxqn-lbfgs", "peers"]
    found = cutest.run_all(options, "bounded", peers.available(names, peers.BOUNDED))
    for name, traces in found["runs"].items():
        outside = sum(trace.get("outside", 0) for trace in traces.values())
        total = sum(trace["evaluations"] for trace in traces.values())
        print(f"{name}: {outside} of {total} evaluations outside of the box")
    return found
