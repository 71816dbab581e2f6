"""The drivers: one problem, a batch of them, many starts, and streams larger than memory."""

from jaxqn.drivers.minimize import minimize
from jaxqn.drivers.minimize_batch import BatchState, MultiStartResult, minimize_batch, multi_start
from jaxqn.drivers.minimize_stream import minimize_stream
from jaxqn.drivers.result import MinimizeResult

__all__ = [
    "BatchState",
    "MinimizeResult",
    "MultiStartResult",
    "minimize",
    "minimize_batch",
    "minimize_stream",
    "multi_start",
]
