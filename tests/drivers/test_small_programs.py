"""Which programs of eager calls the older emitters compile, and that nothing is traced twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqn.drivers import small_programs
from jaxqn.drivers.small_programs import SMALL, eager_program


@pytest.fixture
def known(monkeypatch):
    """The options of a jit, noted as it is made; the decorator then works as ever."""
    options, jit = [], jax.jit

    def noted(fun, **given):
        program = jit(fun, **given)
        if fun.__name__ != "total":
            return program

        class Noted:
            trace = staticmethod(program.trace)

            def __call__(self, *args, **keywords):
                options.append(given.get("compiler_options"))
                return program(*args, **keywords)

        return Noted()

    monkeypatch.setattr(small_programs.jax, "jit", noted)
    return options


def decorated(traces):
    @eager_program("power")
    def total(x, *, power):
        traces.append(x.shape)

        def add(carry, row):
            return carry + jnp.sum(row**power), None

        return jax.lax.scan(add, jnp.zeros((), x.dtype), x)[0]

    return total


def test_a_small_program_is_compiled_quickly_and_traced_once(known):
    traces = []
    total = decorated(traces)
    for _ in range(2):
        np.testing.assert_allclose(total(jnp.ones((4, SMALL // 4)), power=2), SMALL)
    assert traces == [(4, SMALL // 4)]
    assert known == [small_programs.QUICKLY] * 2


def test_a_large_array_anywhere_takes_the_usual_way(known):
    decorated([])(jnp.ones((4, SMALL // 4 + 1)), power=2)

    def total(x):  # of a matrix within
        return jnp.sum(jnp.outer(x, x))

    eager_program()(total)(jnp.ones(SMALL // 2))
    assert known == [None] * 2


def test_inside_a_transformation_there_are_no_options(known):
    total = decorated([])
    x = jnp.ones((2, 2))
    np.testing.assert_allclose(jax.jit(lambda x: total(x, power=3))(x), 4)
    np.testing.assert_allclose(jax.grad(lambda x: total(x, power=3))(x), 3 * np.ones((2, 2)))
    assert known == [None] * 2


def test_an_unknown_option_is_left_out(known, monkeypatch):
    monkeypatch.setattr(small_programs, "QUICKLY", {"xla_cpu_no_such_option": False})
    small_programs._knows_options.cache_clear()
    total = decorated([])
    np.testing.assert_allclose(total(jnp.ones((2, 2)), power=1), 4)
    assert known == [None]
    small_programs._knows_options.cache_clear()
