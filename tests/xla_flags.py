"""XLA's flags for the suite. JAX reads them when it starts, so that nothing here imports it."""

import os
import subprocess
import sys

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
"""The older emitters of fused loops on CPUs: machine code in half of the time."""


def flags_of_the_suite(flags: str) -> str:
    """The given flags, eight virtual devices, and the older emitters where XLA has them."""
    if OLDER_EMITTERS in flags:  # a worker has those of its controller
        return flags
    flags = f"{flags} {EIGHT_DEVICES}"
    return f"{flags} {OLDER_EMITTERS}" if _is_known(OLDER_EMITTERS) else flags


def _is_known(flag: str) -> bool:
    """Whether this XLA takes a flag; a process with an unknown one ends at once."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, env=environment, capture_output=True, check=False)
    return run.returncode == 0
