"""Square systems of equations for the benchmark of roots.

The classical ones of ``tests/equations.py``, from their usual starts and from ten and a hundred
times those, and those of sif2jax with at most 200 unknowns. A larger system of sif2jax is taken
with a smaller parameter; unknowns that its bounds fix are no unknowns; other bounds are ignored.
"""

import copy
import importlib.util

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tests.equations import CLASSICAL

LARGEST = 200

RESIZED = [
    ("ARGTRIG", {"n": 10}),
    ("ARTIF", {"n": 12, "n_eq": 10}),
    ("ARTIF", {"n": 102, "n_eq": 100}),
    ("BDVALUES", {"NDP": 12}),
    ("BDVALUES", {"NDP": 102}),
    ("BRATU2DT", {"P": 7}),
    ("BRATU2DT", {"P": 14}),
    ("CHEBYQADNE", {"n": 10}),
    ("CYCLIC3", {"n": 98}),
    ("DRCAVTY1", {"M": 6}),
    ("DRCAVTY1", {"M": 12}),
    ("DRCAVTY2", {"M": 12}),
    ("DRCAVTY3", {"M": 12}),
    ("EIGENB", {"_N": 6}),
    ("EIGENB", {"_N": 12}),
    ("EIGENC", {"_M": 3}),
    ("EIGENC", {"_M": 6}),
    ("EXTROSNBNE", {"n": 10, "m": 10}),
    ("EXTROSNBNE", {"n": 100, "m": 100}),
    ("INTEGREQ", {"n": 100}),
    ("KSS", {"N": 100}),
    ("LUKSAN21", {"n": 10}),
    ("MANCINONE", {"n": 20}),
    ("MSQRTA", {"p": 5}),
    ("MSQRTA", {"p": 10}),
    ("MSQRTB", {"p": 5}),
    ("MSQRTB", {"p": 10}),
    ("NONDIANE", {"n": 100}),
    ("NONSCOMPNE", {"n": 100}),
    ("OSCIGRNE", {"n": 100}),
    ("POROUS2", {"P": 7}),
    ("POROUS2", {"P": 14}),
    ("TENFOLDTR", {"n": 10}),
    ("TENFOLDTR", {"n": 100}),
    ("YATP1CNE", {"_N": 5}),
    ("YATP1CNE", {"_N": 12}),
    ("YATP1NE", {"_N": 5}),
    ("YATP1NE", {"_N": 12}),
]
"""Systems of sif2jax that have more unknowns, or whose size can vary, with a parameter."""

SQUARE = """
AIRCRFTA ARGTRIG BOOTH CHANDHEQ CHEBYQADNE CLUSTER COOLHANS DENSCHNCNE DENSCHNDNE DENSCHNENE
DENSCHNFNE FREURONE GOTTFR HATFLDANE HATFLDBNE HATFLDCNE HATFLDF HATFLDFLNE HATFLDG HEART6 HEART8
HELIXNE HIMMELBA HS1NE HS2NE HYPCIR INTEQNE LUKSAN21 MANCINONE OSCIPANE PFIT1 PFIT2 PFIT3 PFIT4
POWELLBS POWELLSE POWELLSQ POWERSUMNE QINGNE RECIPE SINVALNE TRIGON1NE
"""
"""Those that are square and small by default: all that sif2jax 0.0.8 has."""


def systems(with_sif2jax: bool):
    """``(name, fun, x0)`` of every system; those of one function follow each other."""
    found = []
    for fun, x0 in CLASSICAL:
        for factor in (1.0, 10.0, 100.0):
            if factor > 1 and not np.any(x0):
                continue
            name = f"{fun.__name__}-{x0.size}" + (f" x{factor:g}" if factor > 1 else "")
            found.append((name, fun, factor * x0))
    if with_sif2jax and importlib.util.find_spec("sif2jax") is not None:
        found += of_sif2jax()
    return found


def of_sif2jax():
    """The same of sif2jax."""
    import sif2jax

    known = {type(p).__name__: p for p in sif2jax.nonlinear_equations_problems}
    problems = [(name, known[name]) for name in SQUARE.split() if name in known]
    for name, parameters in RESIZED:
        if name in known:
            key, value = next(iter(parameters.items()))
            label = f"{name} {key.strip('_')}={value}"
            problems.append((label, resized(known[name], parameters)))
    return [
        (name, *square(problem)) for name, problem in sorted(problems, key=lambda pair: pair[0])
    ]


def resized(problem, parameters):
    """A problem with other parameters."""
    other = copy.copy(problem)
    for name, value in parameters.items():
        object.__setattr__(other, name, value)
    return other


def square(problem):
    """``(fun, x0)`` over the unknowns that no bound fixes."""
    y0, unravel = ravel_pytree(problem.y0)
    y0, free = np.array(y0), np.ones(y0.size, bool)
    if problem.bounds is not None:
        lower, upper = (np.asarray(ravel_pytree(bound)[0]) for bound in problem.bounds)
        free = lower != upper
        y0 = np.where(free, y0, lower)
    n, places = int(free.sum()), np.flatnonzero(free)

    def fun(x):
        y = jnp.asarray(y0, x.dtype).at[places].set(x) if n < y0.size else x
        return ravel_pytree(problem.constraint(unravel(y))[0])[0].astype(x.dtype)

    return fun, y0[free]
