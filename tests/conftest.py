"""Settings of the whole suite: strict JAX, eight virtual CPU devices, both precisions.

Compiling takes most of the suite's time, so that it leaves out what JAX calls most optimisations:
those of machine code, which come after everything that is counted here. Documents and notebooks
run with all of them, as for a user. Where XLA for CPUs takes the flag, its older emitters of fused
loops make machine code in half of the time.
"""

import gc
import os
from pathlib import Path

from xla_flags import flags_of_the_suite

os.environ["XLA_FLAGS"] = flags_of_the_suite(os.environ.get("XLA_FLAGS", ""))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

STRICT = {
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_disable_most_optimizations": True,
}
AS_SHIPPED = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_most_optimizations": False,
}


def configure(settings):
    for name, value in settings.items():
        jax.config.update(name, value)


configure(STRICT)
# A compilation read from disk would hide what compiling costs, and every trace count with it.
jax.config.update("jax_enable_compilation_cache", False)


def pytest_collection_modifyitems(items):
    """Long documents come first, so that no worker is alone with one at the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_notebooks", "test_readme"))


@pytest.fixture
def rng():
    """Random numbers that are the same whichever tests ran before."""
    return np.random.default_rng(0)


CROWDED = 20_000
"""Mapped pieces of memory, of which a process may have some 65 000, and a compiled program many."""


@pytest.fixture(autouse=True, scope="module")
def bounded_programs():
    """Gives compiled programs up after a module, once there are many."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > CROWDED:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(params=[jnp.float32, jnp.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def jax_as_shipped():
    """JAX as a user finds it: float32, standard promotion. What documents run under."""
    configure(AS_SHIPPED)
    yield
    configure(STRICT)
