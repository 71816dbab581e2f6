"""Checks of the objective, of what it is called with and of what it returns."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.checks.arrays import check_native, is_array
from jaxqn.checks.numbers import described

__all__ = [
    "called",
    "check_args",
    "check_aux",
    "check_callback",
    "check_equations",
    "check_hashable",
    "check_implicit",
    "check_loss",
    "check_residuals",
    "scalar_value",
    "split_aux",
]

NEEDS_A_NUMBER = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises where Python needs the value of an array that is being traced."""

IN_WORDS = re.compile("concrete value|Slice entries must be static|unhashable type: '.*Tracer'")
"""The same where JAX or Python raises a plain TypeError or IndexError."""

LIST_AS_ARRAY = re.compile("operand type.*'(list|tuple)'")
"""What Python raises where arithmetic meets a list."""


def check_equations(F: Any, x: Any, *, alike: bool) -> None:
    """Raise unless F has as many real numbers as x, and is like x if that is asked for."""
    leaves = jax.tree_util.tree_flatten_with_path(F)[0]
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            what = described(leaf) if dtype is None else str(dtype)
            raise TypeError(
                f"fun(x){jax.tree_util.keystr(path)} must be an array of real floating numbers, "
                f"but it is {what}; write complex equations as their real and imaginary parts"
            )
    unknowns, equations = (sum(a.size for a in jax.tree.leaves(v)) for v in (x, F))
    if unknowns != equations:
        raise ValueError(
            f"fun must return as many equations as there are unknowns, but it returns {equations} "
            f"for {unknowns}: for more or fewer see jaxqn.least_squares"
        )
    shapes: list[Any] = [jax.tree.map(jnp.shape, v) for v in (x, F)]
    if alike and shapes[0] != shapes[1]:
        raise ValueError(
            "a method without a matrix needs an F like x, with its structure and shapes: return "
            'such an F, or take method="broyden"'
        )


def check_hashable(fun: Callable[..., Any], name: str = "fun") -> None:
    """``fun`` must be callable, and hashable to serve as a key of compiled programs."""
    if not callable(fun):
        raise TypeError(f"{name} must be a function of x, but it is {described(fun)}")
    try:
        hash(fun)
    except TypeError as error:
        raise TypeError(
            f"{name} (a {type(fun).__name__}) cannot be hashed, so its compiled program could not "
            "be found again: wrap it in a function and pass its arrays through args"
        ) from error


def check_args(args: Any) -> None:
    """Raise unless ``args`` is a tuple of pytrees of arrays and numbers."""
    if not isinstance(args, tuple | list):
        raise TypeError(
            f"args must be a tuple of the further arguments of fun, but it is {described(args)}: "
            "write args=(data,)"
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(tuple(args))[0]:
        check_native(f"args{jax.tree_util.keystr(path)}", leaf)
        if not is_array(leaf) and not isinstance(leaf, int | float | complex):
            raise TypeError(
                f"args{jax.tree_util.keystr(path)} is {described(leaf)}, not an array of "
                "numbers or a number: bind it to fun, for instance with functools.partial"
            )


def check_callback(callback: Any) -> None:
    """Raise unless the callback is a function of one argument, or ``None``."""
    if callback is None:
        return
    if not callable(callback):
        raise TypeError(f"callback must be a function, but it is {described(callback)}")
    try:
        signature = inspect.signature(callback)
    except ValueError:  # of some built-in functions nothing is known
        return
    try:
        signature.bind("the result")
    except TypeError as error:
        raise TypeError(
            "callback is called with one argument, the result so far, which has x, fun, jac and "
            f"nit: write callback(result) ({error})"
        ) from None


def called(fun: Callable[..., Any], x: Any, args: Any) -> Any:
    """``fun(x, *args)`` under tracing, with a word on values that Python cannot have there."""
    try:
        return fun(x, *args)
    except (TypeError, IndexError) as error:
        lists = any(isinstance(given, list | tuple) for given in (x, *args))
        if lists and LIST_AS_ARRAY.search(str(error)):
            raise TypeError(
                f"{error}: fun is given a list or a tuple as it is, a pytree of numbers and not an "
                "array; for an array pass jnp.array([...])"
            ) from error
        if not isinstance(error, NEEDS_A_NUMBER) and not IN_WORDS.search(str(error)):
            raise
        raise TypeError(
            "fun needs the value of x or of one of its args in Python, for an if, a loop, a shape, "
            "a slice, float(...) or NumPy, but it is compiled with all of them as variables: write "
            "jnp.where, jax.lax.cond and jax.numpy; what chooses code or a shape is no argument: "
            "bind it, as in functools.partial(fun, flag=True)"
        ) from error


def split_aux(out: Any, name: str = "fun") -> tuple[Any, Any]:
    """The objective's ``(value, aux)``."""
    if not (isinstance(out, tuple) and len(out) == 2):
        what = "one array" if hasattr(out, "shape") else described(out)
        raise TypeError(
            f"with has_aux=True, {name} must return (value, aux), but it returned {what}"
        )
    return out


def check_aux(aux: Any) -> None:
    """Raise unless the auxiliary output is a pytree of arrays and numbers."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(aux)[0]:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise TypeError(
                f"aux{jax.tree_util.keystr(path)}, which fun returns beside its value, is "
                f"{described(leaf)}: aux may hold arrays and numbers only"
            )


def check_implicit(implicit: Any) -> Any:
    """Raise unless the option ``implicit`` is True, False or "model"."""
    if not (isinstance(implicit, bool) or implicit == "model"):
        raise ValueError(
            'implicit must be True, False (the solution counts as a constant), or "model" '
            f"(derivatives also of runs that did not converge), but it is {implicit!r}"
        )
    return implicit


def check_loss(loss: Any, known: Any) -> None:
    """Raise unless the loss is the name of a known one, or a function."""
    if isinstance(loss, str) and loss not in known:
        raise ValueError(f"unknown loss {loss!r}; the known ones are {', '.join(sorted(known))}")
    if not isinstance(loss, str):
        check_hashable(loss, "loss")


def check_residuals(r: Any) -> None:
    """Raise unless the residuals are a pytree of real floating arrays, with an entry at least."""
    leaves = jax.tree_util.tree_flatten_with_path(r)[0]
    for path, leaf in leaves:
        name = f"residuals(x){jax.tree_util.keystr(path)}"
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            what = described(leaf) if dtype is None else str(dtype)
            raise TypeError(
                f"{name} must be an array of real floating numbers, but it is {what}; return "
                "complex residuals as (r.real, r.imag)"
            )
    if not sum(leaf.size for _, leaf in leaves):
        raise ValueError("residuals(x) must have an entry at least, but it is empty")


def scalar_value(value: Any, name: str = "fun") -> Array:
    """The objective's value as a scalar array."""
    if value is None or isinstance(value, tuple | list | dict):
        raise TypeError(
            f"{name} must return a scalar, but it returned {described(value)}; if that is "
            "(value, aux), pass has_aux=True"
        )
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"{name} must return a scalar, but it returned shape {value.shape}: reduce it, for "
            "instance with jnp.sum; if these are residuals, call jaxqn.least_squares"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} must return a real floating number, but it returned {value.dtype}: for a "
            "complex value take jnp.real or jnp.abs"
        )
    return value
