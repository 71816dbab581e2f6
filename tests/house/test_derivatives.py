"""Derivatives of functions of pytrees against hand-made ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import rosenbrock
from scipy.optimize import rosen, rosen_der, rosen_hess, rosen_hess_prod

from jaxqn.derivatives import check_gradient, gradient, hessian, hvp, value_and_grad

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


# A check of gradients


def with_gradient(fun, change):
    """The same function with another gradient: ``change(x, g)``."""
    other = jax.custom_vjp(fun)
    other.defvjp(
        lambda x: (fun(x), x),
        lambda x, c: (jax.tree.map(lambda g: c * g, change(x, jax.grad(fun)(x))),),
    )
    return other


@jax.jit
def wave(tree):
    """Every entry has a slope of its own, and every leaf has a part in it."""
    return jnp.sum(jnp.sin(tree["b"])) * jnp.exp(tree["a"]) + tree["a"] ** 2


def times_in_one_entry(factor):
    return lambda _, g: {"a": g["a"], "b": g["b"].at[1, 0].multiply(factor)}


# What is wrong, where, and how often the right derivative the gradient gives there.
FAULTS = {
    "a sign": (lambda _, g: {"a": g["a"], "b": -g["b"]}, "x['b']", -1),
    "a missing term": (lambda x, g: {"a": g["a"] - 2 * x["a"], "b": g["b"]}, "x['a']", None),
    "a factor in one entry": (times_in_one_entry(0.9), "x['b'][1, 0]", 0.9),
    "a sign in one entry": (times_in_one_entry(-1), "x['b'][1, 0]", -1),
    "no gradient": (lambda _, g: jax.tree.map(jnp.zeros_like, g), "x['", 0),
}


def by_name(tree):
    """The entries of a tree by the names that a check gives them."""
    inside = {f"x['b'][{i}, {j}]": float(tree["b"][i, j]) for i in range(2) for j in range(2)}
    return {"x['a']": float(tree["a"]), **inside}


@pytest.mark.parametrize("fun", [tree_rosenbrock, wave])
def test_a_right_gradient_is_found_right(fun, dtype):
    check = check_gradient(fun, split(jnp.asarray(X, dtype)))
    assert check
    assert check.ok is True
    slopes = jax.tree.leaves(jax.grad(fun)(split(jnp.asarray(X, dtype))))
    largest = max(float(jnp.max(jnp.abs(slope))) for slope in slopes)
    assert check.error <= check.tolerance < (1e-2 if dtype == jnp.float32 else 1e-7) * largest
    assert check.message.startswith("the gradient agrees with differences: along ")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_gradient_is_found_wrong(fault, dtype):
    change, worst, ratio = FAULTS[fault]
    x = split(jnp.asarray(X, dtype))
    check = check_gradient(with_gradient(wave, change), x)
    assert not check
    assert check.worst.startswith(worst)
    right = by_name(jax.grad(wave)(x))[check.worst]
    assert check.measured == pytest.approx(right, abs=check.tolerance)
    assert check.error == abs(check.given - check.measured) > check.tolerance
    if ratio is not None:
        assert check.given == pytest.approx(ratio * right, rel=1e-5)
    assert f"the gradient is wrong, or fun has no derivative at x: along {worst}" in check.message


def test_one_wrong_entry_of_many_is_found(dtype):
    """Random directions show that there is one, and halves of them lead to it."""
    x = {"w": jnp.asarray(np.random.default_rng(2).normal(size=(8, 50)), dtype), "b": jnp.ones(3)}
    x["b"] = x["b"].astype(dtype)

    def fun(x):
        return jnp.sum(jnp.cos(x["w"])) + jnp.sum(x["b"] ** 3)

    def one_sign(_, g):
        return {"w": g["w"].at[5, 17].multiply(-1), "b": g["b"]}

    fun = jax.jit(fun)
    assert check_gradient(fun, x)
    check = check_gradient(with_gradient(fun, one_sign), x, key=jax.random.key(3))
    assert not check
    assert check.worst == "x['w'][5, 17]"
    np.testing.assert_allclose(check.measured, -np.sin(x["w"][5, 17]), rtol=0.02)
    np.testing.assert_allclose(check.given, np.sin(x["w"][5, 17]), rtol=1e-5)


@pytest.mark.parametrize("power", [-80, 80])
def test_the_scale_of_f_decides_no_check(power, dtype):
    x = split(jnp.asarray(X, dtype))
    for change in (lambda _, g: g, times_in_one_entry(0.9)):
        fun = with_gradient(wave, change)
        check = check_gradient(fun, x)
        scaled = check_gradient(
            lambda x, fun=fun: fun(x) * jnp.asarray(2.0**power, x["b"].dtype), x
        )
        assert (scaled.ok, scaled.worst) == (check.ok, check.worst)
        assert scaled.tolerance == pytest.approx(2.0**power * check.tolerance)


def test_a_noisy_function_has_a_wide_tolerance():
    """What a large constant takes from the digits of f, differences cannot tell."""
    x = split(jnp.asarray(X))
    check, noisy = (check_gradient(lambda x, c=c: (c + wave(x)) - c, x) for c in (0.0, 1e9))
    assert check.ok
    assert noisy.ok
    assert noisy.tolerance > 1e3 * check.tolerance
    few = with_gradient(lambda x: (1e9 + wave(x)) - 1e9, times_in_one_entry(0.5))
    assert check_gradient(few, x).worst == "x['b'][1, 0]"


@pytest.mark.parametrize(
    ("fun", "given", "measured"),
    [
        (lambda x: jnp.sum(jax.nn.relu(x)), 0.0, 0.5),
        (lambda x: x[0] + jnp.sqrt(jnp.sum(x[1:] ** 2)), np.nan, 0.0),
        (lambda x: x[0] + jnp.sqrt(x[1]), np.inf, np.nan),
    ],
    ids=["kink", "NaN", "edge"],
)
def test_no_derivative_is_an_error(fun, given, measured):
    check = check_gradient(fun, jnp.array([1.0, 0.0]))
    assert not check
    assert check.worst == "x[1]"
    np.testing.assert_allclose([check.given, check.measured], [given, measured], atol=1e-12)
    assert ("not finite on both sides" in check.message) == np.isnan(measured)


def test_a_check_passes_arguments_on():
    A, x = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([1.0, -2.0])
    assert check_gradient(form, x, A)
    assert check_gradient(lambda x, A: (form(x, A), A), x, A, has_aux=True)
    assert check_gradient(lambda x: x**3, 2.0)
    keys = (check_gradient(form, x, A, key=jax.random.key(k)).given for k in range(3))
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("fun", "x", "kind", "words"),
    [
        (3.0, X, TypeError, ["fun", "float"]),
        (lambda x: x, X, TypeError, ["scalar"]),
        (lambda x: (x @ x, x), X, TypeError, ["scalar"]),
        (jnp.sum, {"a": np.ones(2, int)}, TypeError, ["x['a']", "int64", "float32"]),
        (jnp.sum, X + 1j, TypeError, ["x has dtype complex128"]),
        (jnp.sum, jnp.ones(2, jnp.bfloat16), TypeError, ["bfloat16", "float32"]),
        (jnp.sum, [np.ones(2), np.ones(2, np.float32)], ValueError, ["one dtype", "cast"]),
        (jnp.sum, np.ones(0), ValueError, ["no entries"]),
        (lambda x: jnp.sum(jnp.log(x)), np.array([-1.0, 1.0]), ValueError, ["fun(x)", "nan"]),
    ],
    ids=["fun", "vector", "aux", "integer", "complex", "half", "dtypes", "empty", "not finite"],
)
def test_what_cannot_be_checked(fun, x, kind, words):
    with pytest.raises(kind) as caught:
        check_gradient(fun, x)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_check_looks_at_numbers():
    with pytest.raises(TypeError, match="x is traced: call check_gradient outside of jit"):
        jax.jit(lambda x: check_gradient(rosenbrock, x).error)(X)
