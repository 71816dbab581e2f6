"""Every transformation in the training loops of Flax NNX, Flax linen and Equinox.

Those libraries hold the state in containers of their own, and wrap or replace what they find in it.
Two steps of each loop must be those of a plain optax loop over a dict: jitted for every
transformation, and eager, where ``update`` compiles a program of its own, for one of every kind.
"""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxqn
from jaxqn.formulas import bfgs_rule

random = np.random.default_rng(0)
INPUTS, TARGETS = jnp.asarray(random.normal(size=(4, 2))), jnp.asarray(random.normal(size=(4, 3)))
START = {"bias": jnp.zeros(3), "kernel": jnp.asarray(random.normal(size=(2, 3)))}
STEPS = 2


def loss(params):
    """The loss of the network of one layer, in plain JAX."""
    return error(jnp.tanh(INPUTS @ params["kernel"] + params["bias"][None]))


def error(prediction):
    return jnp.mean((prediction - TARGETS) ** 2)


class Case(NamedTuple):
    """An optimiser, and whether it is told the value, the gradient and the objective."""

    optimizer: optax.GradientTransformationExtraArgs
    evaluates: bool = False

    def extra(self, value, grad, value_fn):
        return {"value": value, "grad": grad, "value_fn": value_fn} if self.evaluates else {}


RATE = 0.05
OPTIONS = {
    "scale_by_quasi_newton": {"qn": jaxqn.damped(jaxqn.dense(bfgs_rule))},
    "scale_by_spectral_correction": {"rank": 1, "every": 1},
    "scale_by_stochastic_lbfgs": {"memory": 1, "every": 1},
    "scale_by_lbfgs": {"memory": 1},
    "scale_by_lsr1": {"memory": 1},
}
EVALUATING = {"scale_by_newton", "scale_by_spectral_correction"}
FACTORIES = {
    name: getattr(jaxqn.transforms, name)
    for name in jaxqn.transforms.__all__
    if inspect.isfunction(getattr(jaxqn.transforms, name))
}
ALIASES = [name for name in FACTORIES if not name.startswith("scale_by_")]


def rated(transform):
    return optax.chain(transform, optax.scale_by_learning_rate(RATE))


CASES = {
    name: Case(rated(make(**OPTIONS.get(name, {}))), name in EVALUATING)
    for name, make in FACTORIES.items()
    if name not in (*ALIASES, "scale_by_linesearch")
} | {
    "scale_by_linesearch": Case(optax.chain(optax.scale(-0.1), jaxqn.scale_by_linesearch()), True),
    "kronecker by rank one": Case(rated(jaxqn.scale_by_kronecker(correction="rank_one"))),
    "kronecker with one side": Case(rated(jaxqn.scale_by_kronecker(max_side=2))),
    "stochastic with batches": Case(
        rated(jaxqn.scale_by_stochastic_lbfgs(memory=1, every=1)), True
    ),
}
EAGER = {"scale_by_bfgs", "scale_by_kronecker", "scale_by_linesearch"}
each_case = pytest.mark.parametrize("name", CASES)


def test_every_transformation_has_a_case():
    transformations = {name for name in jaxqn.__all__ if name.startswith("scale_by_")}
    assert transformations == FACTORIES.keys() - ALIASES
    assert transformations <= CASES.keys()
    of_residuals = {"structured", "lm", "residual"}
    assert {*jaxqn.METHODS, "lsr1"} - of_residuals == set(ALIASES)


def step_of(case, params, state):
    """A step of the plain loop."""
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = case.optimizer.update(grad, state, params, **case.extra(value, grad, loss))
    return optax.apply_updates(params, updates), state, value


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_with_a_learning_rate_is_its_transformation(name):
    """The programs are equal, so that whatever holds for the one holds for the other."""
    case = CASES[f"scale_by_{name}"]
    options = OPTIONS.get(f"scale_by_{name}", {})
    alias = case._replace(optimizer=FACTORIES[name](learning_rate=RATE, **options))
    texts = [
        str(jax.make_jaxpr(functools.partial(step_of, c))(START, c.optimizer.init(START)))
        for c in (case, alias)
    ]
    assert texts[0] == texts[1]


@functools.cache
def plain(name):
    """Losses and last parameters of the plain loop."""
    case = CASES[name]
    step = jax.jit(functools.partial(step_of, case))
    params, state, losses = START, case.optimizer.init(START), []
    for _ in range(STEPS):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses, params


def ways(name, step, jit):
    """The ways in which a step is run."""
    return (jit(step), step) if name in EAGER else (jit(step),)


def check_same(name, losses, params):
    expected, last = plain(name)
    assert np.isfinite([*losses, float(loss(params))]).all()
    np.testing.assert_allclose(losses, expected, rtol=1e-8)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9), params, last)


@each_case
def test_flax_nnx(name):
    nnx = pytest.importorskip("flax.nnx")
    case = CASES[name]

    def objective(model):
        return error(jnp.tanh(model(INPUTS)))

    def step(model, optimizer):
        value, grad = nnx.value_and_grad(objective)(model)
        optimizer.update(model, grad, **case.extra(value, grad, value_fn))
        return value

    for run in ways(name, step, nnx.jit):
        model = nnx.Linear(2, 3, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        nnx.update(model, START)
        graph, _ = nnx.split(model)

        def value_fn(params, graph=graph):
            return objective(nnx.merge(graph, params, copy=True))

        optimizer = nnx.Optimizer(model, case.optimizer, wrt=nnx.Param)
        losses = [float(run(model, optimizer)) for _ in range(STEPS)]
        check_same(name, losses, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


@each_case
def test_flax_linen(name):
    nn = pytest.importorskip("flax.linen")
    train_state = pytest.importorskip("flax.training.train_state")
    case, model = CASES[name], nn.Dense(3, param_dtype=jnp.float64)

    def objective(params):
        return error(jnp.tanh(model.apply({"params": params}, INPUTS)))

    def step(state):
        value, grad = jax.value_and_grad(objective)(state.params)
        if not case.evaluates:
            return state.apply_gradients(grads=grad), value
        updates, opt_state = state.tx.update(
            grad, state.opt_state, state.params, **case.extra(value, grad, loss)
        )
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), value

    for run in ways(name, step, jax.jit):
        state = train_state.TrainState.create(apply_fn=model.apply, params=START, tx=case.optimizer)
        losses = []
        for _ in range(STEPS):
            state, value = run(state)
            losses.append(float(value))
        check_same(name, losses, state.params)


@functools.cache
def equinox_network():
    """The network as an Equinox module, with a field that is no array."""
    eqx = pytest.importorskip("equinox")

    class Network(eqx.Module):
        bias: jax.Array
        kernel: jax.Array
        activation: object

        def __call__(self, x):
            return self.activation(x @ self.kernel + self.bias[None])

    return eqx, Network(**START, activation=jnp.tanh)


@pytest.mark.parametrize("name", CASES)
def test_equinox(name):
    eqx, start = equinox_network()
    case = CASES[name]

    def objective(model):
        return error(model(INPUTS))

    _, static = eqx.partition(start, eqx.is_inexact_array)

    def value_fn(params):
        return objective(eqx.combine(params, static))

    def step(model, state):
        value, grad = eqx.filter_value_and_grad(objective)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = case.optimizer.update(
            grad, state, params, **case.extra(value, grad, value_fn)
        )
        return eqx.apply_updates(model, updates), state, value

    for run in ways(name, step, eqx.filter_jit):
        model, losses = start, []
        state = case.optimizer.init(eqx.filter(model, eqx.is_inexact_array))
        for _ in range(STEPS):
            model, state, value = run(model, state)
            losses.append(float(value))
        check_same(name, losses, {"bias": model.bias, "kernel": model.kernel})
