"""The examples of the two sources the library was asked to read, soundly and as printed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqn import Status, minimize, sr1_update
from jaxqn.derivatives import gradient, hessian, hvp, value_and_grad

# "Automatic differentiation and Hessian inverse rank-1 correction"

H = np.array([[2.0, 1.0], [1.0, 2.0]])


def parabola(x):
    return x**2 + 2 * x + 1


def test_value_gradient_and_hessian_of_the_parabola():
    value, slope = value_and_grad(parabola)(1.0)
    assert (float(value), float(slope), float(gradient(parabola)(1.0))) == (4.0, 4.0, 4.0)
    np.testing.assert_array_equal(hessian(parabola)(1.0), [[2.0]])
    assert float(hvp(parabola)(1.0, 1.0)) == 2.0


def form(x):
    return x @ H @ x / 2


def test_the_hessian_of_the_example_and_its_inverse():
    np.testing.assert_array_equal(hessian(form)(jnp.zeros(2)), H)
    np.testing.assert_allclose(np.linalg.inv(H), np.array([[2, -1], [-1, 2]]) / 3, rtol=1e-15)


@pytest.mark.parametrize("e", [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
def test_a_rank_one_correction_along_a_direction_is_exact_there(e):
    """SR1 with s = e and y = (Hessian) e from one Hessian-vector product: H_inv₊ y = e."""
    e = jnp.array(e)
    y = hvp(form)(jnp.zeros(2), e)
    corrected = sr1_update(jnp.eye(2), e, y)
    np.testing.assert_allclose(corrected @ y, e, rtol=0, atol=1e-15)
    assert np.linalg.matrix_rank(corrected - np.eye(2), tol=1e-12) == 1
    orthogonal = np.array([-(e - y)[1], (e - y)[0]])
    np.testing.assert_allclose(corrected @ orthogonal, orthogonal, atol=1e-15)


def test_two_such_corrections_are_the_inverse():
    inverse = jnp.eye(2)
    for e in jnp.eye(2):
        inverse = sr1_update(inverse, e, hvp(form)(jnp.zeros(2), e))
    np.testing.assert_allclose(inverse, np.linalg.inv(H), atol=1e-15)


def test_the_inverse_itself_needs_no_correction():
    """v = e - H_inv y = 0 along every direction: the pair is refused, nothing changes."""
    inverse = jnp.asarray(np.linalg.inv(H))
    e = jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(sr1_update(inverse, e, hvp(form)(jnp.zeros(2), e)), inverse)


def test_the_printed_correction_is_none():
    """As code it subtracts from the inverse the *elementwise* product of the identity with a
    matrix whose diagonal is 1: it subtracts the identity, whatever the Hessian, and what is left
    is neither the inverse of anything near nor positive definite."""
    printed = np.linalg.inv(H) - np.eye(2) * (H @ np.linalg.inv(H))
    np.testing.assert_allclose(printed, np.linalg.inv(H) - np.eye(2), atol=1e-15)
    for e in np.eye(2):
        assert np.linalg.norm(printed @ (H @ e) - e) > 1
    assert np.linalg.eigvalsh(printed)[0] < 0


# "Hessian inverse rank-2 correction": a 100-by-10 linear regression


def regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 10))
    return X, X @ rng.normal(size=10) + 0.1 * rng.normal(size=100)


def squares(theta, X, y):
    residual = X @ theta - y
    return residual @ residual / (2 * len(y))


@pytest.mark.parametrize("method", ["bfgs", "dfp"])
def test_rank_two_updates_solve_the_regression_to_machine_precision(method):
    X, y = regression()
    expected = np.linalg.lstsq(X, y)[0]
    result = minimize(squares, jnp.zeros(10), (X, y), method=method, gtol=1e-14)
    assert Status(int(result.status)) in (Status.CONVERGED, Status.STALLED)
    np.testing.assert_allclose(result.x, expected, rtol=1e-12, atol=1e-13)
    assert float(result.fun) == pytest.approx(squares(expected, X, y), rel=1e-14)
    assert int(result.nit) < 60


def test_the_printed_loop_goes_uphill():
    """Its residual is y - X theta and its "gradient" X.T @ residual: minus the gradient. Stepping
    theta -= lr * H_inv @ that climbs, with the exact inverse Hessian too."""
    X, y = regression()
    theta, inverse, losses = np.zeros(10), np.linalg.inv(X.T @ X / 100), []
    for _ in range(20):
        losses.append(squares(theta, X, y))
        residual = y - X @ theta
        theta = theta - 0.1 * inverse @ (X.T @ residual / 100)
    slope = jax.grad(squares)(jnp.asarray(theta), X, y)
    np.testing.assert_allclose(X.T @ (y - X @ theta) / 100, -slope, rtol=1e-12)
    assert np.all(np.diff(losses) > 0)
    assert losses[-1] > 10 * losses[0]
