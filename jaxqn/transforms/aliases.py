"""Whole optimisers for optax users: each is a chain of :mod:`jaxqn.transforms`."""

from __future__ import annotations  # for a short signature in help(...)

from typing import Any, Literal

import optax

from jaxqn._typing import Array
from jaxqn.checks import answered
from jaxqn.transforms.chain import LinesearchOption, chain
from jaxqn.transforms.dense_methods import (
    scale_by_bfgs,
    scale_by_broyden,
    scale_by_dfp,
    scale_by_osbfgs,
    scale_by_sr1,
    scale_by_ssbfgs,
    scale_by_ssbroyden,
)
from jaxqn.transforms.limited_memory import scale_by_lbfgs, scale_by_lsr1
from jaxqn.transforms.newton import scale_by_newton

__all__ = [
    "bfgs",
    "broyden",
    "dfp",
    "lbfgs",
    "lsr1",
    "newton",
    "osbfgs",
    "sr1",
    "ssbfgs",
    "ssbroyden",
]


@answered
def bfgs(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    scale_init: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """BFGS: :func:`jaxqn.scale_by_bfgs`, a learning rate or a line search, and the sign.

    With a ``learning_rate``, a step is ``update(grads, state, params)``, and the optimiser works
    wherever those of optax work, also inside ``masked`` and ``partition``. Without a
    ``learning_rate``, a line search evaluates the objective: ``update(grads, state, params,
    value=..., grad=..., value_fn=...)``, the loop that optax documents for its L-BFGS.

    Args:
      learning_rate: step length, or a schedule.
      linesearch: a :class:`jaxqn.LineSearch`, an optax transformation such as
        ``optax.scale_by_zoom_linesearch``, or ``None`` for no search. By default
        :func:`jaxqn.wolfe` without a learning rate, and no search with one. With both, the search
        starts from the direction scaled by the learning rate.
      has_aux: whether ``value_fn`` returns ``(value, aux)``; for jaxqn's searches.
      scale_init: whether to scale H = I before its first update; see :func:`jaxqn.dense`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Raises:
      TypeError: ``linesearch`` is of another type.

    Example:
      >>> import jax.numpy as jnp
      >>> def rosenbrock(x):
      ...     return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
      >>> solver, x = bfgs(), jnp.array([-1.2, 1.0])
      >>> state, value_and_grad = solver.init(x), optax.value_and_grad_from_state(rosenbrock)
      >>> for _ in range(40):
      ...     value, grad = value_and_grad(x, state=state)
      ...     updates, state = solver.update(
      ...         grad, state, x, value=value, grad=grad, value_fn=rosenbrock
      ...     )
      ...     x = optax.apply_updates(x, updates)
      >>> [round(float(v), 3) for v in x]
      [1.0, 1.0]

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithm 6.1.
    """
    return chain(scale_by_bfgs(scale_init=scale_init), learning_rate, linesearch, has_aux)


@answered
def dfp(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    scale_init: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """DFP: :func:`jaxqn.scale_by_dfp` in the chain, and with the arguments, of :func:`bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = dfp(learning_rate=0.5), jnp.array([3.0])
      >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
      [-3.0]
    """
    return chain(scale_by_dfp(scale_init=scale_init), learning_rate, linesearch, has_aux)


@answered
def sr1(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    scale_init: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """SR1: :func:`jaxqn.scale_by_sr1` in the chain, and with the arguments, of :func:`bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = sr1(learning_rate=0.5), jnp.array([3.0])
      >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
      [-3.0]
    """
    return chain(scale_by_sr1(scale_init=scale_init), learning_rate, linesearch, has_aux)


@answered
def broyden(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    phi: Array | float = 0.5,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    scale_init: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Broyden's class: :func:`jaxqn.scale_by_broyden` in the chain that :func:`bfgs` describes.

    Args:
      learning_rate: as in :func:`bfgs`.
      phi: member of the class; 1 is BFGS and 0 is DFP.
      linesearch: as in :func:`bfgs`.
      has_aux: as in :func:`bfgs`.
      scale_init: as in :func:`bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = broyden(learning_rate=0.5, phi=0.25), jnp.array([3.0])
      >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
      [-3.0]
    """
    return chain(scale_by_broyden(phi, scale_init=scale_init), learning_rate, linesearch, has_aux)


@answered
def osbfgs(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    scale_init: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """BFGS with Oren and Spedicato's test for self-scaling: :func:`jaxqn.scale_by_osbfgs`.

    ``osbfgs`` is the default method of :func:`jaxqn.minimize`. The chain and the arguments are
    those of :func:`bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = osbfgs(learning_rate=0.5), jnp.array([3.0])
      >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
      [-3.0]
    """
    return chain(scale_by_osbfgs(scale_init=scale_init), learning_rate, linesearch, has_aux)


@answered
def ssbfgs(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    scale_init: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Self-scaled BFGS: :func:`jaxqn.scale_by_ssbfgs` in the chain that :func:`bfgs` describes.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = ssbfgs(learning_rate=0.5), jnp.array([3.0])
      >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
      [-3.0]
    """
    return chain(scale_by_ssbfgs(scale_init=scale_init), learning_rate, linesearch, has_aux)


@answered
def ssbroyden(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    scale_init: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Self-scaled Broyden: :func:`jaxqn.scale_by_ssbroyden` in the chain of :func:`bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = ssbroyden(learning_rate=0.5), jnp.array([3.0])
      >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
      [-3.0]
    """
    return chain(scale_by_ssbroyden(scale_init=scale_init), learning_rate, linesearch, has_aux)


@answered
def lbfgs(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    memory: int = 10,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """L-BFGS: :func:`jaxqn.scale_by_lbfgs` in the chain that :func:`bfgs` describes.

    Args:
      learning_rate: as in :func:`bfgs`.
      memory: pairs to keep.
      linesearch: as in :func:`bfgs`.
      has_aux: as in :func:`bfgs`.
      history_dtype: dtype of the pairs in memory, for instance ``jnp.bfloat16``.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = lbfgs(learning_rate=0.5), jnp.array([3.0])
      >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
      [-3.0]
    """
    scale_by = scale_by_lbfgs(memory, history_dtype=history_dtype)
    return chain(scale_by, learning_rate, linesearch, has_aux)


@answered
def lsr1(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    memory: int = 10,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    history_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """L-SR1: :func:`jaxqn.scale_by_lsr1` in the chain that :func:`bfgs` describes.

    Args:
      learning_rate: as in :func:`bfgs`.
      memory: pairs to keep.
      linesearch: as in :func:`bfgs`.
      has_aux: as in :func:`bfgs`.
      history_dtype: as in :func:`lbfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = lsr1(learning_rate=0.5), jnp.array([3.0])
      >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
      [-3.0]
    """
    scale_by = scale_by_lsr1(memory, history_dtype=history_dtype)
    return chain(scale_by, learning_rate, linesearch, has_aux)


@answered
def newton(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    linesearch: LinesearchOption = ...,
    has_aux: bool = False,
    rank: int | Literal["all"] = "all",
    floor: float | None = None,
    mode: str = "reflect",
) -> optax.GradientTransformationExtraArgs:
    """Newton's method: :func:`jaxqn.scale_by_newton` in the chain that :func:`bfgs` describes.

    Args:
      learning_rate: as in :func:`bfgs`, but every ``update`` needs ``value_fn=``.
      linesearch: as in :func:`bfgs`.
      has_aux: as in :func:`bfgs`.
      rank: as in :func:`jaxqn.scale_by_newton`.
      floor: as in :func:`jaxqn.scale_by_newton`.
      mode: as in :func:`jaxqn.scale_by_newton`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, x = newton(learning_rate=1.0), jnp.array([3.0])
      >>> f = lambda x: jnp.sum(x**2)
      >>> optimizer.update(2 * x, optimizer.init(x), x, value_fn=f)[0].tolist()
      [-3.0]
    """
    scale_by = scale_by_newton(rank=rank, floor=floor, mode=mode, has_aux=has_aux)
    return chain(scale_by, learning_rate, linesearch, has_aux)
