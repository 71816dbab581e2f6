"""Bad input: one clear error that names the mistake and its cure, before anything is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqn
from jaxqn import METHODS
from jaxqn.drivers import minimize

X = np.ones(2, np.float64)


def never(*_):
    raise AssertionError("the objective was called before the input was checked")


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x @ x


ASYMMETRIC = np.array([[1.0, 0.5], [0.0, 1.0]])
INDEFINITE = np.array([[1.0, 2.0], [2.0, 1.0]])

# What is wrong, the error's type, and words that its message must have.
BAD_INPUT = {
    "integer x0": (dict(x0=np.ones(2, int)), TypeError, ["x0", "int64", "float"]),
    "boolean x0": (dict(x0=np.ones(2, bool)), TypeError, ["x0", "bool", "float"]),
    "Python integers": (dict(x0=[1, 2]), TypeError, ["x0[0]", "int", "float"]),
    "complex x0": (dict(x0=X + 1j), TypeError, ["x0", "complex128", "real", "imag"]),
    "half precision": (dict(x0=X.astype(np.float16)), TypeError, ["float16", "float32"]),
    "bfloat16": (dict(x0=jnp.ones(2, jnp.bfloat16)), TypeError, ["bfloat16", "float32"]),
    "x0 is text": (dict(x0="start"), TypeError, ["x0", "str", "array"]),
    "x0 has a function": (
        dict(x0={"w": X, "f": np.tanh}),
        TypeError,
        ["x0['f']", "eqx.is_inexact_array"],
    ),
    "x0 is a result": (dict(x0=jaxqn.minimize(lambda x: x @ x, X)), TypeError, ["result.x"]),
    "callback of two": (dict(callback=lambda *, state: state), TypeError, ["callback(result)"]),
    "x0 is empty": (dict(x0=np.ones(0)), ValueError, ["x0", "nothing"]),
    "x0 has no leaves": (dict(x0={}), ValueError, ["x0", "nothing"]),
    "one bad leaf": (
        dict(x0={"a": X, "b": [X, np.ones(3, int)]}),
        TypeError,
        ["x0['b'][1]", "int64", "args"],
    ),
    "mixed dtypes": (
        dict(x0={"a": np.ones(2, np.float32), "b": X}),
        ValueError,
        ["x0['a']", "float32", "x0['b']", "float64", "astype"],
    ),
    "unknown method": (dict(method="simplex"), ValueError, ["'simplex'", *METHODS]),
    "method of a wrong type": (dict(method=3), TypeError, ["method", "int", "QuasiNewton"]),
    "optax as a method": (
        dict(method=jaxqn.scale_by_bfgs()),
        TypeError,
        ["method", "GradientTransformation", "QuasiNewton"],
    ),
    "line search by name": (
        dict(linesearch="wolfe"),
        TypeError,
        ["linesearch", "str", "jaxqn.wolfe"],
    ),
    "line search not called": (dict(linesearch=jaxqn.wolfe), TypeError, ["linesearch", "wolfe()"]),
    "args not a tuple": (dict(args=X), TypeError, ["args", "tuple"]),
    "an array of objects among args": (
        dict(args=(np.array([None, 1.0]),)),
        TypeError,
        ["args[0]", "object", "functools.partial"],
    ),
    "a matrix by name": (dict(hess_inv0="eye"), TypeError, ["hess_inv0", "'eye'"]),
    "a diagonal by name": (
        dict(hess_inv0="ones", method="lbfgs"),
        TypeError,
        ["hess_inv0", "'ones'"],
    ),
    "text among args": (
        dict(args=(X, {"mode": "fast"})),
        TypeError,
        ["args[1]['mode']", "'fast'", "functools.partial"],
    ),
    "a function among args": (dict(args=(len,)), TypeError, ["args[0]", "array"]),
    "negative gtol": (dict(gtol=-1e-3), ValueError, ["gtol", "-0.001", "0"]),
    "negative gtol array": (dict(gtol=jnp.array(-1.0)), ValueError, ["gtol", "-1", "0"]),
    "negative ftol": (dict(ftol=-1.0), ValueError, ["ftol", "-1", "0"]),
    "negative xtol": (dict(xtol=-1.0), ValueError, ["xtol", "-1", "0"]),
    "NaN gtol": (dict(gtol=np.nan), ValueError, ["gtol", "nan"]),
    "gtol is text": (dict(gtol="small"), TypeError, ["gtol", "small"]),
    "gtol is a vector": (dict(gtol=np.ones(2)), ValueError, ["gtol", "(2,)"]),
    "negative maxiter": (dict(maxiter=-1), ValueError, ["maxiter", "-1", "whole number"]),
    "maxiter and a half": (dict(maxiter=1.5), ValueError, ["maxiter", "1.5", "whole number"]),
    "infinite maxiter": (dict(maxiter=np.inf), ValueError, ["maxiter", "inf", "whole number"]),
    "no evaluations": (dict(maxfun=0), ValueError, ["maxfun", "0", "1"]),
    "negative maxfun array": (dict(maxfun=jnp.array(-5)), ValueError, ["maxfun", "-5", "1"]),
    "H0 of another size": (
        dict(hess_inv0=np.eye(3)),
        ValueError,
        ["hess_inv0", "(3, 3)", "(2, 2)"],
    ),
    "H0 a vector": (dict(hess_inv0=np.ones(3)), ValueError, ["hess_inv0", "(3,)", "(2,)"]),
    "H0 a flat diagonal": (dict(hess_inv0=np.zeros(2)), ValueError, ["diagonal", "positive"]),
    "H0 not symmetric": (dict(hess_inv0=ASYMMETRIC), ValueError, ["hess_inv0", "symmetric", ".T"]),
    "H0 indefinite": (dict(hess_inv0=INDEFINITE), ValueError, ["hess_inv0", "positive definite"]),
    "H0 negative": (dict(hess_inv0=-np.eye(2)), ValueError, ["hess_inv0", "positive definite"]),
    "H0 singular": (dict(hess_inv0=np.ones((2, 2))), ValueError, ["hess_inv0", "definite"]),
    "H0 with NaN": (dict(hess_inv0=np.eye(2) * np.nan), ValueError, ["hess_inv0", "finite"]),
    "H0 complex": (dict(hess_inv0=np.eye(2) * (1 + 1j)), TypeError, ["hess_inv0", "complex"]),
    "limited H0 a matrix": (
        dict(method="lbfgs", hess_inv0=np.eye(2)),
        ValueError,
        ["hess_inv0", "(2, 2)", "diagonal", "like x0"],
    ),
    "sizes by name": (dict(x_scale="x0"), TypeError, ["x_scale", "'x0'"]),
    "no size": (dict(x_scale=0.0), ValueError, ["x_scale", "positive"]),
    "a negative size": (dict(x_scale=[1.0, -1.0], x0=[1.0, 2.0]), ValueError, ["x_scale[1]"]),
    "an infinite size": (dict(x_scale=np.array([np.inf, 1])), ValueError, ["x_scale", "finite"]),
    "sizes of another shape": (dict(x_scale=np.ones(3)), ValueError, ["x_scale", "(3,)", "(2,)"]),
    "sizes of another structure": (
        dict(x_scale={"a": 1.0}),
        ValueError,
        ["x_scale", "like x0", "'a'"],
    ),
    "complex sizes": (dict(x_scale=X + 1j), TypeError, ["x_scale", "complex128"]),
    "sizes for a run under way": (
        dict(x_scale=X, state=minimize(jnp.sum, X, maxiter=0).state),
        ValueError,
        ["x_scale", "new run", "state"],
    ),
    "state is no state": (dict(state=3), TypeError, ["state", "result", "int"]),
    "limited state is no state": (dict(state=X, method="lbfgs"), TypeError, ["state", "result"]),
    "fun is no function": (dict(fun=3.0), TypeError, ["fun", "float"]),
    "fun is an array": (dict(fun=jnp.ones(2)), TypeError, ["fun", "an array of float"]),
    "residuals for fun": (dict(fun=lambda x: x - 1), ValueError, ["(2,)", "jaxqn.least_squares"]),
    "x0 and fun swapped": (dict(fun=X, x0=never), TypeError, []),
    "fun has no hash": (dict(fun=Unhashable()), TypeError, ["fun", "Unhashable", "args"]),
    "callback is no function": (dict(callback=True), TypeError, ["callback", "bool"]),
    "unknown option": (dict(tol=1e-3), TypeError, ["tol"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case):
    options, kind, words = BAD_INPUT[case]
    options = {"fun": never, "x0": X} | options
    with pytest.raises(kind) as caught:
        minimize(options.pop("fun"), options.pop("x0"), **options)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, str(caught.value)


@pytest.mark.parametrize(
    ("search", "options", "words"),
    [
        (jaxqn.wolfe, {"c1": 0.6}, ["c1", "below 0.5", "0.6"]),
        (jaxqn.wolfe, {"c1": 0.4, "c2": 0.3}, ["c2", "at least 0.4", "0.3"]),
        (jaxqn.wolfe, {"growth": 1.0}, ["growth", "1.1"]),
        (jaxqn.wolfe, {"max_trials": 0}, ["max_trials", "at least 1", "0"]),
        (jaxqn.backtracking, {"c1": float("nan")}, ["c1", "nan"]),
        (jaxqn.backtracking, {"shrink": 1.0}, ["shrink", "below 1"]),
        (jaxqn.backtracking, {"max_trials": 2.5}, ["max_trials", "2.5"]),
    ],
)
def test_bad_options_of_a_search(search, options, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        search(**options)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("make", "options", "kind", "words"),
    [
        (jaxqn.dense, {"rule": "bfgs"}, TypeError, ["rule", "'bfgs'"]),
        (jaxqn.dense, {"panel": -1}, ValueError, ["panel", "-1"]),
        (jaxqn.dense, {"panel": 2.5}, ValueError, ["panel", "2.5"]),
        (jaxqn.damped, {"qn": "lbfgs"}, TypeError, ["qn", "lbfgs_memory()", "'lbfgs'"]),
        (jaxqn.scale_by_quasi_newton, {"qn": "lbfgs"}, TypeError, ["qn", "'lbfgs'"]),
        (jaxqn.corrected_newton, {"rank": 2.5}, ValueError, ["rank", "2.5"]),
        (jaxqn.corrected_newton, {"mode": "mirror"}, ValueError, ["mode", "reflect", "'mirror'"]),
        (jaxqn.scale_by_linesearch, {"linesearch": jaxqn.wolfe}, TypeError, ["linesearch"]),
    ],
)
def test_bad_parts(make, options, kind, words):
    """Where a method or a transformation is made, not where it is first used."""
    with pytest.raises(kind, match=words[0]) as caught:
        make(**options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_dense_method_has_no_pairs():
    state = minimize(lambda x: x @ x, X, maxiter=1).state.approx
    with pytest.raises(TypeError, match="DenseState"):
        jaxqn.stored_pairs(state)


# What only the objective's own output can show


@pytest.mark.parametrize(
    ("fun", "options", "kind", "words"),
    [
        (lambda x: x, {}, ValueError, ["scalar", "(2,)", "jnp.sum"]),
        (lambda x: x[:1], {}, ValueError, ["scalar", "(1,)"]),
        (lambda x: (x @ x, x), {}, TypeError, ["scalar", "tuple", "has_aux=True"]),
        (lambda x: x @ x, {"has_aux": True}, TypeError, ["has_aux=True", "(value, aux)"]),
        (lambda x: (x, x), {"has_aux": True}, ValueError, ["scalar", "(2,)"]),
        (lambda _: None, {}, TypeError, ["scalar", "None"]),
        (lambda x: (x @ x).astype(complex), {}, TypeError, ["complex128", "real"]),
        (lambda x: jnp.sum(x > 0), {}, TypeError, ["int64", "real"]),
    ],
    ids=["vector", "one-vector", "aux", "no aux", "aux vector", "None", "complex", "integer"],
)
def test_an_objective_that_is_not_scalar(fun, options, kind, words):
    with pytest.raises(kind) as caught:
        minimize(fun, X, **options)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, str(caught.value)


def test_an_error_of_the_objective_is_its_own():
    def broken(_):
        raise KeyError("no such parameter")

    with pytest.raises(KeyError, match="no such parameter"):
        minimize(broken, X)


def test_a_state_of_another_problem():
    state = minimize(lambda x: x @ x, np.ones(3), maxiter=1).state
    with pytest.raises(ValueError, match="state") as caught:
        minimize(never, X, state=state)
    assert "3" in str(caught.value)
    assert "2" in str(caught.value)


def test_a_state_of_another_method():
    state = minimize(lambda x: x @ x, X, maxiter=1, method=jaxqn.dense(panel=2)).state
    with pytest.raises(ValueError, match=r"state.*method"):
        minimize(never, X, state=state)


def test_a_state_of_the_other_limited_memory():
    """Their arrays are alike; what differs is what the pairs stand for."""
    state = minimize(lambda x: x @ x, X, maxiter=1, method=jaxqn.lsr1_memory()).state
    with pytest.raises(ValueError, match=r"state.*another method"):
        minimize(never, X, state=state, method="lbfgs")


def test_an_initial_inverse_hessian_is_for_a_new_run():
    state = minimize(lambda x: x @ x, X, maxiter=1).state
    with pytest.raises(ValueError, match=r"hess_inv0.*continues"):
        minimize(never, X, state=state, hess_inv0=np.eye(2))


def test_inside_jit_what_can_be_seen_is_checked():
    """Shapes and dtypes are known to a tracer; numbers are not, and are believed."""
    with pytest.raises(TypeError, match="int64"):
        jax.jit(lambda x: minimize(never, x))(np.ones(2, int))
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        jax.jit(lambda H: minimize(never, X, hess_inv0=H))(np.eye(3))


def test_nan_at_x0_is_a_status_and_no_exception():
    result = minimize(lambda x: x @ x, np.array([np.nan, 1.0]))
    assert jaxqn.Status(int(result.status)) == jaxqn.Status.NON_FINITE
