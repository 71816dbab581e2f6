"""The solvers of NeMoS: its registry, its own test of a solver, and a model fitted by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

nemos = pytest.importorskip("nemos")
adapter = pytest.importorskip("jaxqn.adapters.nemos")

pytestmark = pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained")  # nemos loads it


@pytest.fixture(autouse=True)
def ordinary_promotion():
    """NeMoS mixes dtypes and ranks."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def spikes():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    return jnp.asarray(X), jnp.asarray(rng.poisson(np.exp(0.3 + X @ [0.5, -0.4, 0.2])), float)


@pytest.mark.parametrize("solver", [adapter.BFGS, adapter.LBFGS])
def test_the_test_that_nemos_has_for_a_solver(solver):
    """Signatures, and a ridge regression with auxiliary output."""
    nemos.solvers.validate_solver_class(solver, test_ridge=True, loss_has_aux=True)


def test_a_model_has_the_coefficients_of_its_own_solver(spikes):
    adapter.register()
    adapter.register()
    options = {"regularizer": "Ridge", "regularizer_strength": 0.1}
    tight = {"tol": 1e-12, "maxiter": 500}
    own = nemos.glm.GLM(solver_name="LBFGS", solver_kwargs=tight, **options).fit(*spikes)
    for name in ("BFGS", "LBFGS"):
        ours = nemos.glm.GLM(solver_name=f"{name}[jaxqn]", **options).fit(*spikes)
        np.testing.assert_allclose(ours.coef_, own.coef_, rtol=1e-6)
        np.testing.assert_allclose(ours.intercept_, own.intercept_, rtol=1e-6)
        assert ours.optim_info_.converged
        assert 0 < ours.optim_info_.num_steps < 40
        assert nemos.solvers.get_solver(name).backend != adapter.BACKEND  # the default is its own


def test_update_is_one_iteration(spikes):
    adapter.register()
    model = nemos.glm.GLM(solver_name="BFGS[jaxqn]", solver_kwargs={"tol": 1e-9})
    whole = nemos.glm.GLM(solver_name="BFGS[jaxqn]", solver_kwargs={"tol": 1e-9}).fit(*spikes)
    params = (jnp.zeros(3), jnp.zeros(1))
    state = model.initialize_solver_and_state(*spikes, params)
    for _ in range(whole.optim_info_.num_steps + 5):
        params, state = model.update(params, state, *spikes)
    np.testing.assert_allclose(params[0], whole.coef_, rtol=1e-6)


def test_an_unknown_argument():
    adapter.register()
    with pytest.raises(NameError, match="stepsize"):
        nemos.glm.GLM(solver_name="BFGS[jaxqn]", solver_kwargs={"stepsize": 0.1})
