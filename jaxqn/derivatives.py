"""Derivatives of functions of pytrees, thin over JAX's own transformations, and a check of them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree, Objective

__all__ = ["GradientCheck", "check_gradient", "gradient", "hessian", "hvp", "value_and_grad"]

DIRECTIONS, MAX_COORDINATES = 3, 32
"""Random directions of a check, and the entries of x up to which it takes every coordinate too."""


def value_and_grad(fun: Objective, *, has_aux: bool = False) -> Any:
    """``jax.value_and_grad`` with respect to the first argument.

    Args:
      fun: ``fun(x, *args) -> scalar``, or ``(scalar, aux)`` with ``has_aux``.
      has_aux: whether ``fun`` returns auxiliary data beside its value.

    Returns:
      ``(x, *args) -> (value, gradient)``, or ``((value, aux), gradient)``.

    Example:
      >>> value, grad = value_and_grad(lambda x: x**2 + 2 * x + 1)(1.0)
      >>> float(value), float(grad)
      (4.0, 4.0)
    """
    return jax.value_and_grad(fun, has_aux=has_aux)


def gradient(fun: Objective) -> Any:
    """``jax.grad`` with respect to the first argument.

    Example:
      >>> float(gradient(lambda x: x**2 + 2 * x + 1)(1.0))
      4.0
    """
    return jax.grad(fun)


def hessian(fun: Objective) -> Any:
    """Dense Hessian of a function of a pytree, over the ravelled parameters.

    Args:
      fun: ``fun(x, *args) -> scalar``.

    Returns:
      ``(x, *args) -> B`` with B of shape ``(n, n)``, n the total number of entries of ``x``, in the
      order of :func:`jax.flatten_util.ravel_pytree`. Cost: n Hessian-vector products.

    Example:
      >>> import jax.numpy as jnp
      >>> B = hessian(lambda p: p["a"] * p["b"] ** 2)
      >>> B({"a": jnp.array(1.0), "b": jnp.array(3.0)}).tolist()
      [[0.0, 6.0], [6.0, 2.0]]
    """

    def at(x: ArrayTree, *args: Any) -> Array:
        flat, unravel = jax.flatten_util.ravel_pytree(x)
        return jax.hessian(lambda v: fun(unravel(v), *args))(flat)

    return at


def hvp(fun: Objective) -> Any:
    """Hessian-vector product, forward over reverse; the Hessian is never formed.

    Args:
      fun: ``fun(x, *args) -> scalar``.

    Returns:
      ``(x, v, *args) -> ∇²fun(x) v``, a pytree like ``x``. Cost: about two gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> hvp(lambda x: jnp.sum(x**3))(jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])).tolist()
      [6.0, 12.0]
    """

    def at(x: ArrayTree, v: ArrayTree, *args: Any) -> ArrayTree:
        return jax.jvp(lambda p: jax.grad(fun)(p, *args), (x,), (v,))[1]

    return at


class GradientCheck(NamedTuple):
    """What :func:`check_gradient` found; as a condition, it is ``ok``.

    Attributes:
      ok: whether the error is at most its tolerance along every direction.
      error: ``abs(given - measured)`` in the direction where it is worst for its tolerance.
      tolerance: what truncation and the noise of f explain of it; smaller errors are not seen.
      worst: that direction: an entry of x, such as ``x['w'][0, 1]``, or a range of entries.
      given: the derivative there, by ``jax.grad``.
      measured: the same, by central differences.
    """

    ok: bool
    error: float
    tolerance: float
    worst: str
    given: float
    measured: float

    def __bool__(self) -> bool:
        """``ok``, so that ``assert check_gradient(...)`` asserts something."""
        return self.ok

    @property
    def message(self) -> str:
        """The finding as a sentence."""
        found = (
            f"along {self.worst} jax.grad gives {self.given:.6g} and differences of fun give "
            f"{self.measured:.6g} ± {self.tolerance:.1e}"
        )
        if self.ok:
            return f"the gradient agrees with differences: {found}"
        if not math.isfinite(self.measured):
            return f"fun is not finite on both sides of x: {found}"
        return (
            f"the gradient is wrong, or fun has no derivative at x: {found}. Look for a custom_vjp "
            "or custom_jvp, a stop_gradient, a jump or a kink"
        )


def check_gradient(
    fun: Objective, x: ArrayTree, *args: Any, key: Array | None = None, has_aux: bool = False
) -> GradientCheck:
    """Compares the gradient that ``jax.grad`` makes of ``fun`` with central differences.

        dᵀ∇f(x)   against   (f(x + h d) − f(x − h d)) / 2h

    along three random directions d of the size of x, and along every coordinate of an x of at most
    32 entries. ``fun`` is evaluated in the dtype of x. Of the steps h from 1/4 to about √eps/10 the
    one counts whose difference agrees best with those of the other steps, up to 4 σ/h; σ, the noise
    of f, is measured, and is at least eps · abs(f). Where a random direction shows an error, halves
    of the direction lead to the entries at fault. A kink at x counts as an error.

    Args:
      fun: ``fun(x, *args) -> scalar``, or ``(scalar, aux)`` with ``has_aux``.
      x: the point, any pytree of arrays of float32, or of float64.
      *args: further arguments of ``fun``.
      key: chooses the random directions; ``jax.random.key(0)`` by default.
      has_aux: whether ``fun`` returns auxiliary data beside its value.

    Returns:
      A :class:`GradientCheck`, with a ``message``.

    Raises:
      TypeError: ``fun`` is no function or not scalar; x is traced, or not real and floating.
      ValueError: x has no entries or two dtypes; f(x) is not finite.

    Cost: a gradient, and 20 values of ``fun`` per direction (12 in float32), one by one: pass
    ``jax.jit(fun)`` where that is faster. The halves of a direction in error are 2 log₂ n more.

    Example:
      >>> import jax.numpy as jnp
      >>> square = jax.custom_vjp(lambda x: x @ x)
      >>> square.defvjp(lambda x: (x @ x, x), lambda x, c: (c * x,))  # it should be 2 c x
      >>> x = jnp.array([1.0, 2.0])
      >>> bool(check_gradient(lambda x: x @ x, x)), bool(check_gradient(square, x))
      (True, False)
      >>> round(check_gradient(square, x).measured / check_gradient(square, x).given, 3)
      2.0

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, section 8.1; Moré & Wild, SIAM J.
      Sci. Comput. 33 (2011), for the noise.
    """
    near = _near(fun, x, args, has_aux)
    n = near.x.size
    key = jax.random.key(0) if key is None else key
    directions = near.sizes * np.asarray(jax.random.normal(key, (DIRECTIONS, n)), float)
    near = near._replace(noise=max(near.noise, *(_noise(near, d) for d in directions)))
    candidates = [(d, 0, n) for d in directions]
    if n <= MAX_COORDINATES:
        candidates += [(near.sizes, i, i + 1) for i in range(n)]
    check, (d, first, end) = _worst(near, candidates)
    while not check.ok and end - first > 1:
        middle = (first + end) // 2
        half, part = _worst(near, [(d, first, middle), (d, middle, end)])
        if half.ok:
            break
        check, (d, first, end) = half, part
    return check


class _Near(NamedTuple):
    """A function near x. Vectors are flat float64; ``value`` rounds them to the dtype of x."""

    value: Callable[[np.ndarray], tuple[float, np.ndarray]]  # v -> f(v), and v as rounded
    x: np.ndarray
    g: np.ndarray
    sizes: np.ndarray
    name: Callable[[int], str]
    eps: float
    noise: float


def _near(fun: Objective, x: ArrayTree, args: tuple[Any, ...], has_aux: bool) -> _Near:
    if not callable(fun):
        raise TypeError(f"fun must be a function of x, but it is a {type(fun).__name__}")
    paths = jax.tree_util.tree_flatten_with_path(x)[0]
    named = [(f"x{jax.tree_util.keystr(path)}", leaf) for path, leaf in paths]
    for name, leaf in named:
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError(f"{name} is traced: call check_gradient outside of jit, grad and vmap")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
            raise TypeError(f"{name} has dtype {dtype}, but differences need float32 or float64")
    if len({jnp.result_type(leaf) for _, leaf in named}) > 1:
        raise ValueError("x must have one dtype throughout: cast its leaves")
    start, unravel = jax.flatten_util.ravel_pytree(x)
    if not start.size:
        raise ValueError("x has no entries: there is no gradient to check")

    def value(v: np.ndarray) -> tuple[float, np.ndarray]:
        rounded = v.astype(start.dtype)
        out = fun(unravel(jnp.asarray(rounded)), *args)
        return float(out[0] if has_aux else out), rounded.astype(float)

    def name_of(index: int) -> str:
        for name, leaf in named:
            if index < np.size(leaf):
                inside = np.unravel_index(index, np.shape(leaf))
                return name + (f"[{', '.join(map(str, inside))}]" if inside else "")
            index -= np.size(leaf)
        raise IndexError(index)

    out, g = jax.value_and_grad(fun, has_aux=has_aux)(unravel(start), *args)
    f = out[0] if has_aux else out
    if not math.isfinite(f):
        raise ValueError(f"fun(x) is {f}: there is no gradient to check")
    x, g, sizes = (
        np.asarray(jax.flatten_util.ravel_pytree(tree)[0], float)
        for tree in (x, g, jax.tree.map(_sizes, x))
    )
    noise = max(float(jnp.finfo(f.dtype).eps) * abs(float(f)), np.finfo(float).tiny)
    return _Near(value, x, g, sizes, name_of, float(np.finfo(start.dtype).eps), noise)


def _sizes(leaf: Array) -> Array:
    """The size of every entry: at least the mean of its leaf, and 1 in a leaf of zeros."""
    mean = jnp.mean(jnp.abs(leaf))
    return jnp.maximum(jnp.abs(leaf), jnp.where(mean > 0, mean, 1))


@np.errstate(invalid="ignore")
def _noise(near: _Near, d: np.ndarray) -> float:
    """The standard deviation of f around x, from differences of order 4 to 6 (Moré & Wild).

    Points stand as close as the dtype allows, or further apart until most values differ. Such
    differences contain nothing of what is smooth in f.
    """
    spacings = near.eps * 64.0 ** np.arange(1, 9)
    for spacing in spacings[spacings < 0.1]:
        f = np.array([near.value(near.x + k * spacing * d)[0] for k in range(7)])
        if len(np.unique(f)) > 3:
            break
    variances = [np.mean(np.diff(f, k) ** 2) / math.comb(2 * k, k) for k in (4, 5, 6)]
    return math.sqrt(max(np.nan_to_num(variances, posinf=0)))


def _worst(near: _Near, candidates: list[Any]) -> tuple[GradientCheck, tuple[np.ndarray, int, int]]:
    """The candidate with the largest error for its tolerance; see ``_along``."""
    checks = [(_along(near, *candidate), candidate) for candidate in candidates]
    return max(checks, key=lambda pair: (not pair[0].ok, pair[0].error / pair[0].tolerance))


@np.errstate(invalid="ignore")
def _along(near: _Near, d: np.ndarray, first: int, end: int) -> GradientCheck:
    """The check along the entries of d from ``first`` to before ``end``."""
    part, way = slice(first, end), np.zeros_like(d)
    way[part] = d[part]
    steps = 0.25 / 8.0 ** np.arange(10 if near.eps < 1e-10 else 6)
    slopes = []
    for h in steps:
        (f_1, x_1), (f_0, x_0) = near.value(near.x + h * way), near.value(near.x - h * way)
        slopes.append(((f_1 - f_0) / (2 * h), near.g[part] @ (x_1 - x_0)[part] / (2 * h)))
    measured, given = np.array(slopes).T
    gap, noise = np.where(np.isfinite(given), given, 0) - measured, 4 * near.noise / steps
    # A good step agrees with the one before it and, up to their noise, with all finer ones.
    finer = np.max(np.triu(np.abs(gap[:, None] - gap) - noise, 1), axis=1)
    bounds = noise + np.maximum(finer, np.abs(np.diff(gap, prepend=np.inf)))
    k = int(np.argmin(np.where(np.isfinite(bounds), bounds, np.inf)))
    allowed = 2 * bounds[k] + 100 * near.eps * np.nansum(np.abs(near.g * d)[part])
    unit, worst = 1.0, f"{end - first} entries from {near.name(first)} to {near.name(end - 1)}"
    if end - first == 1:
        unit, worst = d[first], near.name(first)
    slope, difference, tolerance = (float(v / unit) for v in (given[k], measured[k], allowed))
    error, tolerance = abs(slope - difference), abs(tolerance)
    return GradientCheck(error <= tolerance < math.inf, error, tolerance, worst, slope, difference)
