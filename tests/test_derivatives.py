"""Derivatives of functions of pytrees against hand-made ones."""

import jax
import jax.numpy as jnp
import numpy as np
from problems import rosenbrock
from scipy.optimize import rosen, rosen_der, rosen_hess, rosen_hess_prod

from jaxqn.derivatives import gradient, hessian, hvp, value_and_grad

X = np.random.default_rng(0).normal(size=5)
V = np.random.default_rng(1).normal(size=5)


def split(flat):
    """The same numbers as a pytree of unlike shapes."""
    return {"b": flat[1:].reshape(2, 2), "a": flat[0]}


def joined(tree):
    return jnp.concatenate([tree["a"][None], tree["b"].ravel()])


def tree_rosenbrock(tree):
    return rosenbrock(joined(tree))


def test_value_and_gradient():
    value, grad = value_and_grad(rosenbrock)(X)
    np.testing.assert_allclose(value, rosen(X), rtol=1e-13)
    np.testing.assert_allclose(grad, rosen_der(X), rtol=1e-12)
    np.testing.assert_allclose(gradient(rosenbrock)(X), rosen_der(X), rtol=1e-12)


def test_value_and_gradient_of_a_pytree():
    value, grad = value_and_grad(tree_rosenbrock)(split(jnp.asarray(X)))
    assert jax.tree.map(jnp.shape, grad) == {"a": (), "b": (2, 2)}
    np.testing.assert_allclose(value, rosen(X), rtol=1e-13)
    np.testing.assert_allclose(joined(grad), rosen_der(X), rtol=1e-12)


def test_auxiliary_output():
    (value, aux), grad = value_and_grad(lambda x, c: (c * x @ x, 3 * x), has_aux=True)(X, 2.0)
    np.testing.assert_allclose(value, 2 * X @ X)
    np.testing.assert_allclose(aux, 3 * X)
    np.testing.assert_allclose(grad, 4 * X)


def test_hessian_of_a_pytree_is_over_the_ravelled_parameters():
    B = jax.jit(hessian(tree_rosenbrock))(split(jnp.asarray(X)))
    assert B.shape == (5, 5)
    np.testing.assert_allclose(B, rosen_hess(X), rtol=1e-11, atol=1e-11)


def test_hessian_vector_product():
    product = jax.jit(hvp(rosenbrock))(X, V)
    np.testing.assert_allclose(product, rosen_hess_prod(X, V), rtol=1e-11)


def test_hessian_vector_product_of_a_pytree():
    tree, v = split(jnp.asarray(X)), split(jnp.asarray(V))
    product = jax.jit(hvp(tree_rosenbrock))(tree, v)
    assert jax.tree.map(jnp.shape, product) == {"a": (), "b": (2, 2)}
    np.testing.assert_allclose(joined(product), rosen_hess_prod(X, V), rtol=1e-11)


def form(x, A):
    return x @ A @ x / 2


def test_arguments_are_passed_on_but_not_differentiated():
    A = np.array([[2.0, 1.0], [1.0, 3.0]])
    x, v = np.array([1.0, -2.0]), np.array([0.5, 4.0])
    np.testing.assert_allclose(jax.jit(gradient(form))(x, A), A @ x)
    np.testing.assert_allclose(jax.jit(hessian(form))(x, A), A)
    np.testing.assert_allclose(jax.jit(hvp(form))(x, v, A), A @ v)


def test_derivatives_keep_the_dtype(dtype):
    x = jnp.asarray(X, dtype)
    value, grad = jax.eval_shape(value_and_grad(rosenbrock), x)
    assert value.dtype == grad.dtype == dtype
    assert jax.eval_shape(hessian(rosenbrock), x).dtype == dtype
    assert jax.eval_shape(hvp(rosenbrock), x, x).dtype == dtype
