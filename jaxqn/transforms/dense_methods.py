"""The dense methods by name, as optax transformations."""

import jax
import optax

from jaxqn._typing import Array
from jaxqn.checks import answered_part
from jaxqn.formulas import (
    bfgs_rule,
    broyden_rule,
    dfp_rule,
    osbfgs_rule,
    sr1_rule,
    ssbfgs_rule,
    ssbroyden_rule,
)
from jaxqn.quasi_newton import dense
from jaxqn.transforms.quasi_newton import scale_by_quasi_newton

__all__ = [
    "scale_by_bfgs",
    "scale_by_broyden",
    "scale_by_dfp",
    "scale_by_osbfgs",
    "scale_by_sr1",
    "scale_by_ssbfgs",
    "scale_by_ssbroyden",
]


@answered_part
def scale_by_bfgs(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`jaxqn.scale_by_quasi_newton` with a dense H and :func:`jaxqn.bfgs_update`.

    Args:
      scale_init: whether to scale H = I before its first update; see :func:`jaxqn.dense`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Example:
      >>> import jax.numpy as jnp
      >>> transform, x = scale_by_bfgs(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()  # f = x²: the Newton step
      [2.0]
    """
    return scale_by_quasi_newton(dense(bfgs_rule, scale_init=scale_init))


@answered_part
def scale_by_dfp(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`jaxqn.scale_by_quasi_newton` with a dense H and :func:`jaxqn.dfp_update`.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> transform, x = scale_by_dfp(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(dfp_rule, scale_init=scale_init))


@answered_part
def scale_by_sr1(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`jaxqn.scale_by_quasi_newton` with a dense H and :func:`jaxqn.sr1_update`.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> transform, x = scale_by_sr1(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(sr1_rule, scale_init=0.5 * scale_init))


@answered_part
def scale_by_broyden(
    phi: Array | float = 0.5, *, scale_init: bool = True
) -> optax.GradientTransformationExtraArgs:
    """:func:`jaxqn.scale_by_quasi_newton` with a dense H and :func:`jaxqn.broyden_update`.

    Args:
      phi: member of the class; 1 is BFGS and 0 is DFP.
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> transform, x = scale_by_broyden(phi=0.25), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    if isinstance(phi, jax.core.Tracer):  # from optax.inject_hyperparams; no cache may keep it
        rule = broyden_rule.__wrapped__(phi)
        return scale_by_quasi_newton(dense.__wrapped__(rule, scale_init=scale_init))
    return scale_by_quasi_newton(dense(broyden_rule(float(phi)), scale_init=scale_init))


@answered_part
def scale_by_osbfgs(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`jaxqn.scale_by_quasi_newton` with a dense H and :func:`jaxqn.osbfgs_update`.

    ``osbfgs`` is BFGS with Oren and Spedicato's test for self-scaling: an update scales H only
    where the test finds H too small on balance.

    Where the rest of the chain bends a step away from −H g, the update is plain BFGS.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> transform, x = scale_by_osbfgs(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(osbfgs_rule, scale_init=scale_init))


@answered_part
def scale_by_ssbfgs(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`jaxqn.scale_by_quasi_newton` with a dense H and :func:`jaxqn.ssbfgs_update`.

    Where the rest of the chain bends a step away from −H g, the update is plain BFGS.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> transform, x = scale_by_ssbfgs(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(ssbfgs_rule, scale_init=scale_init))


@answered_part
def scale_by_ssbroyden(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`jaxqn.scale_by_quasi_newton` with a dense H and :func:`jaxqn.ssbroyden_update`.

    Where the rest of the chain bends a step away from −H g, the update is plain BFGS.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> import jax.numpy as jnp
      >>> transform, x = scale_by_ssbroyden(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(ssbroyden_rule, scale_init=scale_init))
