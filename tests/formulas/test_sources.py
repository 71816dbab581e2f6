"""The examples of the two sources the library was asked to read, soundly and as printed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqn import Status, sr1_update
from jaxqn.derivatives import gradient, hessian, hvp, value_and_grad
from jaxqn.drivers import minimize
from jaxqn.formulas.rank_one_corrections import rank_one_correction, wedderburn
from jaxqn.formulas.spectral import spectral_correction, spectral_inverse

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


def test_the_printed_formula_has_no_shapes():
    """H e Hᵀ, with e a column, is a column times a matrix. The two sound formulas next to it reduce
    the rank of H by one, and make the inverse exact along e."""
    e = np.array([[0.6], [0.8]])
    with pytest.raises(ValueError, match="mismatch in its core dimension"):
        H @ e @ H.T
    reduced = np.asarray(wedderburn(H, e[:, 0]))
    np.testing.assert_allclose(reduced @ e, 0, atol=1e-15)
    assert np.linalg.matrix_rank(reduced, tol=1e-12) == 1
    corrected = np.asarray(rank_one_correction(np.eye(2), e[:, 0], H @ e[:, 0]))
    np.testing.assert_allclose(corrected @ H @ e, e, atol=1e-15)


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


def nearly_singular_regression():
    """Two features that others all but determine: two eigenvalues of about 1e-12."""
    X, y = regression()
    rng = np.random.default_rng(1)
    X[:, :2] = X[:, 2:4] + X[:, 4:6] + 1e-6 * rng.normal(size=(100, 2))
    return X, y


def test_the_correction_of_the_inverse_has_rank_two():
    """Soundly: along the eigenvectors of the two smallest eigenvalues, 1/λ becomes 1/delta."""
    X, _ = nearly_singular_regression()
    B = X.T @ X / 100
    output = spectral_correction(jnp.asarray(B), rank=2, floor=1e-6)
    assert (int(output.rank), int(output.uncorrected)) == (2, 0)
    E = np.asarray(output.inverse) - np.linalg.inv(B)
    singular_values = np.linalg.svd(E, compute_uv=False)
    assert singular_values[1] > 1e10
    assert singular_values[2] < 1e-3 * singular_values[1]
    assert np.linalg.cond(B) > 1e11
    assert np.linalg.cond(output.inverse) == pytest.approx(1e6, rel=1e-6)


def test_the_printed_correction_is_at_the_other_end():
    """It names the smallest eigenvalues and takes the eigenvectors of the largest, where an inverse
    needs nothing: whatever is added there, what made it useless stays. Its other steps are an index
    that is no integer, and a 1 added to an entry, whatever the scale of the inverse."""
    X, _ = nearly_singular_regression()
    B = X.T @ X / 100
    values, vectors = np.linalg.eigh(B)
    inverse, last = np.linalg.inv(B), vectors[:, -2:]
    for added in (np.ones(2), 1 / values[-2:], -1 / values[-2:]):
        printed = inverse + last @ np.diag(added) @ last.T
        assert np.linalg.norm(printed, 2) == pytest.approx(np.linalg.norm(inverse, 2), rel=1e-9)
    assert np.linalg.norm(inverse, 2) > 1e5 * np.linalg.norm(spectral_inverse(B, floor=1e-6), 2)
    with pytest.raises(IndexError):
        inverse[last[:, 0]] += 1
    saddle = np.diag([2.0, -1e-3])
    printed = np.linalg.inv(saddle)
    printed[1, 1] += 1
    assert np.linalg.eigvalsh(printed)[0] < -900
    np.testing.assert_allclose(spectral_inverse(saddle), np.diag([0.5, 1000]), atol=1e-9)


@pytest.mark.parametrize("method", ["corrected", "printed sign"])
def test_one_corrected_step_solves_the_nearly_singular_regression(method):
    """Downhill, with the inverse bounded: all of the loss that the well-determined directions can
    take away goes in one step. With the residual's sign as printed, that loss is four times it."""
    X, y = nearly_singular_regression()
    inverse = spectral_inverse(jnp.asarray(X.T @ X / 100), floor=1e-6)
    g = jax.grad(squares)(jnp.zeros(10), X, y)
    step = -inverse @ g if method == "corrected" else inverse @ g
    least = squares(np.linalg.lstsq(X, y, rcond=1e-4)[0], X, y)
    before, after = squares(np.zeros(10), X, y) - least, squares(step, X, y) - least
    if method == "corrected":
        assert abs(after) < 1e-4 * before
    else:
        assert after == pytest.approx(4 * before, rel=1e-3)
