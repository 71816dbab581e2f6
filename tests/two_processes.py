"""One of two processes of a distributed run: ``python two_processes.py ADDRESS RANK``.

Parameters and data are sharded over the devices of both, two each. Process 0 prints how it went.
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxqn

N, ROWS = 64, 256


def problem():
    """A nonlinear regression: parameters and data."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, N)).astype(np.float32)
    t = np.tanh(X @ rng.normal(size=N).astype(np.float32) / 8)
    return {"w": np.zeros(N, np.float32), "b": np.zeros((), np.float32)}, (X, t)


def loss(p, X, t):
    return jnp.mean((jnp.tanh(X @ p["w"] + p["b"]) - t) ** 2)


def solve(params, data):
    return jaxqn.minimize(loss, params, data, method="lbfgs", maxiter=10)


def main(address: str, rank: int) -> None:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"  # read at first use
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    mesh = Mesh(jax.devices(), "devices")

    def placed(array, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    params, (X, t) = problem()
    params = {"w": placed(params["w"], "devices"), "b": placed(params["b"])}
    result = jax.jit(solve)(params, (placed(X, "devices"), placed(t, "devices")))
    history = result.state.approx.s["w"]
    local = [shard.data.shape for shard in history.addressable_shards]
    if rank == 0:
        print(len(jax.devices()), local, float(result.fun), int(result.nit), int(result.nfev))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
