"""The libraries that people already use, run by their own code with jaxqn inside.

One network, one start and one set of data: whoever holds the parameters, the steps must be those
of a plain loop over a dict. A library that is not installed is skipped by name. Each row of the
guide's table "Neighbours" has a test here that says which row it is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from neighbours import (
    INPUTS,
    START,
    largest,
    loss,
    minimum,
    penalised,
    row,
)

import jaxqn

STEPS = 70
OPTIMISERS = {"rate": jaxqn.bfgs(learning_rate=0.8), "search": jaxqn.lbfgs()}
each_optimiser = pytest.mark.parametrize("name", OPTIMISERS)


slope = jax.jit(jax.grad(loss))


class Run(NamedTuple):
    """The losses along a run, and the parameters at its end as a dict like ``START``."""

    losses: np.ndarray
    params: dict


@functools.cache
def plain(name):
    """The run of a plain optax loop."""
    optimizer = OPTIMISERS[name]

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        return (optax.apply_updates(params, updates), state), value

    start = (START, optimizer.init(START))
    (params, _), losses = jax.jit(lambda: jax.lax.scan(step, start, length=STEPS))()
    return Run(np.asarray(losses), params)


def check_same_run(name, losses, params):
    """A run took the steps of the plain loop, and they led to the minimum."""
    expected = plain(name)
    np.testing.assert_allclose(losses, expected.losses, rtol=1e-9)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, expected.params
    )
    assert largest(slope(params)) < 1e-7
    assert losses[0] > 4 * losses[-1]


def test_the_plain_loop_reaches_the_minimum_of_minimize():
    """What the tests below compare with; both optimisers end where the driver does."""
    best = minimum()
    assert best.success
    for name in OPTIMISERS:
        run = plain(name)
        np.testing.assert_allclose(run.losses[-1], best.fun, rtol=1e-10)
        check_same_run(name, run.losses, best.x)


# --- Networks --------------------------------------------------------------------------------


@row("Flax NNX")
@each_optimiser
def test_flax_nnx(name):
    """``nnx.Optimizer`` hands extra arguments on; ``value_fn`` merges what ``nnx.split`` split."""
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.hidden = nnx.Linear(3, 4, rngs=rngs, param_dtype=jnp.float64)
            self.out = nnx.Linear(4, 1, rngs=rngs, param_dtype=jnp.float64)
            self.calls = nnx.Variable(jnp.array(0))

        def __call__(self, x):
            self.calls[...] += 1
            return self.out(jnp.tanh(self.hidden(x)))

    def objective(model):
        return penalised(model(jnp.asarray(INPUTS)), nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model, optimizer):
        value, grad = nnx.value_and_grad(objective)(model)
        if name == "rate":
            optimizer.update(model, grad)
        else:
            graph, _, rest = nnx.split(model, nnx.Param, ...)
            optimizer.update(
                model,
                grad,
                value=value,
                grad=grad,
                value_fn=lambda params: objective(nnx.merge(graph, params, rest, copy=True)),
            )
        return value

    model = Network()
    nnx.update(model, START)
    optimizer = nnx.Optimizer(model, OPTIMISERS[name], wrt=nnx.Param)
    losses = [float(step(model, optimizer)) for _ in range(STEPS)]
    check_same_run(name, losses, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert model.calls[...] == STEPS  # no parameter, and no trial of a search counts
    assert optimizer.step[...] == STEPS


def linen_state(optimizer):
    """A linen ``TrainState``, from ``START``."""
    nn = pytest.importorskip("flax.linen")
    train_state = pytest.importorskip("flax.training.train_state")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(4, param_dtype=jnp.float64, name="hidden")(x))
            return nn.Dense(1, param_dtype=jnp.float64, name="out")(x)

    model = Network()
    params = model.init(jax.random.key(0), jnp.asarray(INPUTS))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, START)
    return train_state.TrainState.create(apply_fn=model.apply, params=START, tx=optimizer)


@row("Flax linen")
@each_optimiser
def test_flax_linen_train_state(name):
    """``apply_gradients`` hands no extra arguments on: with a search, ``tx.update`` is called."""

    @jax.jit
    def step(state):
        def objective(params):
            return penalised(state.apply_fn({"params": params}, jnp.asarray(INPUTS)), params)

        value, grad = jax.value_and_grad(objective)(state.params)
        if name == "rate":
            return state.apply_gradients(grads=grad), value
        updates, opt_state = state.tx.update(
            grad, state.opt_state, state.params, value=value, grad=grad, value_fn=objective
        )
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), value

    state, losses = linen_state(OPTIMISERS[name]), []
    for _ in range(STEPS):
        state, value = step(state)
        losses.append(float(value))
    check_same_run(name, losses, state.params)
    assert state.step == STEPS


@row("Flax linen")
def test_a_train_state_with_a_search_says_what_is_missing():
    state = linen_state(OPTIMISERS["search"])
    with pytest.raises(TypeError, match=r"value_fn= is missing.*choosing a learning_rate"):
        state.apply_gradients(grads=state.params)


def haiku_network():
    """The network of dm-haiku, and the parameters of ``START`` under its names."""
    hk = pytest.importorskip("haiku")

    def forward(x):
        return hk.Linear(1, name="out")(jnp.tanh(hk.Linear(4, name="hidden")(x)))

    transformed = hk.without_apply_rng(hk.transform(forward))
    params = {
        layer: {"w": values["kernel"], "b": values["bias"]} for layer, values in START.items()
    }
    made = transformed.init(jax.random.key(0), jnp.asarray(INPUTS))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    return transformed, params


@row("Haiku")
def test_haiku():
    transformed, params = haiku_network()

    def objective(params, x):
        return penalised(transformed.apply(params, x), params)

    result = jaxqn.minimize(objective, params, (jnp.asarray(INPUTS),))
    assert result.success
    found = {layer: {"bias": v["b"], "kernel": v["w"]} for layer, v in result.x.items()}
    np.testing.assert_allclose(result.fun, minimum().fun, rtol=1e-12)
    assert largest(slope(found)) < 1e-8


def equinox_network():
    """The network as an Equinox module, with a field that is no array."""
    eqx = pytest.importorskip("equinox")

    class Network(eqx.Module):
        hidden: eqx.nn.Linear
        out: eqx.nn.Linear
        activation: object

        def __init__(self):
            keys = jax.random.split(jax.random.key(0))
            self.hidden = eqx.nn.Linear(3, 4, key=keys[0], dtype=jnp.float64)
            self.out = eqx.nn.Linear(4, 1, key=keys[1], dtype=jnp.float64)
            self.activation = jnp.tanh

        def __call__(self, x):
            return self.out(self.activation(self.hidden(x)))

    def arrays(model):
        return [model.hidden.bias, model.hidden.weight, model.out.bias, model.out.weight]

    start = [leaf.T for leaf in jax.tree.leaves(START)]  # (out, in) there, (in, out) here
    return eqx, eqx.tree_at(arrays, Network(), start)


def equinox_loss(model):
    arrays = [leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array)]
    return penalised(jax.vmap(model)(jnp.asarray(INPUTS)), arrays)


def equinox_as_dict(model):
    return {
        "hidden": {"bias": model.hidden.bias, "kernel": model.hidden.weight.T},
        "out": {"bias": model.out.bias, "kernel": model.out.weight.T},
    }


@row("Equinox")
@each_optimiser
def test_equinox_in_an_optax_loop(name):
    eqx, model = equinox_network()
    optimizer = OPTIMISERS[name]

    @eqx.filter_jit
    def step(model, state):
        value, grad = eqx.filter_value_and_grad(equinox_loss)(model)
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def value_fn(params):
            return equinox_loss(eqx.combine(params, static))

        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        return eqx.apply_updates(model, updates), state, value

    state, losses = optimizer.init(eqx.filter(model, eqx.is_inexact_array)), []
    for _ in range(STEPS):
        model, state, value = step(model, state)
        losses.append(float(value))
    check_same_run(name, losses, equinox_as_dict(model))


@row("Equinox")
def test_equinox_in_minimize():
    """The arrays of a module are the parameters, and the rest is put back."""
    eqx, model = equinox_network()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    result = jaxqn.minimize(lambda params: equinox_loss(eqx.combine(params, static)), params)
    assert result.success
    np.testing.assert_allclose(result.fun, minimum().fun, rtol=1e-12)
    fitted = eqx.combine(result.x, static)
    assert fitted.activation is jnp.tanh
    np.testing.assert_allclose(equinox_loss(fitted), result.fun, rtol=1e-12)
    with pytest.raises(TypeError, match=r"x0\.activation"):
        jaxqn.minimize(equinox_loss, model)


@row("Equinox")
def test_an_equinox_module_of_arrays_needs_no_partition(dtype):
    eqx = pytest.importorskip("equinox")

    class Decay(eqx.Module):
        scale: jax.Array
        rate: jax.Array

        def __call__(self, x):
            return self.scale * jnp.exp(-self.rate * x)

    x = jnp.linspace(0, 2, 30, dtype=dtype)
    truth = Decay(jnp.asarray(3, dtype), jnp.asarray(1.5, dtype))

    def objective(model, y):
        return jnp.mean((model(x) - y) ** 2)

    start = Decay(jnp.ones((), dtype), jnp.ones((), dtype))
    result = jaxqn.minimize(objective, start, (truth(x),))
    assert isinstance(result.x, Decay)
    assert isinstance(result.jac, Decay)
    np.testing.assert_allclose([result.x.scale, result.x.rate], [3, 1.5], rtol=1e-4)
