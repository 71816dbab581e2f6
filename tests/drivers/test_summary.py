"""Results as text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqn


def bowl(x, a):
    return jnp.sum((x["near"] - 1) ** 2) + (x["far"] - a) ** 2


START = {"near": jnp.zeros(2), "far": jnp.array(0.0)}


@pytest.fixture(scope="module")
def result():
    return jaxqn.minimize(bowl, START, (3.0,), bounds=(None, 2.0), method="BFGS")


def test_one_result(result):
    """The status, and every parameter by name, with its error and its bound."""
    text = result.summary(errors={"near": jnp.array([0.1, 0.2]), "far": jnp.array(jnp.nan)})
    first, advice, far, *near = text.splitlines()
    assert first == f"CONVERGED: fun 1 after {result.nit} iterations and {result.nfev} evaluations"
    assert advice == result.message == jaxqn.MESSAGES[result.status]
    assert far.split() == ["x['far']", "2", "±", "nan", "at", "its", "upper", "bound"]
    assert [line.split() for line in near] == [
        ["x['near'][0]", "1", "±", "0.1"],
        ["x['near'][1]", "1", "±", "0.2"],
    ]
    assert result.status_name == "CONVERGED"


def test_a_batch():
    """How many ended how, and the largest values."""
    targets = jnp.arange(9.0)
    found = jaxqn.minimize_batch(bowl, START, (targets,), in_axes=(None, 0), bounds=(None, 2.0))
    lines = found.summary().splitlines()
    assert lines[0].startswith("9 problems")
    assert lines[1].split() == ["CONVERGED", "9", "Converged"]
    assert "largest [8] 36, [7] 25" in lines[2]
    assert found.status_name.tolist() == ["CONVERGED"] * 9
    with pytest.raises(ValueError, match="errors are for one problem"):
        found.summary(errors=found.x)


def test_a_repr_is_short():
    x0 = jnp.zeros(1000)
    text = repr(jaxqn.minimize(lambda x: jnp.sum((x - 1) ** 2), x0, method="lbfgs"))
    assert "x=<float64[1000]>" in text
    assert len(text) < 300


def test_a_traced_result_has_no_text(result):
    with pytest.raises(TypeError, match="being traced"):
        jax.jit(lambda status: result._replace(status=status).status_name)(np.int32(1))
