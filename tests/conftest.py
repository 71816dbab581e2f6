"""Settings of the whole suite: strict JAX, eight virtual CPU devices, both precisions.

Compiling takes most of the suite's time, so that it leaves out what JAX calls most optimisations:
those of machine code, which come after everything that is counted here. It leaves loops as they
are written, too. Documents and notebooks run with all optimisations, as for a user, in processes
of their own. Where XLA for CPUs takes the flags, its older emitters of fused loops make machine
code in half of the time, there and here.
"""

import gc
import os
import subprocess
import sys
from pathlib import Path

from xla_flags import EIGHT_DEVICES, flags_of_documents, flags_of_the_suite

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
for name, value in STRICT.items():
    jax.config.update(name, value)
# A compilation read from disk would hide what compiling costs, and every trace count with it.
jax.config.update("jax_enable_compilation_cache", False)


def pytest_collection_modifyitems(items):
    """Long documents come first, so that no worker is alone with one at the end."""
    long = ("test_notebooks", "test_readme", "test_doctests")
    items.sort(key=lambda item: item.path.stem not in long)


@pytest.fixture
def rng():
    """Random numbers that are the same whichever tests ran before."""
    return np.random.default_rng(0)


CROWDED = 20_000
"""Mapped pieces of memory, of which a process may have some 65 000, and a compiled program many."""


@pytest.fixture(autouse=True, scope="module")
def bounded_programs():
    """Gives compiled programs up after a module, once there are many.

    Until then, what the modules before left behind is no matter for the collector of garbage, which
    would look at all of it again and again.
    """
    gc.collect()
    gc.freeze()
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > CROWDED:
        jax.clear_caches()
        gc.unfreeze()
        gc.collect()


@pytest.fixture(params=[jnp.float32, jnp.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


WARNINGS_OF_NEIGHBOURS = ("JAXopt is no longer maintained", "jsonschema.RefResolver is deprecated")
"""How warnings begin that NeMoS and pyhf meet in libraries of their own."""


@pytest.fixture
def run_as_shipped():
    """Runs a file under the settings of JAX that a user has, and returns what it prints.

    XLA makes every optimisation. Warnings are errors, as in the suite, and the devices are eight.
    """

    def run(path):
        ignored = [part for text in WARNINGS_OF_NEIGHBOURS for part in ("-W", f"ignore:{text}")]
        command = [sys.executable, "-W", "error", *ignored, str(path)]
        flags = flags_of_documents(os.environ["XLA_FLAGS"], EIGHT_DEVICES)
        environment = os.environ | {"XLA_FLAGS": flags}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
