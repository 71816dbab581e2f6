"""Errors for bad input, before any tracing: what is wrong, what is expected, how to correct it."""

from jaxqn.checks.arrays import (
    check_initial,
    check_jacobian,
    check_like,
    check_native,
    check_x0,
    check_x_scale,
)
from jaxqn.checks.bounds import check_bounds
from jaxqn.checks.new_functions import notice_function
from jaxqn.checks.numbers import (
    check_count,
    check_number,
    described,
    is_traced,
    nonnegative,
    whole_number,
)
from jaxqn.checks.objective import (
    called,
    check_args,
    check_aux,
    check_callback,
    check_equations,
    check_hashable,
    check_implicit,
    check_loss,
    check_residuals,
    scalar_value,
    split_aux,
)
from jaxqn.checks.parameters import check_parameters
from jaxqn.checks.words import answered, answered_part, check_keywords, nearest

__all__ = [
    "answered",
    "answered_part",
    "called",
    "check_args",
    "check_aux",
    "check_bounds",
    "check_callback",
    "check_count",
    "check_equations",
    "check_hashable",
    "check_implicit",
    "check_initial",
    "check_jacobian",
    "check_keywords",
    "check_like",
    "check_loss",
    "check_native",
    "check_number",
    "check_parameters",
    "check_residuals",
    "check_x0",
    "check_x_scale",
    "described",
    "is_traced",
    "nearest",
    "nonnegative",
    "notice_function",
    "scalar_value",
    "split_aux",
    "whole_number",
]
