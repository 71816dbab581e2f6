"""NumPyro's SVI with jaxqn's minimiser: one update is a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqn

numpyro = pytest.importorskip("numpyro")
infer = pytest.importorskip("numpyro.infer")
Minimize = pytest.importorskip("jaxqn.adapters.numpyro").Minimize

X = np.linspace(-1, 2, 20)
Y = 2 + 3 * X + 0.3 * np.cos(9 * X)
COUNTS = jnp.array([2, 5, 3, 4, 6, 1])
MODE = (3.0 + 21 - 1) / (0.5 + 6)  # of a gamma distribution


def line(x, y):
    prior = numpyro.distributions.Normal(0, 2.0)
    a, b = numpyro.sample("a", prior), numpyro.sample("b", prior)
    numpyro.sample("y", numpyro.distributions.Normal(a + b * x, 0.5), obs=y)


def poisson(counts):
    rate = numpyro.sample("rate", numpyro.distributions.Gamma(3.0, 0.5))
    with numpyro.plate("observations", counts.size):
        numpyro.sample("counts", numpyro.distributions.Poisson(rate), obs=counts)


def svi_of(model, guide, **options):
    guide = getattr(infer.autoguide, guide)(model)
    return infer.SVI(model, guide, Minimize(**options), infer.Trace_ELBO())


def test_one_update_is_the_laplace_approximation():
    """Of a linear model it is the posterior, in closed form."""
    svi = svi_of(line, "AutoLaplaceApproximation")
    fit = svi.run(jax.random.key(0), 1, jnp.asarray(X), jnp.asarray(Y), progress_bar=False)
    design = np.stack([np.ones_like(X), X], axis=1)
    covariance = np.linalg.inv(design.T @ design / 0.5**2 + np.eye(2) / 2.0**2)
    mean = covariance @ design.T @ Y / 0.5**2
    median = svi.guide.median(fit.params)
    np.testing.assert_allclose([median["a"], median["b"]], mean, rtol=1e-8)
    posterior = jax.jit(lambda params: svi.guide.get_posterior(params).covariance_matrix)
    np.testing.assert_allclose(posterior(fit.params), covariance, rtol=1e-8, atol=1e-12)
    count, how = fit.state.optim_state
    assert count == 1
    assert how.status == jaxqn.Status.CONVERGED
    assert 1 < how.nfev < 20


@pytest.mark.parametrize("option", ["forward_mode_differentiation", "stable_update"])
def test_a_constrained_parameter(option):
    svi = svi_of(poisson, "AutoDelta", method="lbfgs", gtol=1e-9)
    fit = svi.run(jax.random.key(0), 2, COUNTS, progress_bar=False, **{option: True})
    np.testing.assert_allclose(svi.guide.median(fit.params)["rate"], MODE, rtol=1e-8)
    np.testing.assert_allclose(fit.losses[0], fit.losses[1], rtol=1e-12)
    assert fit.state.optim_state[1].nfev == 1  # of the second fit, which begins at the end


def no_guide(x, y):
    del x, y


def test_a_loss_without_a_number_moves_nothing():
    def model(x, y):
        del x, y
        numpyro.factor("f", jnp.log(numpyro.param("a", jnp.ones(())) - 9))

    svi = infer.SVI(model, no_guide, Minimize(), infer.Trace_ELBO())
    fit = svi.run(jax.random.key(0), 1, X, Y, stable_update=True, progress_bar=False)
    assert np.isnan(fit.losses[0])
    assert fit.params["a"] == 1
    assert fit.state.optim_state[1].status == jaxqn.Status.NON_FINITE


def test_a_model_with_mutable_state():
    """The state is what the model computes at the solution."""

    def model(x, y):
        seen = numpyro.primitives.mutable("seen", {"difference": jnp.zeros(())})
        a = numpyro.param("a", jnp.zeros(()))
        seen["difference"] = jax.lax.stop_gradient(jnp.mean(y - x) - a)
        numpyro.sample("y", numpyro.distributions.Normal(x + a, 1.0), obs=y)

    svi = infer.SVI(model, no_guide, Minimize(), infer.Trace_ELBO())
    fit = svi.run(jax.random.key(0), 1, jnp.asarray(X), jnp.asarray(Y), progress_bar=False)
    np.testing.assert_allclose(fit.params["a"], np.mean(Y - X), rtol=1e-9)
    np.testing.assert_allclose(fit.state.mutable_state["seen"]["difference"], 0, atol=1e-8)


def test_an_unknown_option():
    with pytest.raises(TypeError, match="Minimize has no argument 'tol'"):
        Minimize(tol=1e-3)
