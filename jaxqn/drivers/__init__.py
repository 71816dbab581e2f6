"""The drivers: one problem, a batch of them, many starts, and streams larger than memory."""

from jaxqn.drivers.covariance_result import REASONS, Covariance, Transformed
from jaxqn.drivers.curve_fit import curve_fit
from jaxqn.drivers.fixed_point import fixed_point
from jaxqn.drivers.least_squares import LeastSquaresResult, least_squares
from jaxqn.drivers.minimize import minimize
from jaxqn.drivers.minimize_batch import BatchState, MultiStartResult, minimize_batch, multi_start
from jaxqn.drivers.minimize_stream import minimize_stream
from jaxqn.drivers.profile import ENDS, Intervals, profile_intervals
from jaxqn.drivers.result import MinimizeResult
from jaxqn.drivers.root import root
from jaxqn.drivers.root_batch import root_batch
from jaxqn.drivers.root_result import RootResult
from jaxqn.drivers.uncertainty import covariance

__all__ = [
    "ENDS",
    "REASONS",
    "BatchState",
    "Covariance",
    "Intervals",
    "LeastSquaresResult",
    "MinimizeResult",
    "MultiStartResult",
    "RootResult",
    "Transformed",
    "covariance",
    "curve_fit",
    "fixed_point",
    "least_squares",
    "minimize",
    "minimize_batch",
    "minimize_stream",
    "multi_start",
    "profile_intervals",
    "root",
    "root_batch",
]
