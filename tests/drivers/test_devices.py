"""Large parameters: sharded over devices and processes, saved and restored."""

import functools
import os
import pickle
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from xla_flags import flags_of_documents

import jaxqn

GUIDE = Path(__file__).parents[2] / "notebooks" / "large_models.md"
ROTATION = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0])


def objective(p):
    """Rosenbrock's valley between `a` and `b`, and products of `w` with a matrix."""
    valley = jnp.sum(100 * (p["b"] - p["a"] ** 2) ** 2 + (1 - p["a"]) ** 2)
    return valley + jnp.sum(jnp.cosh(p["w"] @ ROTATION - 1)) + p["c"] ** 2


def start():
    return {
        "a": jnp.full(32, -1.2),
        "b": jnp.ones(32),
        "w": jnp.ones((16, 8)) * 2,
        "c": jnp.array(3.0),
    }


def placed(params, devices):
    """The parameters over a mesh of so many devices, by their first axis."""
    mesh = Mesh(jax.devices()[:devices], "model")
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("model",)))
    return jax.device_put(params, {k: whole if k == "c" else split for k in params})


solve = functools.partial(jaxqn.minimize, objective, method="lbfgs")


@pytest.fixture(scope="module")
def alone():
    return solve(start(), maxiter=12)


def test_sharded_parameters_give_the_same_run(alone):
    result = solve(placed(start(), 8), maxiter=12)
    assert (result.status, result.nit, result.nfev) == (alone.status, alone.nit, alone.nfev)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), result.x, alone.x
    )


def test_the_state_is_sharded_as_the_parameters_are():
    x0 = placed(start(), 8)
    result = solve(x0, maxiter=3)
    for name in ("a", "b", "w"):
        size = x0[name].size
        for vector in (result.x, result.state.point.g, result.state.plan):
            assert {s.data.size for s in vector[name].addressable_shards} == {size // 8}
        for stack in (result.state.approx.s, result.state.approx.y):
            assert {s.data.size for s in stack[name].addressable_shards} == {10 * size // 8}


@pytest.mark.compiled
def test_vectors_never_gather():
    """Only sums travel: all-reduces of scalars and of m-vectors, and not many of them.

    Of long vectors five of them, the evidence of the run, are made only near an end.
    """
    compiled = jax.jit(solve).lower(placed(start(), 8)).compile().as_text()
    assert not re.search(r" (all-gather|all-to-all|collective-permute)(-start)?\(", compiled)
    reductions = re.findall(r" = (.*?) all-reduce(?:-start)?\(", compiled)
    assert 0 < len(reductions) <= 11
    sizes = [
        np.prod([int(d) for d in dims.split(",") if d])
        for shapes in reductions
        for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]
    assert max(sizes) <= 2 * 10 * 2


def test_saved_and_restored_it_continues_bit_for_bit(alone):
    for stop in (1, 4, 11):
        saved = pickle.dumps(jax.device_get(solve(start(), maxiter=stop).state))
        state = jax.tree.map(jnp.asarray, pickle.loads(saved))
        result = solve(start(), state=state, maxiter=12)
        jax.tree.map(np.testing.assert_array_equal, result, alone)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_it_continues_on_another_number_of_devices(devices, alone):
    """A state saved by four devices, handed to others."""
    half = solve(placed(start(), 4), maxiter=6)
    saved = jax.tree.map(jnp.asarray, jax.device_get(half.state))
    x0 = placed(start(), devices)
    replicated = NamedSharding(x0["a"].sharding.mesh, PartitionSpec())
    state = jax.device_put(saved, replicated)
    result = solve(x0, state=state, maxiter=12)
    assert (result.nit, result.nfev) == (alone.nit, alone.nfev)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), result.x, alone.x
    )


def equations(p):
    """A weakly coupled system with the structure of the parameters; `c` feels them all."""
    mean = jnp.mean(p["a"]) + jnp.mean(p["w"])
    return {
        "a": p["a"] + 0.3 * jnp.tanh(p["b"]) - 1,
        "b": p["b"] ** 3 + p["b"] - 0.5 * p["a"],
        "w": jnp.sinh(p["w"]) + 0.2 * p["w"] @ ROTATION - mean,
        "c": p["c"] - jnp.cos(p["c"]) + mean,
    }


def test_a_root_is_sharded_as_the_start_is():
    """And it is the root, found by the same trips, of one device."""
    find = functools.partial(jaxqn.root, equations, method="lbroyden", tol=1e-11)
    alone, x0 = find(start()), placed(start(), 8)
    result = find(x0)
    assert bool(alone.success)
    assert (result.status, result.nit, result.nfev) == (alone.status, alone.nit, alone.nfev)
    for leaf in jax.tree.leaves(equations(result.x)):
        np.testing.assert_allclose(leaf, 0, atol=1e-11)
    for name, known in alone.x.items():
        np.testing.assert_allclose(result.x[name], known, rtol=1e-9)
        for vector in (result.x, result.fun, result.state.plan):
            assert vector[name].sharding.is_equivalent_to(x0[name].sharding, known.ndim)
    for name in ("a", "b", "w"):
        for stack in (result.state.approx.s, result.state.approx.y):
            assert {s.data.size for s in stack[name].addressable_shards} == {
                10 * x0[name].size // 8
            }


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (3, 2, 1)])
def test_parameters_of_any_shape(shape):
    """A bare array is a vector, whatever its shape, and a scalar too."""
    result = jaxqn.minimize(lambda x: jnp.sum(jnp.cosh(x - 1)), jnp.zeros(shape), method="lbfgs")
    assert bool(result.success)
    np.testing.assert_allclose(result.x, np.ones(shape), atol=1e-6)


def test_two_processes(tmp_path):
    """The guide's program in two processes on this machine, against one process alone."""
    program = tmp_path / "fit.py"
    marked = r"<!-- program: fit.py -->\n```py\n(.*?)^```"
    program.write_text(re.search(marked, GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)[1])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    two_devices = "--xla_force_host_platform_device_count=2"
    flags = flags_of_documents(os.environ["XLA_FLAGS"], two_devices)
    environment = os.environ | {"XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), address, "2", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = re.search(r"^4 \[\(10, 16\), \(10, 16\)\] (\S+) (\d+) (\d+)$", outputs[0], re.M)
    assert found, outputs[0]
    alone = runpy.run_path(str(program), run_name="fit")
    params, data = alone["problem"]()
    one = alone["fit"](params, data)
    assert (int(found[2]), int(found[3])) == (one.nit, one.nfev)
    assert float(found[1]) == pytest.approx(float(one.fun), rel=1e-2)
