"""The methods that go by a name."""

from jaxqn.checks import nearest
from jaxqn.formulas import (
    bfgs_rule,
    broyden_rule,
    dfp_rule,
    osbfgs_rule,
    sr1_rule,
    ssbfgs_rule,
    ssbroyden_rule,
)
from jaxqn.quasi_newton.dense import dense
from jaxqn.quasi_newton.lbfgs import lbfgs_memory
from jaxqn.quasi_newton.lsr1 import lsr1_memory
from jaxqn.quasi_newton.lsr1_region import lsr1_trust_region
from jaxqn.quasi_newton.newton import corrected_newton
from jaxqn.quasi_newton.protocol import QuasiNewton
from jaxqn.quasi_newton.sr1_region import sr1_trust_region
from jaxqn.quasi_newton.structured import gauss_newton, residual_space, structured

__all__ = ["METHODS", "method_by_name"]

METHODS: dict[str, QuasiNewton] = {
    "bfgs": dense(bfgs_rule),
    "dfp": dense(dfp_rule),
    "sr1": sr1_trust_region(),
    "broyden": dense(broyden_rule(0.5)),
    "osbfgs": dense(osbfgs_rule),
    "ssbfgs": dense(ssbfgs_rule),
    "ssbroyden": dense(ssbroyden_rule),
    "lbfgs": lbfgs_memory(),
    "lsr1": lsr1_trust_region(),
    "newton": corrected_newton(),
    "structured": structured(),
    "lm": gauss_newton(),
    "residual": residual_space(),
}
"""The methods that :func:`jaxqn.minimize` knows by name.

"osbfgs" is BFGS with Oren and Spedicato's test for self-scaling; "ssbfgs" and "ssbroyden" are
self-scaled BFGS and the self-scaled Broyden method of Al-Baali and Khalfan.
"""


ELSEWHERE = {"l-bfgs": "lbfgs", "l-bfgs-b": "lbfgs"}
"""SciPy's names for methods that are known here by another."""

INSTEAD = {
    "cg": "lbfgs",
    "tnc": "lbfgs",
    "newton-cg": "newton",
    "trust-ncg": "newton",
    "trust-exact": "newton",
    "trust-krylov": "newton",
    "dogleg": "newton",
    "trf": "structured",
    "dogbox": "structured",
    "leastsq": "lm",
    "levenberg-marquardt": "lm",
    "gauss-newton": "lm",
}
"""Names of other libraries for methods that are not here, and the nearest that is."""

IN_A_LINE: dict[str, QuasiNewton] = {
    "sr1": dense(sr1_rule, scale_init=0.5),
    "lsr1": lsr1_memory(),
}
"""Of methods that step within a trust region, those that have a form for a line search, too."""


def method_by_name(name: str, *, in_line: bool = False) -> QuasiNewton:
    """The method of that name, in small or capital letters; a ValueError lists the known ones.

    With ``in_line``, where a line search or bounds are given, its form for a line search.
    """
    word = name.casefold()
    word = ELSEWHERE.get(word, word)
    if word not in METHODS:
        known = ", ".join(sorted(METHODS))
        hint = f" (in its place take {INSTEAD[word]!r})" if word in INSTEAD else ""
        hint = hint or nearest(name, METHODS)
        raise ValueError(f"unknown method {name!r}{hint}; the known ones are {known}")
    return IN_A_LINE.get(word, METHODS[word]) if in_line else METHODS[word]
