"""XLA's flags for the suite. JAX reads them when it starts, so that nothing here imports it."""

import os
import subprocess
import sys

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
FAST_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""The older emitters of fused loops on CPUs, which make machine code in half of the time, and the
code of a program in one piece, which saves a sixth of what is left."""
LOOPS_AS_WRITTEN = (
    "--xla_disable_hlo_passes="
    "simplify-while-loops,while-loop-trip-count-annotator,while-loop-invariant-code-motion"
)
"""No search for what a loop computes in vain: it takes a third of a compilation of the suite's."""


def flags_of_the_suite(flags: str) -> str:
    """The given flags, eight virtual devices, and what makes compiling cheap where XLA has it."""
    if LOOPS_AS_WRITTEN in flags:  # a worker has those of its controller
        return flags
    flags = f"{flags} {EIGHT_DEVICES} {LOOPS_AS_WRITTEN}"
    return f"{flags} {FAST_COMPILE}" if _are_known(FAST_COMPILE) else flags


def flags_of_documents(flags: str, devices: str = "") -> str:
    """Of processes with every optimisation, given the suite's flags; one device unless told."""
    return f"{devices} {FAST_COMPILE}" if FAST_COMPILE in flags else devices


def _are_known(flags: str) -> bool:
    """Whether this XLA takes flags; a process with an unknown one ends at once."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, env=environment, capture_output=True, check=False)
    return run.returncode == 0
