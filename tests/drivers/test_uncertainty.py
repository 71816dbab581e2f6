"""``covariance`` against closed forms, and every doubt it may have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import exponential, fit_of
from scipy import optimize, stats

import jaxqn
from jaxqn import covariance, minimize, sum_of_squares

X0, (FIT,) = fit_of("decay")
DATA = (FIT.t, FIT.y)
DECAY = sum_of_squares(exponential)
DESIGN = np.random.default_rng(0).normal(size=(20, 3))
Y = DESIGN @ np.array([1.0, -2.0, 0.5]) + 0.3 * np.random.default_rng(1).normal(size=20)


def line(p, design, y):
    """Residuals of a linear model whose parameters are a number and a vector."""
    return p["a"] * design[:, 0] + design[:, 1:] @ p["b"] - y


def regression(design=DESIGN, y=Y, dtype=np.float64):
    """The solution in closed form, as parameters, and the arguments."""
    b = np.linalg.lstsq(design, y, rcond=None)[0].astype(dtype)
    return {"a": jnp.asarray(b[0]), "b": jnp.asarray(b[1:])}, (
        jnp.asarray(design, dtype),
        jnp.asarray(y, dtype),
    )


LINE = sum_of_squares(line)


@functools.cache
def solution():
    return minimize(DECAY, X0, DATA).x


def gamma(x, counts):
    """−log of a Poisson likelihood in the rate, without its constant."""
    return jnp.sum(jnp.exp(x["log rate"]) - counts * x["log rate"])


# --- Closed forms ----------------------------------------------------------------------------


def test_linear_regression(dtype):
    x, args = regression(dtype=dtype)
    tolerance = 1e-9 if dtype == jnp.float64 else 1e-4
    inverse = np.linalg.inv(DESIGN.T @ DESIGN)
    b = np.linalg.lstsq(DESIGN, Y, rcond=None)[0]
    r = Y - DESIGN @ b
    s2 = r @ r / 17
    found = covariance(LINE, x, args, noise="estimated")
    assert all(leaf.dtype == dtype for leaf in (found.matrix, found.offset, found.condition))
    np.testing.assert_allclose(found.matrix, s2 * inverse, rtol=tolerance, atol=1e-12)
    errors = np.sqrt(s2 * np.diag(inverse))
    np.testing.assert_allclose(found.standard_errors["a"], errors[0], rtol=tolerance)
    np.testing.assert_allclose(found.standard_errors["b"], errors[1:], rtol=tolerance)
    R = inverse / np.sqrt(np.outer(np.diag(inverse), np.diag(inverse)))
    np.testing.assert_allclose(found.correlation, R, rtol=10 * tolerance, atol=1e-6)
    assert bool(found.reliable)
    assert found.reason == "the errors can be relied on"
    assert int(found.rank) == 3
    assert float(found.offset) < (1e-6 if dtype == jnp.float64 else 1e-3)
    assert max(map(np.max, jax.tree.leaves(found.nonlinearity))) < 100 * tolerance
    unit = covariance(LINE, x, args, noise="unit")
    np.testing.assert_allclose(unit.matrix, inverse, rtol=tolerance, atol=1e-9)
    known = covariance(LINE, x, args, noise=0.5)
    np.testing.assert_allclose(known.matrix, 0.25 * inverse, rtol=tolerance, atol=1e-9)
    white = covariance(LINE, x, args, kind="sandwich", profile=False)
    meat = inverse @ (DESIGN.T * r**2) @ DESIGN @ inverse
    np.testing.assert_allclose(white.matrix, meat * 20 / 17, rtol=10 * tolerance, atol=1e-6)
    assert white.nonlinearity is None


def test_evidence_of_a_linear_model():
    """With a normal prior as further residuals, ∫ exp(−f) is a normal density of the data."""
    noise, width = 0.5, 2.0
    design = np.concatenate([DESIGN / noise, np.eye(3) / width])
    y = np.concatenate([Y / noise, np.zeros(3)])
    x, args = regression(design, y)
    marginal = stats.multivariate_normal(cov=noise**2 * np.eye(20) + width**2 * DESIGN @ DESIGN.T)
    densities = -20 * np.log(noise) - 3 * np.log(width)
    found = covariance(LINE, x, args, noise="unit", profile=False)
    np.testing.assert_allclose(found.log_evidence + densities, marginal.logpdf(Y), rtol=1e-10)

    def scalar(p, design, y):
        return 0.5 * jnp.sum(line(p, design, y) ** 2)

    constant = -0.5 * 23 * np.log(2 * np.pi)
    same = covariance(scalar, x, args, profile=False)
    np.testing.assert_allclose(same.log_evidence + constant, found.log_evidence, rtol=1e-10)
    np.testing.assert_allclose(same.matrix, found.matrix, rtol=1e-9, atol=1e-12)
    estimated = covariance(LINE, x, args, noise="estimated", profile=False)
    assert np.isnan(estimated.log_evidence)


def test_a_likelihood(dtype):
    """Counts with one rate: the error of its logarithm is 1/√(sum of the counts)."""
    counts = jnp.array([3.0, 9, 5, 8], dtype)
    found = covariance(gamma, {"log rate": jnp.log(jnp.mean(counts))}, (counts,))
    np.testing.assert_allclose(found.standard_errors["log rate"], 25**-0.5, rtol=1e-5)
    assert bool(found.reliable)
    few = covariance(gamma, {"log rate": jnp.log(jnp.mean(counts[:1]))}, (counts[:1],))
    assert int(few.code) == 6
    sd = 3**-0.5  # f(x + d) − f(x) = 3 (exp(d) − 1 − d)
    rises = np.array([3 * (np.exp(d) - 1 - d) for d in (2 * sd, -2 * sd)])
    expected = np.max(np.abs(np.log(np.sqrt(2 * rises) / 2)))
    np.testing.assert_allclose(few.nonlinearity["log rate"], expected, rtol=1e-3)


def test_auxiliary_data():
    def fun(x):
        return x @ x, {"norm": x}

    np.testing.assert_allclose(covariance(fun, jnp.zeros(2), has_aux=True).matrix, np.eye(2) / 2)

    def residuals(x):
        return jnp.concatenate([x, x]), x[0]

    squares = sum_of_squares(residuals, has_aux=True)
    np.testing.assert_allclose(covariance(squares, jnp.ones(2), noise=1).matrix, np.eye(2) / 2)


@pytest.mark.parametrize("kind", ["hessian", "observed"])
def test_a_curve(kind):
    """Against SciPy's errors of the same fit, and a Hessian by differences."""
    found = covariance(DECAY, solution(), DATA, kind=kind, noise="estimated")
    t, y = map(np.asarray, DATA)

    def cost(p):
        return 0.5 * np.sum((p[0] * np.exp(-p[1] * t) + p[2] - y) ** 2)

    x = np.asarray(solution())
    if kind == "hessian":
        expected = optimize.curve_fit(
            lambda t, a, b, c: a * np.exp(-b * t) + c, t, y, x, xtol=1e-15, ftol=1e-15
        )[1]
        np.testing.assert_allclose(found.matrix, expected, rtol=1e-5)
    else:
        h, e = 2e-4, np.eye(3)
        H = np.array(
            [
                [
                    sum(
                        a * b * cost(x + h * (a * e[i] + b * e[j]))
                        for a in (1, -1)
                        for b in (1, -1)
                    )
                    / (4 * h**2)
                    for j in range(3)
                ]
                for i in range(3)
            ]
        )
        expected = 2 * cost(x) / 21 * np.linalg.inv(H)
        np.testing.assert_allclose(found.matrix, expected, rtol=1e-4)
    assert bool(found.reliable)


def test_a_robust_location():
    """Of Huber's loss: (Σ ψ² m/(m − 1)) / (Σ ψ')², with ψ the residual or the bend, if less."""
    y = np.array([0.0, 0.1, -0.3, 0.2, 5.0, 0.4, -0.2])

    def residuals(x, y):
        return x - y

    objective = sum_of_squares(residuals, "huber", 1.0)
    fit = minimize(objective, jnp.array(0.0), (jnp.asarray(y),))
    r = float(fit.x) - y
    psi, inside = np.clip(r, -1, 1), np.abs(r) <= 1
    np.testing.assert_allclose(psi.sum(), 0, atol=1e-6)
    expected = np.sum(psi**2) * 7 / 6 / np.sum(inside) ** 2
    for kind in ("hessian", "observed", "sandwich"):
        found = covariance(objective, fit.x, (jnp.asarray(y),), kind=kind)
        np.testing.assert_allclose(found.matrix, [[expected]], rtol=1e-6)


# --- Doubts ----------------------------------------------------------------------------------


def doubtful(found, code, word):
    assert int(found.code) == code
    assert word in found.reason
    assert not bool(found.reliable)
    return found


def test_not_finite():
    found = covariance(lambda x: jnp.sum(jnp.log(x)), jnp.array([1.0, -1.0]))
    assert np.all(np.isnan(doubtful(found, 1, "not finite").matrix))


def test_no_degrees_of_freedom():
    x, args = regression(DESIGN[:3], Y[:3])
    found = doubtful(covariance(LINE, x, args, noise="estimated"), 2, "no degrees of freedom")
    assert np.all(np.isinf(found.standard_errors["b"]))
    known = covariance(LINE, x, args, noise="unit")
    np.testing.assert_allclose(known.matrix, np.linalg.inv(DESIGN[:3].T @ DESIGN[:3]), rtol=1e-8)
    assert bool(known.reliable)


@pytest.mark.parametrize("scalar", [False, True])
def test_rank_deficient(scalar):
    """Two amplitudes of one decay: their sum is determined, and so is the rate."""

    def twice(p, t, y):
        return exponential(jnp.stack([p["a"] + p["b"], p["rate"], p["level"]]), t, y)

    a, rate, level = solution()
    p = {"a": a - 1, "b": jnp.array(1.0), "level": level, "rate": rate}
    known = covariance(DECAY, solution(), DATA, noise=0.02)
    if scalar:
        found = covariance(lambda p, t, y: jnp.sum(twice(p, t, y) ** 2) / 8e-4, p, DATA)
    else:
        found = covariance(sum_of_squares(twice), p, DATA, noise=0.02)
    doubtful(found, 3, "rank deficient")
    errors = found.standard_errors
    assert np.isinf(errors["a"])
    assert np.isinf(errors["b"])
    kind = {"rtol": 1e-6} if not scalar else {"rtol": 2e-2}  # the exact Hessian
    np.testing.assert_allclose(errors["rate"], known.standard_errors[1], **kind)
    assert np.isnan(found.log_evidence)
    total = found.transform(lambda p: (p["a"] + p["b"], p["a"], p["rate"]))
    np.testing.assert_allclose(total.standard_errors[0], known.standard_errors[0], **kind)
    assert np.isinf(total.standard_errors[1])
    np.testing.assert_allclose(total.standard_errors[2], known.standard_errors[1], **kind)
    draws = found.sample(jax.random.key(0), (3,))
    assert np.all(np.isnan(draws["a"]))
    assert np.all(np.isfinite(draws["rate"]))


def test_not_at_a_minimum():
    x = solution() + 0.1 * covariance(DECAY, solution(), DATA, noise="unit").standard_errors * 0.02
    found = doubtful(covariance(DECAY, x, DATA, noise=0.02), 4, "not at a minimum")
    assert 0.01 < float(found.offset) < 1


@pytest.mark.parametrize("squares", [False, True])
def test_a_saddle(squares):
    """At 0 both parameters of x₀ x₁ = 1 are stationary, and so is the misfit along x₀ = x₁."""

    def residuals(x):
        return jnp.array([x[0] * x[1] - 1, 1e-3 * (x[0] - x[1]), 1e-3 * x[0]])

    objective = sum_of_squares(residuals)
    options = {"noise": "unit"} if squares else {}
    fun = objective if squares else lambda x: objective(x)
    found = doubtful(covariance(fun, jnp.zeros(2), **options), 4, "not at a minimum")
    if not squares:
        assert np.all(np.isinf(found.standard_errors))
        assert np.isnan(found.log_evidence)


def test_at_a_bound():
    """The errors of the others are those of the model with this one a constant."""
    box = ([0.0, 0.0, 0.6], [10.0, 10.0, 10.0])
    fit = minimize(DECAY, X0, DATA, bounds=box)
    assert float(fit.x[2]) == 0.6
    found = covariance(DECAY, fit.x, DATA, noise="estimated", bounds=box)
    doubtful(found, 5, "at a bound")
    assert found.at_bound.tolist() == [0, 0, -1]
    assert np.isnan(found.standard_errors[2])

    def held(p, t, y):
        return exponential(jnp.append(p, 0.6), t, y)

    alone = covariance(sum_of_squares(held), fit.x[:2], DATA, noise="estimated")
    np.testing.assert_allclose(found.standard_errors[:2], alone.standard_errors, rtol=1e-9)
    np.testing.assert_allclose(found.nonlinearity[:2], alone.nonlinearity, rtol=1e-5)
    assert np.isnan(found.log_evidence)
    draws = found.sample(jax.random.key(0), (4,))
    assert np.all(draws[:, 2] == 0.6)
    sums = found.transform(lambda p: (p[2], p[0] + p[2])).standard_errors
    assert np.isnan(sums[0])
    np.testing.assert_allclose(sums[1], found.standard_errors[0], rtol=1e-9)

    fixed = covariance(DECAY, fit.x, DATA, noise="estimated", bounds=([0, 0, 0.6], [10, 10, 0.6]))
    assert float(fixed.standard_errors[2]) == 0
    np.testing.assert_allclose(fixed.standard_errors[:2], alone.standard_errors, rtol=1e-9)
    assert bool(fixed.reliable)
    off = covariance(DECAY, fit.x, DATA, noise=0.02, bounds=([0, 0, -1], [10, 10, 0.6]))
    assert int(off.code) == 4  # the minimum is inside


def test_no_check_leaves_the_box():
    """The square root is NaN below the bound, within two standard errors of x."""

    def fun(x, counts):
        return jnp.sum(x - counts * jnp.log(x)) + jnp.sqrt(x) * 1e-9

    found = covariance(fun, jnp.array(1.5), (jnp.array([1.0, 2.0]),), bounds=(0.4, None))
    assert int(found.code) == 6
    assert np.isfinite(found.nonlinearity)


def test_nonlinear():
    found = covariance(sum_of_squares(exponential), solution(), (DATA[0], DATA[1]), noise=0.8)
    doubtful(found, 6, "profile_intervals")


def test_second_order():
    """One residual stays at 1 and bends: the Hessian is JᵀJ = 1 with 0.3 off its diagonal."""

    def residuals(x):
        return jnp.array([x[0], x[1], 1 + 0.3 * x[0] * x[1]])

    objective, x = sum_of_squares(residuals), jnp.zeros(2)
    doubtful(covariance(objective, x, noise=0.01), 7, "observed")
    observed = covariance(objective, x, kind="observed", noise=0.01)
    expected = 1e-4 * np.linalg.inv([[1, 0.3], [0.3, 1]])
    np.testing.assert_allclose(observed.matrix, expected, rtol=1e-9)


def test_residuals_at_rounding(dtype):
    x = jnp.array([3.0, 0.7, 0.5], dtype)
    t = jnp.asarray(DATA[0], dtype)
    y = exponential(x, t, jnp.zeros_like(t))
    found = covariance(DECAY, x * (1 + 2 * jnp.finfo(dtype).eps), (t, y), noise="estimated")
    doubtful(found, 8, "rounding")
    assert bool(covariance(DECAY, x, (t, y), noise=0.02).reliable)


# --- What follows ----------------------------------------------------------------------------


def test_samples_have_this_covariance():
    x, args = regression()
    found = covariance(LINE, x, args, noise="estimated")
    draws = found.sample(jax.random.key(0), (200, 100))
    assert draws["a"].shape == (200, 100)
    assert draws["b"].shape == (200, 100, 2)
    flat = np.concatenate([draws["a"].reshape(-1, 1), draws["b"].reshape(-1, 2)], axis=1)
    errors = np.sqrt(np.diag(found.matrix))
    np.testing.assert_allclose(flat.mean(axis=0), np.append(x["a"], x["b"]), atol=0.03 * errors[0])
    np.testing.assert_allclose(
        np.cov(flat.T) / np.outer(errors, errors), found.correlation, atol=0.03
    )
    assert found.sample(jax.random.key(0))["b"].shape == (2,)


def half_life(p):
    return {"half-life": jnp.log(2.0) / p[1], "at": p[0] * jnp.exp(-p[1] * jnp.arange(3.0)) + p[2]}


def test_transform():
    """Against J C Jᵀ by hand."""
    found = covariance(DECAY, solution(), DATA, noise="estimated")
    to = found.transform(half_life)
    a, b = np.asarray(solution())[:2]
    s = np.arange(3.0)
    G = np.zeros((4, 3))
    G[:3] = np.stack([np.exp(-b * s), -a * s * np.exp(-b * s), np.ones(3)], axis=1)
    G[3, 1] = -np.log(2) / b**2
    expected = G @ np.asarray(found.matrix) @ G.T
    np.testing.assert_allclose(to.matrix, expected, rtol=1e-9)
    np.testing.assert_allclose(to.value["half-life"], np.log(2) / b)
    np.testing.assert_allclose(to.standard_errors["half-life"], np.sqrt(expected[3, 3]))
    np.testing.assert_allclose(to.standard_errors["at"], np.sqrt(np.diag(expected)[:3]))


def test_a_batch_has_an_error_bar_each():
    """Leaf by leaf what one at a time has, and no reason in words."""
    ys = jnp.stack([DATA[1], DATA[1] + 0.01 * jnp.cos(DATA[0]), 2 * DATA[1]])
    xs = jax.vmap(lambda y: minimize(DECAY, X0, (DATA[0], y)).x)(ys)

    def one(x, y):
        return covariance(DECAY, x, (DATA[0], y), noise="estimated")

    batch = jax.jit(jax.vmap(one))(xs, ys)
    names = ("matrix", "condition", "nonlinearity", "standard_errors", "correlation", "code")
    for k, alone in enumerate(map(one, xs, ys)):
        for name in names:
            np.testing.assert_allclose(getattr(batch, name)[k], getattr(alone, name), rtol=1e-6)
    assert batch.reliable.tolist() == [True] * 3
    for what in (lambda: batch.reason, lambda: batch.sample(jax.random.key(0))):
        with pytest.raises(ValueError, match="one problem"):
            what()
    times = jax.vmap(lambda c: c.transform(half_life).standard_errors["half-life"])(batch)
    np.testing.assert_allclose(
        times[0], one(xs[0], ys[0]).transform(half_life).standard_errors["half-life"]
    )


def test_a_result_stands_for_its_point():
    fit = minimize(DECAY, X0, DATA)
    found = [covariance(DECAY, at, DATA, noise=1.0).matrix for at in (fit, fit.x)]
    np.testing.assert_array_equal(*found)


def test_new_numbers_compile_nothing(rng):
    traces = []

    def residuals(x, y):
        traces.append(x)
        return jnp.concatenate([x, 2 * x]) - y

    objective, y = sum_of_squares(residuals), rng.normal(size=(2, 4))
    covariance(objective, jnp.zeros(2), (y[0],), noise=0.1)
    before = len(traces)
    covariance(objective, jnp.ones(2), (y[1],), noise=0.2)
    assert len(traces) == before


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, 'say noise="estimated"', {}),
        (ValueError, "noise is 'known'", dict(noise="known")),
        (ValueError, "noise must be positive", dict(noise=0.0)),
        (ValueError, "one number", dict(noise=np.ones(24))),
        (ValueError, "unknown kind 'fisher'", dict(kind="fisher")),
        (ValueError, "one by one", dict(kind="sandwich", noise="unit")),
        (ValueError, "loss 'huber'", dict(noise=1.0, fun=sum_of_squares(exponential, "huber"))),
        (ValueError, "a likelihood has its own", dict(fun=gamma, noise="unit")),
        (TypeError, "terms of fun one by one", dict(fun=gamma, kind="sandwich")),
        (ValueError, r"hand over jaxqn.sum_of_squares\(fun\)", dict(fun=exponential)),
        (TypeError, "fun must be a function", dict(fun=3)),
        (TypeError, "args must be a tuple", dict(args=3)),
        (ValueError, "bounds", dict(noise="unit", bounds=([1.0], [0.0, 1.0]))),
    ],
)
def test_bad_input(error, words, options):
    call = {"fun": DECAY, "x": X0, "args": DATA} | options
    with pytest.raises(error, match=words):
        covariance(**call)


def test_g_is_a_function():
    found = covariance(DECAY, solution(), DATA, noise="estimated")
    with pytest.raises(TypeError, match="g must be a function"):
        found.transform(3)


def test_every_code_has_its_words():
    found = covariance(gamma, {"log rate": jnp.array(0.0)}, (jnp.ones(1),))
    assert isinstance(found, jaxqn.Covariance)
    assert len(jaxqn.REASONS) == 9
    assert found.reason == jaxqn.REASONS[int(found.code)]
    assert isinstance(found.transform(lambda x: x), jaxqn.Transformed)


def test_the_result_of_a_batch_is_referred_to_vmap():
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), X0)
    batch = jaxqn.minimize_batch(DECAY, starts, DATA, in_axes=(0, None, None))
    for door in (covariance, jaxqn.profile_intervals):
        with pytest.raises(ValueError, match=r"of a batch.*jax.vmap\(lambda x, y"):
            door(DECAY, batch, DATA, noise=1.0)
