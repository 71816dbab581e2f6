"""Optax transformations: do they compose, and do they go downhill?

Each case is one small program; it passes when it runs and its check holds.
"""

import importlib
import inspect

import jax
import jax.numpy as jnp
import optax

TRANSFORMS = (
    ("optax", "lbfgs", "scale_by_lbfgs"),
    ("jaxqn", "bfgs", "scale_by_bfgs"),
    ("jaxqn", "ssbfgs", "scale_by_ssbfgs"),
    ("jaxqn", "ssbroyden", "scale_by_ssbroyden"),
    ("jaxqn", "sr1", "scale_by_sr1"),
    ("jaxqn", "lbfgs", "scale_by_lbfgs"),
)


def loss(params, scale=1.0):
    """A convex quadratic of two leaves."""
    return scale * sum(jnp.sum((leaf - 1.0) ** 2) for leaf in params.values())


def start():
    return {"a": jnp.arange(3.0), "b": jnp.ones((2,)) * 3.0}


def steps(optimizer, params, value_fn=loss, count=3, **extra):
    """A few steps of the documented loop; the loss at the end."""
    state = optimizer.init(params)
    for _ in range(count):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn, **extra
        )
        params = optax.apply_updates(params, updates)
    return float(loss(params))


def plain(alias, _):
    """The documented loop itself."""
    return steps(alias(), start()) < 0.1


def masked(alias, _):
    """One leaf is frozen, with the method's own line search."""
    keep = {"a": True, "b": False}
    frozen = optax.masked(optax.set_to_zero(), {"a": False, "b": True})
    chain = optax.chain(optax.masked(alias(), keep), frozen)
    return steps(chain, start()) < float(loss(start()))


def masked_without_search(alias, _):
    """One leaf is frozen, a fixed learning rate."""
    return masked(lambda: alias(learning_rate=0.1, linesearch=None), None)


def partition(alias, _):
    """One leaf by this method with its line search, the other by SGD."""
    parts = optax.partition({"qn": alias(), "sgd": optax.sgd(0.1)}, {"a": "qn", "b": "sgd"})
    return steps(parts, start()) < float(loss(start()))


def partition_without_search(alias, _):
    """One leaf by this method at a fixed learning rate, the other by SGD."""
    return partition(lambda: alias(learning_rate=0.1, linesearch=None), None)


def donated(alias, _):
    """A fresh state and the parameters donated to a compiled step."""
    optimizer, params = alias(), start()

    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    params, _ = jax.jit(step, donate_argnums=(0, 1))(params, state)
    return float(loss(params)) < float(loss(start()))


def with_keywords(alias, _):
    """``value_fn(params, **kwargs)``."""

    def value_fn(params, **kwargs):
        return loss(params, **kwargs)

    return steps(alias(), start(), value_fn, scale=1.0) < 0.1


def with_aux(alias, _):
    """A ``value_fn`` that returns ``(value, aux)``."""
    takes = "has_aux" in inspect.signature(alias).parameters
    optimizer = alias(has_aux=True) if takes else alias()
    return steps(optimizer, start(), lambda p: (loss(p), {"size": 5})) < 0.1


def unknown_keyword(alias, _):
    """An extra argument meant for another transformation of the chain."""
    return steps(alias(), start(), not_for_me=1.0) < 0.1


def learning_rate_only(alias, _):
    """``update(grads, state, params)``, a fixed rate and no line search."""
    optimizer, params = alias(learning_rate=0.1, linesearch=None), start()
    state = optimizer.init(params)
    for _ in range(30):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return float(loss(params)) < 0.5 * float(loss(start()))


def downhill(_, scale_by):
    """Directions along a path of negative curvature, at a fixed step.

    f = sum x^4/4 - x^2/2 curves down near zero; whatever pair that leaves, the
    preconditioned gradient must keep a positive product with the gradient.
    """

    def quartic(x):
        return jnp.sum(0.25 * x**4 - 0.5 * x**2)

    transform, x = scale_by(), jnp.array([0.1, -0.05, 0.02])
    state = transform.init(x)
    for _ in range(8):
        grad = jax.grad(quartic)(x)
        direction, state = transform.update(grad, state, x)
        if not float(jnp.vdot(direction, grad)) > 0.0:
            return False
        x = x - 0.1 * grad
    return True


def no_retrace(alias, _):
    """The second eager update does not trace the objective again."""
    traces = []

    def value_fn(params):
        traces.append(1)
        return loss(params)

    optimizer, params = alias(), start()
    state = optimizer.init(params)
    for _ in range(2):
        before = len(traces)
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        params = optax.apply_updates(params, updates)
    if len(traces) > before:
        raise AssertionError(f"{len(traces) - before} traces in it")
    return True


CASES = (
    plain,
    masked,
    masked_without_search,
    partition,
    partition_without_search,
    donated,
    with_keywords,
    with_aux,
    unknown_keyword,
    learning_rate_only,
    downhill,
    no_retrace,
)


def verdict(case, alias, scale_by) -> str:
    """ "pass", or what failed."""
    try:
        return "pass" if case(alias, scale_by) else "FAIL"
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        return f"FAIL: {type(error).__name__}: {text[0][:60]}"


def run() -> dict:
    """One block per case, one row per transformation."""
    chosen = []
    for module, alias, scale_by in TRANSFORMS:
        name = f"{module}.{alias}"
        try:
            found = importlib.import_module(module)
            chosen.append((name, getattr(found, alias), getattr(found, scale_by)))
        except (ImportError, AttributeError):
            print(f"skipped: {name} as a transformation (not available)")
    results: dict = {}
    for case in CASES:
        print(f"\n{case.__name__.replace('_', ' ')}: {case.__doc__.splitlines()[0]}")
        rows = results[case.__name__] = {}
        for name, alias, scale_by in chosen:
            rows[name] = verdict(case, alias, scale_by)
            print(f"  {name:22}{rows[name]}", flush=True)
    return results
