"""Linear algebra over pytrees: it knows no objective and no optax.

Other folders may import the names below, and the modules ``stacks`` and ``vectors``.
"""

from jaxqn.linalg import stacks, vectors
from jaxqn.linalg.conditional import compute_if, update_if, where
from jaxqn.linalg.eigenpairs import Eigenpairs, eigenpairs, hessian_eigenpairs
from jaxqn.linalg.linear_systems import general_solve, iterative_solve, symmetric_solve
from jaxqn.linalg.numerics import (
    HIGHEST,
    computed_once,
    dot,
    eps,
    far_apart,
    inner,
    last_digits,
    magnitude,
    matvec,
    power_of_two,
    safe_divide,
    widest,
)
from jaxqn.linalg.packing import is_packed, packing, pooled, repack, unpacked
from jaxqn.linalg.small_systems import Solution, positive_solve

__all__ = [
    "HIGHEST",
    "Eigenpairs",
    "Solution",
    "compute_if",
    "computed_once",
    "dot",
    "eigenpairs",
    "eps",
    "far_apart",
    "general_solve",
    "hessian_eigenpairs",
    "inner",
    "is_packed",
    "iterative_solve",
    "last_digits",
    "magnitude",
    "matvec",
    "packing",
    "pooled",
    "positive_solve",
    "power_of_two",
    "repack",
    "safe_divide",
    "stacks",
    "symmetric_solve",
    "unpacked",
    "update_if",
    "vectors",
    "where",
    "widest",
]
