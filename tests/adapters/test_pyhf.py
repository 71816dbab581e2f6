"""pyhf's fits with jaxqn's optimizer, against those with its own."""

import importlib

import jax
import numpy as np
import pytest

import jaxqn

pyhf = pytest.importorskip("pyhf")
adapter = pytest.importorskip("jaxqn.adapters.pyhf")

pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated")
BACKGROUND = {
    "name": "background",
    "data": [50.0, 60.0, 40.0],
    "modifiers": [
        {"name": "norm", "type": "normsys", "data": {"hi": 1.2, "lo": 0.9}},
        {
            "name": "shape",
            "type": "histosys",
            "data": {"hi_data": [53.0, 62.0, 40.0], "lo_data": [48.0, 56.0, 41.0]},
        },
    ],
}
SIGNAL = {
    "name": "signal",
    "data": [5.0, 12.0, 3.0],
    "modifiers": [{"name": "mu", "type": "normfactor", "data": None}],
}


@pytest.fixture(autouse=True)
def pyhf_as_it_was():
    """pyhf mixes dtypes and ranks, and its backend is global."""
    before = pyhf.get_backend()
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
    pyhf.set_backend(*before)


@pytest.fixture(scope="module")
def model():
    return pyhf.Model({"channels": [{"name": "channel", "samples": [SIGNAL, BACKGROUND]}]})


def data_of(model, counts):
    return [*counts, *model.config.auxdata]


def compiled():
    """Programs of fits so far."""
    run = importlib.import_module("jaxqn.drivers.minimize")._run
    return sum(program._cache_size() for program in run.programs)


def use(optimizer):
    pyhf.set_backend("jax", optimizer)


def covariance_by_differences(model, data, x, step=1e-3):
    """Of the maximum-likelihood estimate, from values of pyhf's NumPy backend alone."""
    pyhf.set_backend("numpy")
    steps = step * np.eye(len(x))

    def value(point):
        return -model.logpdf(point, data)[0]

    hessian = [
        [value(x + p + q) - value(x + p - q) - value(x - p + q) + value(x - p - q) for q in steps]
        for p in steps
    ]
    return np.linalg.inv(np.array(hessian) / (4 * step**2))


def test_a_fit_with_errors(model):
    """Minuit's errors are those of parameters that its bounds bend, and near enough."""
    data = data_of(model, [58.0, 70.0, 42.0])
    wanted = {"return_uncertainties": True, "return_correlations": True, "return_fitted_val": True}
    use(adapter.jaxqn_optimizer())
    fit, correlations, value = pyhf.infer.mle.fit(data, model, **wanted)
    use(pyhf.optimize.minuit_optimizer(tolerance=1e-4))
    own, own_correlations, own_value = pyhf.infer.mle.fit(data, model, **wanted)
    assert fit.dtype == np.float64
    assert value <= own_value + 1e-9
    np.testing.assert_allclose(fit[:, 0], own[:, 0], atol=1e-3)
    np.testing.assert_allclose(fit[:, 1], own[:, 1], rtol=0.05)
    np.testing.assert_allclose(correlations, own_correlations, atol=0.05)

    covariance = covariance_by_differences(model, data, np.asarray(fit[:, 0]))
    errors = np.sqrt(np.diagonal(covariance))
    np.testing.assert_allclose(fit[:, 1], errors, rtol=1e-4)
    np.testing.assert_allclose(correlations, covariance / np.outer(errors, errors), atol=1e-4)


def test_fixed_values_and_bounds(model):
    """Against SLSQP: a fixed parameter has no error, and one at its bound no number for it."""
    data = data_of(model, [45.0, 50.0, 35.0])
    names = model.config.par_order
    mu = names.index("mu")
    init, held = [0.5 * (name == "mu") for name in names], [name == "mu" for name in names]
    wanted = {"return_fitted_val": True, "init_pars": init, "fixed_params": held}
    use("scipy")
    own, own_value = pyhf.infer.mle.fit(data, model, **wanted)
    use(adapter.jaxqn_optimizer(method="lbfgs"))
    fit, value = pyhf.infer.mle.fit(data, model, return_uncertainties=True, **wanted)
    assert value <= own_value + 1e-9
    np.testing.assert_allclose(fit[:, 0], own, atol=2e-3)
    assert fit[mu, 0] == 0.5
    assert fit[mu, 1] == 0
    assert np.all(np.delete(fit[:, 1], mu) > 0)

    free = pyhf.infer.mle.fit(data, model, return_uncertainties=True)
    assert free[mu, 0] == 0  # fewer events than background
    assert np.isnan(free[mu, 1])


def test_limits_share_one_program(model):
    """CLs values of a scan: the fits are fixed and free, to data and to expectations of them."""
    data = data_of(model, [55.0, 68.0, 41.0])
    use("scipy")
    scan = [0.5, 1.0, 2.0]
    own = [pyhf.infer.hypotest(mu, data, model, return_expected_set=True) for mu in scan]
    use(adapter.jaxqn_optimizer())
    first = pyhf.infer.hypotest(scan[0], data, model, return_expected_set=True)
    programs = compiled()
    values = [first] + [
        pyhf.infer.hypotest(mu, data, model, return_expected_set=True) for mu in scan[1:]
    ]
    assert compiled() == programs
    for (observed, expected), (own_observed, own_expected) in zip(values, own, strict=True):
        np.testing.assert_allclose(observed, own_observed, rtol=1e-4)
        np.testing.assert_allclose(expected, own_expected, rtol=1e-4)


def test_a_fit_that_fails_says_why(model):
    use(adapter.jaxqn_optimizer())
    with pytest.raises(pyhf.exceptions.FailedMinimization) as failed:
        pyhf.infer.mle.fit(data_of(model, [58.0, 70.0, 42.0]), model, maxiter=1)
    assert failed.value.result.status == jaxqn.Status.MAX_ITER
    assert "maxiter" in failed.value.result.message


def test_another_backend_and_an_unknown_option(model):
    data = data_of(model, [58.0, 70.0, 42.0])
    pyhf.set_backend("numpy", adapter.jaxqn_optimizer())
    with pytest.raises(pyhf.exceptions.Unsupported, match="needs the backend 'jax'"):
        pyhf.infer.mle.fit(data, model)
    use(adapter.jaxqn_optimizer())
    with pytest.raises(pyhf.exceptions.Unsupported, match="strategy"):
        pyhf.infer.mle.fit(data, model, strategy=1)
