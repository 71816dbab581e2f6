"""Robust losses beside SciPy's, their weights beside derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxqn import sum_of_squares
from jaxqn.formulas import LOSSES, rho_and_weight

RESIDUALS = np.concatenate([[0.0], np.geomspace(1e-9, 1e4, 14), -np.geomspace(1e-3, 1e3, 7)])
each_loss = pytest.mark.parametrize("loss", LOSSES)


def stretched(x, r):
    return r * (1 + x)


@each_loss
@pytest.mark.parametrize("f_scale", [1e-3, 1.0, 20.0])
def test_the_cost_is_that_of_scipy(loss, f_scale, dtype):
    scipys = optimize.least_squares(
        lambda x: RESIDUALS * (1 + x),
        np.zeros(1),
        lambda _: RESIDUALS[:, None],
        loss=loss,
        f_scale=f_scale,
        max_nfev=1,
    )
    objective = sum_of_squares(stretched, loss, f_scale)
    r = jnp.asarray(RESIDUALS, dtype)
    cost, slope = jax.value_and_grad(objective)(jnp.zeros(1, dtype), r)
    tol = 1e-5 if dtype == jnp.float32 else 1e-12
    assert cost.dtype == dtype
    np.testing.assert_allclose(cost, scipys.cost, rtol=tol)
    np.testing.assert_allclose(slope, scipys.grad, rtol=tol)


@each_loss
def test_weights_are_derivatives(loss, dtype):
    z = jnp.asarray(np.concatenate([[0.0, 1.0], np.geomspace(1e-12, 1e12, 25)]), dtype)
    rho, weight = rho_and_weight(LOSSES[loss], z)
    if loss == "linear":
        assert weight is None
        np.testing.assert_array_equal(rho, z)
        return
    assert rho.dtype == weight.dtype == dtype
    slopes = jax.vmap(jax.grad(LOSSES[loss]))(z)
    np.testing.assert_allclose(weight, slopes, rtol=1e-6 if dtype == jnp.float32 else 1e-14)
    assert np.all((weight >= 0) & (weight <= 1))
    assert (float(rho[0]), float(weight[0])) == (0, 1)
    assert np.all(np.isfinite(rho))


@each_loss
def test_small_residuals_count_as_squares(loss, dtype):
    """To the last digits: 1 + z − 1 would leave none."""
    z = jnp.asarray([1e-30, 1e-20], dtype)
    np.testing.assert_allclose(rho_and_weight(LOSSES[loss], z)[0], z, rtol=1e-6)


def test_a_weight_is_never_negative():
    """Whatever the loss: JᵀWJ stays positive semidefinite."""
    z = jnp.array([0.1, 3.0])
    rho, weight = rho_and_weight(lambda z: z * jnp.exp(-z), z)
    np.testing.assert_allclose(rho, z * np.exp(-z))
    np.testing.assert_allclose(weight, [0.9 * np.exp(-0.1), 0])
