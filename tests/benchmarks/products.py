"""Counts evaluations of a function, and products with its Jacobian, while compiled programs run."""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

ticked_p = Primitive("ticked")
"""The identity, which calls ``tick()`` as it runs; its transpose calls ``other()``."""


def _ticked(x, *, tick, other):
    del other
    jax.debug.callback(tick)
    return x


ticked_p.def_impl(_ticked)
ticked_p.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(ticked_p, mlir.lower_fun(_ticked, multiple_results=False))
ad.deflinear2(ticked_p, lambda ct, _, *, tick, other: [ticked_p.bind(ct, tick=other, other=tick)])
batching.primitive_batchers[ticked_p] = lambda args, dims, **ticks: (
    ticked_p.bind(args[0], **ticks),
    dims[0],
)


class Counts:
    """Evaluations until F was small, and products with the Jacobian, of compiled runs.

    Attributes:
      evaluations: of F.
      hit: how many of them there were when F was first small, or ``None``.
      products: J v of one direction or of many together.
      transposed: w J.
    """

    def __init__(self, small: float = 0.0):
        self.small = small
        self.clear()

    def clear(self):
        """From zero."""
        self.evaluations = self.transposed = self._forward = 0
        self.hit = None

    @property
    def products(self):
        """J v."""
        return self._forward - self.evaluations

    @property
    def until_small(self):
        """Evaluations until the first small F, or all."""
        return self.evaluations if self.hit is None else self.hit

    def of(self, fun, residual=None):
        """The function of an array, counted; ``residual(fun(x), x)``, or fun(x), is to be small."""
        ticks = {
            "tick": functools.partial(self._add, "_forward"),
            "other": functools.partial(self._add, "transposed"),
        }

        def counted(x, *args):
            value = fun(ticked_p.bind(x, **ticks), *args)
            F = jax.lax.stop_gradient(value if residual is None else residual(value, x))
            jax.debug.callback(self._saw, jnp.max(jnp.abs(F)))
            return value

        return counted

    def _add(self, name):
        setattr(self, name, getattr(self, name) + 1)

    def _saw(self, size):
        self.evaluations += 1
        if self.hit is None and size <= self.small:
            self.hit = self.evaluations
