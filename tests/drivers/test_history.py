"""What a run remembers of its last iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqn


def valley(x, a):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (a - x[:-1]) ** 2)


X0 = np.array([-1.2, 1.0])


@pytest.fixture(scope="module")
def seen():
    """The results after every iteration, and the last."""
    results = []
    last = jaxqn.minimize(valley, X0, (1.0,), callback=results.append, history=8)
    return results, last


def test_the_last_iterations(seen):
    """The same as a callback sees, also in slices; oldest first."""
    results, last = seen
    whole = jaxqn.minimize(valley, X0, (1.0,), history=8)
    for history in (last.history, whole.history):
        kept = results[-8:]
        np.testing.assert_array_equal(history.fun, [r.fun for r in kept])
        np.testing.assert_array_equal(history.nfev, [r.nfev for r in kept])
        np.testing.assert_allclose(history.jac, [np.max(np.abs(r.jac)) for r in kept], rtol=1e-12)
        points = np.array([r.x for r in results[-9:]])
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        np.testing.assert_allclose(history.step, steps, rtol=1e-9, atol=1e-15)
    assert last.history.last == last.nit


def test_a_run_shorter_than_its_history():
    """Iteration 0 is the first point; the end is NaN. Batched like everything else."""

    def solve(a):
        return jaxqn.minimize(valley, jnp.asarray(X0), (a,), maxiter=3, history=6).history

    one, many = jax.jit(solve)(1.0), jax.vmap(solve)(jnp.array([1.0, 1.5]))
    assert np.isfinite(one.fun).tolist() == [True] * 4 + [False] * 2
    assert one.fun[0] == valley(jnp.asarray(X0), 1.0)
    assert one.step[0] == 0
    np.testing.assert_allclose(many.fun[0], one.fun, rtol=1e-12)
    assert many.nfev.shape == (2, 6)


def test_of_least_squares_and_its_picture():
    import matplotlib

    matplotlib.use("Agg")
    t = jnp.linspace(0.0, 4.0, 20)

    def misfit(p, t):
        return p[0] * jnp.exp(-p[1] * t) - 3 * jnp.exp(-0.7 * t)

    fit = jaxqn.least_squares(misfit, jnp.ones(2), (t,), history=50)
    assert fit.history.fun[fit.nit] == fit.cost
    axis = fit.plot_history()
    assert len(axis.lines) == 2
    with pytest.raises(ValueError, match="history=100"):
        jaxqn.least_squares(misfit, jnp.ones(2), (t,)).plot_history()


def test_a_callback_now_and_then():
    """Called after every third iteration, and at the end."""
    nits = []
    result = jaxqn.minimize(
        valley, X0, (1.0,), callback=lambda r: nits.append(int(r.nit)), callback_every=3
    )
    expected = [*range(3, int(result.nit), 3), int(result.nit)]
    assert nits == expected
    with pytest.raises(ValueError, match="callback_every must be a whole number of at least 1"):
        jaxqn.minimize(valley, X0, (1.0,), callback=print, callback_every=0)
    with pytest.raises(ValueError, match="history must be a whole number"):
        jaxqn.minimize(valley, X0, (1.0,), history=1.5)
