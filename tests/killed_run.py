"""A run that saves its state after every iteration, and may be killed; see test_packing.py."""

import os
import pickle
import sys
import time
from pathlib import Path

import conftest  # noqa: F401  the settings of the suite
import jax
import jax.numpy as jnp

import jaxqn

ITERATIONS = 60


def objective(p):
    x = jnp.concatenate([p["a"], p["b"]])
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def solve(maxiter, **options):
    x0 = {"a": jnp.full(20, -1.2), "b": jnp.ones(20)}
    return jaxqn.minimize(objective, x0, method="lbfgs", gtol=0.0, maxiter=maxiter, **options)


def main(saved: Path) -> None:
    state = None
    if saved.exists():
        state = jax.tree.map(jnp.asarray, pickle.loads(saved.read_bytes()))

    def save(result):
        half = saved.with_suffix(".half")
        half.write_bytes(pickle.dumps(jax.device_get(result.state)))
        os.replace(half, saved)
        time.sleep(float(os.environ.get("PACE", 0)))

    solve(ITERATIONS, state=state, callback=save)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
