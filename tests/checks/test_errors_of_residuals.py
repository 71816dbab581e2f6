"""Bad input where residuals are expected: one clear error, before anything is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqn
from jaxqn import least_squares, minimize, minimize_batch, sum_of_squares

X = np.ones(2)


def never(*_):
    raise AssertionError("the residuals were called before the input was checked")


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "unknown loss 'l1'.*arctan, cauchy, huber, linear", dict(loss="l1")),
        (TypeError, "loss must be a function", dict(loss=3)),
        (TypeError, "loss .*Unhashable.* cannot be hashed", dict(loss=Unhashable())),
        (ValueError, "f_scale.*positive.*0", dict(loss="huber", f_scale=0)),
        (ValueError, "f_scale.*-1", dict(loss="huber", f_scale=-1.0)),
        (ValueError, "f_scale.*nan", dict(loss="huber", f_scale=np.nan)),
        (TypeError, "residuals must be a function", dict(residuals=X)),
        (TypeError, "residuals .*Unhashable.* cannot be hashed", dict(residuals=Unhashable())),
        (TypeError, "jac must be a function", dict(jac=np.eye(2))),
        (TypeError, r"args.*tuple", dict(args=X)),
        (TypeError, r"args\[0\].*str", dict(args=("fast",))),
        (TypeError, "x0.*int64", dict(x0=np.ones(2, int))),
        (TypeError, "callback must be a function", dict(callback=True)),
        (TypeError, "hess_inv0", dict(hess_inv0=np.eye(2))),
        (TypeError, "linesearch", dict(linesearch=jaxqn.wolfe())),
    ],
)
def test_bad_input(error, words, options):
    call = {"residuals": never, "x0": X} | options
    with pytest.raises(error, match=words):
        least_squares(call.pop("residuals"), call.pop("x0"), **call)


def test_a_scale_is_known_when_compiling():
    with pytest.raises(TypeError, match="f_scale must be a number known when compiling"):
        jax.jit(lambda C: least_squares(never, X, loss="huber", f_scale=C).x)(1.0)


METHODS = ["structured", "lm", "residual"]
SQUARES = sum_of_squares(never)


@pytest.mark.parametrize("method", METHODS)
def test_these_methods_need_residuals(method):
    with pytest.raises(TypeError, match=r"made from residuals.*jaxqn\.sum_of_squares"):
        minimize(never, X, method=method)
    with pytest.raises(TypeError, match=r"made from residuals.*jaxqn\.sum_of_squares"):
        minimize_batch(never, np.ones((3, 2)), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_these_methods_search_along_no_line(method):
    with pytest.raises(ValueError, match="trust region: it takes no linesearch"):
        minimize(SQUARES, X, method=method, linesearch=jaxqn.wolfe())


def test_there_is_no_initial_inverse_hessian():
    with pytest.raises(ValueError, match="hess_inv0 starts a quasi-Newton method"):
        minimize(SQUARES, X, hess_inv0=np.eye(2))


# What only the residuals themselves can show


@pytest.mark.parametrize(
    ("residuals", "options", "error", "words"),
    [
        (
            lambda x: x.astype(complex),
            {},
            TypeError,
            r"complex128.*\(r\.real, r\.imag\)",
        ),
        (lambda x: x > 0, {}, TypeError, r"residuals\(x\).*bool"),
        (lambda x: {"a": x, "b": jnp.ones(2, int)}, {}, TypeError, r"\['b'\].*int64"),
        (lambda _: 3.0, {}, TypeError, "array of real floating numbers, but it is a float"),
        (lambda _: None, {}, ValueError, "an entry at least"),
        (lambda x: x[:0], {}, ValueError, "an entry at least"),
        (lambda _: {}, {}, ValueError, "an entry at least"),
        (lambda x: x, {"has_aux": True}, TypeError, r"has_aux=True, residuals.*\(value, aux\)"),
        (lambda x: (x, "text"), {"has_aux": True}, TypeError, "aux.*'text'"),
        (lambda x: x if x[0] > 0 else -x, {}, TypeError, r"jnp\.where"),
    ],
)
def test_residuals_that_are_none(residuals, options, error, words):
    with pytest.raises(error, match=words):
        least_squares(residuals, X, **options)


def test_residuals_and_auxiliary_data_without_a_word():
    """A pair of arrays is two arrays of residuals."""
    result = least_squares(lambda x: (x - 1, x[0] - 3.0), X)
    np.testing.assert_allclose(result.x, [2, 1], atol=1e-9)


def test_an_error_of_the_residuals_is_their_own():
    def broken(_):
        raise KeyError("no such parameter")

    with pytest.raises(KeyError, match="no such parameter"):
        least_squares(broken, X)


def test_a_state_of_another_method():
    state = least_squares(lambda x: x - 1, X, maxiter=1, method="lm").state
    with pytest.raises(ValueError, match=r"state.*method"):
        least_squares(lambda x: x - 1, X, state=state)


def test_a_batch_has_no_single_message():
    single = least_squares(lambda x: x - 1, X, method="lm", maxiter=1)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), single)
    with pytest.raises(ValueError, match="message is for one problem"):
        _ = batch.message
