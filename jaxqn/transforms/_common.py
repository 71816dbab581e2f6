"""What both transformations need: the dtypes of the parameters, and one compilation per call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxqn._checks import is_traced


def float_dtypes(params: optax.Params) -> dict[np.dtype, str]:
    """The dtypes of the parameters, each with the name of the first leaf that has it."""
    dtypes: dict[np.dtype, str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name, dtype = "params" + jax.tree_util.keystr(path), jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} has dtype {dtype}, but only real floating parameters can be optimised: "
                "keep the others apart, for instance with optax.masked"
            )
        dtypes.setdefault(dtype, name)
    return dtypes


def at_least_float32(dtype: np.dtype) -> np.dtype:
    """``dtype`` itself, or float32 in place of half precision, too coarse for curvature."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def once(compiled: Any, *operands: Any, **static: Any) -> Any:
    """Call a jitted function; inside somebody else's trace, the function that it wraps.

    An eager training loop calls ``update`` at every step: under ``jit`` it is traced once, not
    every time. A trace in progress gains nothing from that, and neither can an unhashable static.
    """
    try:
        hash(tuple(static.values()))
    except TypeError:
        hashable = False
    else:
        hashable = True
    direct = is_traced(operands) or not hashable
    return (compiled.__wrapped__ if direct else compiled)(*operands, **static)
