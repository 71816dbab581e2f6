"""Errors and intervals beside those of statsmodels and Minuit, by their own code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqn import covariance, minimize, profile_intervals

random = np.random.default_rng(7)
X = np.concatenate([np.ones((80, 1)), random.normal(size=(80, 2))], axis=1)
SCORE = X @ np.array([0.2, 0.7, -0.4])
COUNTS = random.poisson(np.exp(SCORE)).astype(float)
ANSWERS = (random.random(80) < 1 / (1 + np.exp(-SCORE))).astype(float)


def poisson(eta, y):
    return jnp.exp(eta) - y * eta


def logit(eta, y):
    return jax.nn.softplus(eta) - y * eta


def probit(eta, y):
    return -jax.scipy.stats.norm.logcdf((2 * y - 1) * eta)


TERMS = (poisson, logit, probit)


def regression(b, X, y, which):
    """One program for the three."""
    return jnp.sum(jax.lax.switch(which, TERMS, X @ b, y))


@pytest.mark.parametrize("name", ["Poisson", "Logit", "Probit"])
def test_statsmodels(name):
    """Standard errors and covariance of a regression to six digits, and more."""
    models = pytest.importorskip("statsmodels.discrete.discrete_model")
    y = COUNTS if name == "Poisson" else ANSWERS
    which = [term.__name__ for term in TERMS].index(name.lower())
    args = (jnp.asarray(X), jnp.asarray(y), jnp.int32(which))
    fit = minimize(regression, jnp.zeros(3), args)
    found = covariance(regression, fit.x, args)
    theirs = getattr(models, name)(y, X).fit(method="newton", tol=1e-14, disp=False)
    np.testing.assert_allclose(fit.x, theirs.params, rtol=1e-8)
    np.testing.assert_allclose(found.standard_errors, theirs.bse, rtol=1e-8)
    np.testing.assert_allclose(found.matrix, theirs.cov_params(), rtol=1e-7, atol=1e-12)
    assert bool(found.reliable)


def test_statsmodels_least_squares():
    """Also its heteroscedastic errors HC1, the sandwich with m/(m − n)."""
    linear = pytest.importorskip("statsmodels.regression.linear_model")
    from jaxqn import sum_of_squares

    def residuals(b, X, y):
        return X @ b - y

    theirs = linear.OLS(COUNTS, X).fit()
    args, b = (jnp.asarray(X), jnp.asarray(COUNTS)), jnp.asarray(theirs.params)
    objective = sum_of_squares(residuals)
    found = covariance(objective, b, args, noise="estimated", profile=False)
    np.testing.assert_allclose(found.standard_errors, theirs.bse, rtol=1e-9)
    white = covariance(objective, b, args, kind="sandwich", profile=False)
    np.testing.assert_allclose(white.standard_errors, theirs.HC1_se, rtol=1e-9)


def decay(x, t, counts):
    """Counts of a decay with a background, 16 bins: the profiles are far from parabolas."""
    rate = jnp.exp(x[0] - t / jnp.exp(x[1])) + jnp.exp(x[2])
    return jnp.sum(rate - counts * jnp.log(rate))


def weibull(x, t, failed):
    """Lifetimes, some of them censored."""
    shape, z = jnp.exp(x[0]), jnp.log(t) - x[1]
    return jnp.sum(jnp.exp(shape * z) - failed * (x[0] + (shape - 1) * z - x[1]))


def either(x, a, b, which):
    """One program for both, in three parameters; the third of the second is a normal one."""
    first = lambda x, a, b: decay(x, a, b)  # noqa: E731
    second = lambda x, a, b: weibull(x, a, b) + 0.5 * x[2] ** 2  # noqa: E731
    return jax.lax.switch(which, (first, second), x, a, b)


BINS = np.linspace(0.25, 7.75, 16)
DECAYS = random.poisson(30 * np.exp(-BINS / 1.5) + 2.0).astype(float)
LIVES = random.weibull(1.7, size=16) * 3.0
LIKELIHOODS = {
    "decay": (BINS, DECAYS, [3.0, 0.3, 0.5]),
    "weibull": (np.minimum(LIVES, 3.5), (LIVES < 3.5).astype(float), [0.0, 1.0, 0.1]),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_minuit(name):
    """The ends of MINOS to 1e-3 of the width, in fewer evaluations."""
    iminuit = pytest.importorskip("iminuit")
    a, b, start = LIKELIHOODS[name]
    args = (jnp.asarray(a), jnp.asarray(b), jnp.int32(list(LIKELIHOODS).index(name)))
    fit = minimize(either, jnp.array(start), args)
    found = profile_intervals(either, fit, args)
    value = jax.jit(either)
    minuit = iminuit.Minuit(lambda x: float(value(jnp.asarray(x), *args)), np.asarray(fit.x))
    minuit.errordef, minuit.strategy, minuit.tol = iminuit.Minuit.LIKELIHOOD, 2, 1e-5
    minuit.migrad()
    before = minuit.nfcn
    minuit.minos(cl=0.95)
    for k, errors in enumerate(minuit.merrors.values()):
        value, valid = minuit.values[k], [errors.lower_valid, errors.upper_valid]
        ends = value + np.array([errors.lower, errors.upper])
        ours = np.array([found.lower[k], found.upper[k]])
        off = np.abs(ours - ends)[valid] / np.ptp(ends)
        assert off.max() < 1e-3
    assert bool(found.success)
    if name == "decay":  # its background may be 0, where MINOS fails
        assert found.lower_code.tolist() == [0, 0, 2]
        assert np.isneginf(found.lower[2])
        assert not minuit.merrors["x2"].lower_valid
    assert int(found.nfev) < (minuit.nfcn - before) / 2
