"""Programs of eager calls, and how those over a few numbers are compiled in half of the time.

XLA has two emitters of machine code for fused loops on CPUs. The newer one, its default, makes
faster code of long loops and takes three times as long to make it. A program whose arrays are
all short spends its time between the loops, so that the older emitter makes it just as fast. An
option of the compiler belongs to a whole program: under another transformation there is none.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxqn.loop import transformed

__all__ = ["eager_program"]

QUICKLY = {
    "xla_cpu_use_fusion_emitters": False,
    # By default 32 parts, each of which costs a few milliseconds, however few cores there are.
    "xla_cpu_parallel_codegen_split_count": min(os.cpu_count() or 1, 32),
}
SMALL = 512
"""Entries of the largest array in a program that the older emitters make as fast."""

REMEMBERED = 4096
"""Programs of which it is remembered whether they are small."""

F = TypeVar("F", bound=Callable[..., Any])


def eager_program(*static: str) -> Callable[[F], F]:
    """``jax.jit`` as a decorator, with these static keywords and options by size if eager.

    What is decorated has the two jitted functions as ``programs``.
    """

    def decorated(fun: F) -> F:
        plain = jax.jit(fun, static_argnames=static)
        quick = jax.jit(fun, static_argnames=static, compiler_options=QUICKLY)

        @functools.lru_cache(REMEMBERED)
        def is_small(statics: tuple[Any, ...], structure: Any, shapes: tuple[Any, ...]) -> bool:
            """Whether the program is. The trace serves both ways of compiling, so it costs none."""
            args, given = jax.tree.unflatten(structure, shapes)
            traced = plain.trace(*args, **given, **dict(zip(static, statics, strict=True)))
            return all(size <= SMALL for size in _sizes(traced.jaxpr.jaxpr))

        @functools.wraps(fun)
        def call(*args: Any, **given: Any) -> Any:
            if transformed() or not _knows_options():
                return plain(*args, **given)
            arrays = {name: value for name, value in given.items() if name not in static}
            leaves, structure = jax.tree.flatten((args, arrays))
            statics = tuple(given[name] for name in static)
            small = is_small(statics, structure, tuple(map(jax.typeof, leaves)))
            return (quick if small else plain)(*args, **given)

        call.programs = plain, quick  # type: ignore[attr-defined]
        return cast(F, call)

    return decorated


def _sizes(jaxpr: Jaxpr) -> Iterator[int]:
    """The entries of every array that a program meets."""
    for variable in (*jaxpr.invars, *jaxpr.constvars):
        yield getattr(variable.aval, "size", 0)
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "size", 0)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if isinstance(inner, ClosedJaxpr):
                yield from _sizes(inner.jaxpr)
            elif isinstance(inner, Jaxpr):
                yield from _sizes(inner)


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


@functools.cache
def _knows_options() -> bool:
    """Whether programs run on a CPU, by an XLA that knows the options."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=QUICKLY).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
