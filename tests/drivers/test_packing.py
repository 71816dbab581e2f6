"""Small leaves in one vector: what a limited-memory run on one device does with them."""

import functools
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import killed_run
import numpy as np
import pytest

import jaxqn
from jaxqn.linalg.packing import Packed

SHAPES = {"scalar": (), "row": (3,), "table": (5, 4), "large": (1025, 4), "stack": (2, 3, 2)}


def start(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {k: jax.random.normal(key, SHAPES[k]) for k, key in zip(SHAPES, keys, strict=True)}


def fresh_objective():
    """A new function each time, so that no compiled program of another packing is found."""

    def objective(p):
        total = sum(jnp.sum(jnp.cosh(leaf - 1)) for leaf in p.values())
        return total + 10 * (p["scalar"] - jnp.sum(p["row"]) + jnp.sum(p["table"] ** 2)) ** 2

    return objective


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def solve(objective, x0, **options):
    return jaxqn.minimize(objective, x0, method="lbfgs", **options)


@pytest.fixture(scope="module")
def apart():
    """The run on several devices, every leaf by itself."""
    return solve(fresh_objective(), start(), maxiter=15)


def assert_close(a, b, tol=1e-7):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol), a, b)


@pytest.mark.usefixtures("one_device")
def test_a_packed_run_is_the_same(apart):
    result = solve(fresh_objective(), start(), maxiter=15)
    packed = result.state.point.x
    assert isinstance(packed, Packed)
    assert packed.small.shape == (1 + 3 + 20 + 12,)
    assert [leaf.shape for leaf in packed.large] == [SHAPES["large"]]
    assert (result.status, result.nit, result.nfev) == (apart.status, apart.nit, apart.nfev)
    for field in ("x", "fun", "jac"):
        assert_close(getattr(result, field), getattr(apart, field))
    assert_close(result.pairs, apart.pairs)


@pytest.mark.usefixtures("one_device")
def test_products_take_the_parameters_structure():
    result = solve(fresh_objective(), start(), maxiter=5)
    v = start(1)
    packed = result.hess_inv_product(v)
    S, Y, valid = result.pairs
    qn = jaxqn.lbfgs_memory(10)
    state = qn.init(v)
    for i in np.flatnonzero(valid):
        state = qn.update(state, *(jax.tree.map(lambda a, i=i: a[i], pairs) for pairs in (S, Y)))
    assert_close(packed, qn.apply(state, v))


@pytest.mark.usefixtures("one_device")
def test_a_diagonal_is_packed_too():
    ones = jax.tree.map(jnp.ones_like, start())
    result = solve(fresh_objective(), start(), maxiter=3, hess_inv0=ones)
    assert isinstance(result.state.approx.start, Packed)
    assert result.nit == 3


@pytest.mark.parametrize("first", ["packed", "apart"])
def test_it_continues_where_it_is_packed_otherwise(monkeypatch, first, apart):
    for stage in ("packed", "apart") if first == "packed" else ("apart", "packed"):
        monkeypatch.setattr(jax, "device_count", lambda stage=stage: 1 + 7 * (stage == "apart"))
        if stage == first:
            saved = jax.device_get(solve(fresh_objective(), start(), maxiter=7).state)
        else:
            state = jax.tree.map(jnp.asarray, saved)
            result = solve(fresh_objective(), start(), maxiter=15, state=state)
    assert (result.nit, result.nfev) == (apart.nit, apart.nfev)
    assert_close(result.x, apart.x)


@pytest.mark.usefixtures("one_device")
def test_few_or_mixed_leaves_are_left_alone():
    for x0 in (jnp.zeros(3), {"a": jnp.zeros(3)}, {"a": jnp.zeros(5000), "b": jnp.zeros(5000)}):
        result = solve(lambda x: sum(jnp.sum(jnp.cosh(v - 1)) for v in jax.tree.leaves(x)), x0)
        assert jax.tree.structure(result.state.point.x) == jax.tree.structure(x0)
        assert bool(result.success)


@pytest.mark.usefixtures("one_device")
def test_a_batch_of_packed_runs():
    x0 = jax.vmap(lambda key: {"a": jax.random.normal(key, (2,)), "b": jnp.ones(())})(
        jax.random.split(jax.random.key(0), 3)
    )

    def objective(p):
        return jnp.sum(jnp.cosh(p["a"] - 1)) + (p["b"] - p["a"][0]) ** 2

    run = functools.partial(jaxqn.minimize, objective, method="lbfgs", maxiter=20)
    together = jax.vmap(run)(x0)
    for i in range(3):
        assert_close(
            jax.tree.map(lambda a, i=i: a[i], together.x),
            run(jax.tree.map(lambda a, i=i: a[i], x0)).x,
        )


@pytest.mark.parametrize("delay", [random.Random(seed).uniform(0, 1) for seed in range(1)])
def test_killed_at_any_moment_and_continued(tmp_path, delay):
    """A process that saves every iteration is killed, and another takes its last state up."""
    saved = tmp_path / "state.pickle"
    command = [sys.executable, str(Path(killed_run.__file__)), str(saved)]
    victim = subprocess.Popen(command, env=os.environ | {"PACE": "0.05"})
    try:
        while not saved.exists():
            assert victim.poll() is None
            time.sleep(0.01)
        time.sleep(delay)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    reached = int(pickle.loads(saved.read_bytes()).nit)
    assert 0 < reached < killed_run.ITERATIONS, "it was to be killed before its end"
    assert subprocess.run(command, check=False).returncode == 0
    end = pickle.loads(saved.read_bytes())
    whole = jax.device_get(killed_run.solve(killed_run.ITERATIONS).state)
    jax.tree.map(np.testing.assert_array_equal, end, whole)
