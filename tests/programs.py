"""Looking into traced programs: what is in a jaxpr, and how often a function is traced."""

import functools

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

marker_p = Primitive("marker")
"""The identity, by a name that occurs in no other program. For looking at, not for running."""
marker_p.def_abstract_eval(lambda x: x)
ad.deflinear2(marker_p, lambda t, _: [t])
batching.defvectorized(marker_p)


def marked(fun):
    """``fun`` with a marker on its value."""
    return functools.wraps(fun)(lambda *args: marker_p.bind(fun(*args)))


def equations(jaxpr):
    """Every equation of a jaxpr, whatever it is nested in."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from equations(getattr(inner, "jaxpr", inner))


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def count(jaxpr, name):
    """How many equations use the primitive of that name."""
    return sum(equation.primitive.name == name for equation in equations(jaxpr))


def bodies(jaxpr):
    """The bodies of the loops in which the objective is evaluated."""
    loops = [e.params["body_jaxpr"].jaxpr for e in equations(jaxpr) if e.primitive.name == "while"]
    return [body for body in loops if count(body, "marker")]


def product_shapes(jaxpr):
    """The operands' shapes of every product in a jaxpr."""
    return [
        tuple(operand.aval.shape for operand in equation.invars)
        for equation in equations(jaxpr)
        if equation.primitive.name == "dot_general"
    ]


class TraceCounter:
    """A function that counts how often its Python body runs.

    Attributes:
      traces: the count.
    """

    def __init__(self, fun):
        self.fun = fun
        self.traces = 0

    def __call__(self, *args):
        self.traces += 1
        return self.fun(*args)
