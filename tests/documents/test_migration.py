"""The table "Coming from elsewhere" of the guide, row by row: the call there, and the call here.

Each test runs both and compares minima, or what fields and options of the same meaning hold. What
the two columns of a row share is the problem: Rosenbrock's valley, whose minimiser is (a, a²).
"""

import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.scipy.optimize
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxqn
from jaxqn import Status
from jaxqn.drivers import least_squares, minimize

GUIDE = Path(__file__).parents[2] / "notebooks" / "other_libraries.md"
ROWS = {}

X0 = jnp.array([-1.2, 1.0])
A = 1.5
ARGS = (jnp.array(A),)
SOLUTION = np.array([A, A**2])


def row(there):
    """Mark the test of the row with this left cell."""

    def mark(test):
        assert there not in ROWS
        ROWS[there] = test.__name__
        return test

    return mark


def valley(x, a):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (a - x[0]) ** 2


def value_and_slope(x, a):
    """The same in NumPy, with its gradient."""
    gap = x[1] - x[0] ** 2
    value = 100 * gap**2 + (a - x[0]) ** 2
    return value, np.array([-400 * x[0] * gap - 2 * (a - x[0]), 200 * gap])


def scipy_minimize(x0=X0, **options):
    return scipy.optimize.minimize(value_and_slope, np.asarray(x0), (A,), jac=True, **options)


def at_the_solution(*points, rtol=1e-4):
    for point in points:
        np.testing.assert_allclose(point, SOLUTION, rtol=rtol)


@pytest.fixture
def jaxopt():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # archived, it says so when imported
        return pytest.importorskip("jaxopt")


@pytest.fixture
def optimistix():
    return pytest.importorskip("optimistix")


# --- SciPy -----------------------------------------------------------------------------------


@row('`scipy.optimize.minimize(f, x0, args, method="BFGS", jac=True)`')
def test_scipy_bfgs():
    there = scipy_minimize(method="BFGS")
    here = minimize(valley, X0, ARGS)
    at_the_solution(there.x, here.x)


@row('`method="L-BFGS-B", options={"maxcor": 5}`')
def test_scipy_lbfgs():
    there = scipy_minimize(method="L-BFGS-B", options={"maxcor": 5})
    here = minimize(valley, X0, ARGS, method=jaxqn.lbfgs_memory(5))
    at_the_solution(there.x, here.x)
    assert here.pairs[2].size == 5


@row('`method="trust-exact", hess=...`')
def test_scipy_newton():
    there = scipy_minimize(method="trust-exact", hess=jax.hessian(valley))
    here = minimize(valley, X0, ARGS, method="newton")
    at_the_solution(there.x, here.x)
    assert here.nfev <= there.nfev + 10


@row('`tol=1e-5`, `options={"gtol": 1e-5, "maxiter": 99}`')
def test_scipy_gtol_and_maxiter():
    """Both bound the largest entry of the gradient, and count steps."""
    for options in ({"tol": 1e-5}, {"options": {"gtol": 1e-5, "maxiter": 99}}):
        there = scipy_minimize(method="BFGS", **options)
        assert there.success
        assert np.max(np.abs(there.jac)) <= 1e-5
    here = minimize(valley, X0, ARGS, gtol=1e-5, maxiter=99)
    assert here.status == Status.CONVERGED
    assert np.max(np.abs(here.jac)) <= 1e-5
    there = scipy_minimize(method="BFGS", options={"maxiter": 3})
    here = minimize(valley, X0, ARGS, maxiter=3)
    assert there.nit == here.nit == 3
    assert not there.success
    assert here.status == Status.MAX_ITER


@row('`options={"ftol": 1e-3}`, `{"xrtol": 1e-3}`, `{"maxfun": 7}`')
def test_scipy_ftol_xrtol_and_maxfun():
    """SciPy's ftol is relative to max(|f|, 1), here it is relative to |f|."""
    values = [value_and_slope(np.asarray(X0), A)[0] + 1e3]

    def lifted(x, a):
        return valley(x, a) + 1e3

    def note(result):
        values.append(float(result.fun))

    here = minimize(lifted, X0, ARGS, ftol=1e-3, callback=note)
    assert here.status == Status.FTOL
    decreases = -np.diff(values) / values[1:]
    assert decreases[-1] <= 1e-3 < decreases[:-1].min()
    there = scipy.optimize.minimize(
        lambda x: value_and_slope(x, A)[0] + 1e3, X0, method="L-BFGS-B", options={"ftol": 1e-3}
    )
    assert "REL" in there.message
    np.testing.assert_allclose(there.fun, here.fun, rtol=2e-3)

    path = [np.asarray(X0)]
    here = minimize(
        valley, X0, ARGS, xtol=1e-3, callback=lambda r: path.append(np.asarray(r.x)) and None
    )
    assert here.status == Status.XTOL
    assert np.linalg.norm(path[-1] - path[-2]) <= 1e-3 * np.linalg.norm(path[-1])
    there = scipy_minimize(method="BFGS", options={"xrtol": 1e-3, "gtol": 0.0})
    assert there.success
    at_the_solution(there.x, here.x, rtol=1e-2)

    there = scipy_minimize(method="L-BFGS-B", options={"maxfun": 7})
    here = minimize(valley, X0, ARGS, maxfun=7)
    assert here.nfev == 7 <= there.nfev
    assert here.status == Status.MAX_FUN


@row('`options={"c1": 1e-4, "c2": 0.1}`, `{"maxls": 20}`')
def test_scipy_wolfe_constants():
    """After one step, both satisfy the Wolfe conditions with these constants."""
    there = scipy_minimize(method="BFGS", options={"c1": 1e-4, "c2": 0.1, "maxiter": 1})
    search = jaxqn.wolfe(c1=1e-4, c2=0.1, max_trials=20)
    here = minimize(valley, X0, ARGS, linesearch=search, maxiter=1)
    f0, g0 = value_and_slope(np.asarray(X0), A)
    for result in (there, here):
        step = np.asarray(result.x) - np.asarray(X0)
        f, g = value_and_slope(np.asarray(result.x), A)
        assert f <= f0 + 1e-4 * (step @ g0)
        assert step @ g >= 0.1 * (step @ g0)


@row('`options={"hess_inv0": H}`')
def test_scipy_hess_inv0():
    """With the inverse Hessian of a quadratic, the first step is the last but for rounding."""
    B = np.array([[4.0, 1.0], [1.0, 3.0]])

    def bowl(x):
        return (x @ jnp.asarray(B) @ x) / 2 - x[0]

    H = np.linalg.inv(B)
    there = scipy.optimize.minimize(
        lambda x: (x @ B @ x) / 2 - x[0],
        [5.0, 5.0],
        jac=lambda x: B @ x - [1.0, 0.0],
        method="BFGS",
        options={"hess_inv0": H},
    )
    here = minimize(bowl, jnp.array([5.0, 5.0]), hess_inv0=jnp.asarray((H + H.T) / 2))
    assert here.nit == 1
    assert there.nit <= 3  # its first trial is shorter
    np.testing.assert_allclose(here.x, H[:, 0], rtol=1e-12)
    np.testing.assert_allclose(there.x, H[:, 0], rtol=1e-12)


def residuals(x, a):
    """The sum of their squares is the valley."""
    return jnp.stack([10 * (x[1] - x[0] ** 2), a - x[0]])


@row(
    "`scipy.optimize.least_squares(r, x0, args=args, bounds=(low, high), "
    'loss="soft_l1", f_scale=0.1)`'
)
def test_scipy_least_squares():
    low, high = np.array([-2.0, 0.0]), np.array([1.0, 3.0])
    options = {"loss": "soft_l1", "f_scale": 0.1}
    there = scipy.optimize.least_squares(
        residuals, X0, args=ARGS, bounds=(low, high), **options, xtol=1e-12, ftol=1e-12, gtol=1e-12
    )
    here = least_squares(residuals, X0, ARGS, bounds=(low, high), **options)
    assert here.success
    np.testing.assert_allclose(here.x, [1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(here.x, there.x, rtol=1e-4)
    np.testing.assert_allclose(here.cost, there.cost, rtol=1e-6)


@row("`res.cost`, `res.fun`, `res.grad`, `res.active_mask`, `res.jac`")
def test_scipy_least_squares_results():
    bounds = (np.array([-2.0, 0.0]), np.array([1.0, 3.0]))
    there = scipy.optimize.least_squares(residuals, X0, args=ARGS, bounds=bounds)
    here = least_squares(residuals, X0, ARGS, bounds=bounds)
    jacobian = jax.jacfwd(residuals)(here.x, *ARGS)
    for found, wanted in (
        (here.cost, there.cost),
        (here.residuals, there.fun),
        (here.grad, there.grad),
        (here.active, there.active_mask),
        (jacobian, there.jac),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@row("`scipy.optimize.least_squares(..., x_scale=sizes)`")
def test_scipy_x_scale():
    """Lengths in thousandths beside lengths in thousands, both from 0."""
    sizes = (1e3, 1e-3)

    def residuals(x):
        a, b = x[0] / sizes[0], x[1] / sizes[1]
        return [10 * (b - a**2), A - a]

    def fun(x):
        return sum(r**2 for r in residuals(x)) / 2

    there = scipy.optimize.least_squares(residuals, np.zeros(2), x_scale=sizes)
    here = minimize(fun, jnp.zeros(2), x_scale=jnp.array(sizes))
    assert minimize(fun, jnp.zeros(2)).nfev > here.nfev
    for result in (there, here):
        assert result.success
        at_the_solution(result.x / np.array(sizes))


@row("`scipy.optimize.curve_fit(f, x, y, p0, sigma, absolute_sigma=True)`")
def test_scipy_curve_fit():
    def curve(x, scale, rate):
        return scale * jnp.exp(-rate * x)

    x = np.linspace(0.0, 4.0, 30)
    y, sigma, p0 = 3 * np.exp(-0.7 * x) + 0.01 * np.cos(40 * x), 0.01 + 0.001 * x, [1.0, 1.0]
    there = scipy.optimize.curve_fit(curve, x, y, p0, sigma, absolute_sigma=True)
    here = jaxqn.curve_fit(curve, x, y, p0, sigma=sigma, absolute_sigma=True)
    for found, wanted in zip(here, there, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    with pytest.raises(ValueError, match="absolute_sigma"):
        jaxqn.curve_fit(curve, x, y, p0, sigma=sigma)


@row("`res.x, res.fun, res.jac, res.nit, res.nfev, res.success, res.message, res.hess_inv`")
def test_scipy_results():
    """The same names for the same things; `status` has numbers of its own."""
    calls = []

    def counted(x, a):
        jax.debug.callback(lambda: calls.append(1))
        return valley(x, a)

    there = scipy_minimize(method="BFGS")
    here = jax.block_until_ready(minimize(counted, X0, ARGS, method="bfgs", gtol=1e-5))
    jax.effects_barrier()
    assert here.nfev == len(calls)
    inverse = np.linalg.inv(jax.hessian(valley)(jnp.asarray(SOLUTION), *ARGS))
    for result in (there, here):
        at_the_solution(result.x)
        value, slope = value_and_slope(np.asarray(result.x), A)
        np.testing.assert_allclose(result.fun, value, rtol=1e-9, atol=1e-20)
        np.testing.assert_allclose(result.jac, slope, rtol=1e-6, atol=1e-12)
        assert 0 < result.nit < result.nfev < 100
        assert result.success
        assert isinstance(result.message, str)
        np.testing.assert_allclose(result.hess_inv, inverse, rtol=0.1)
    assert there.status == 0
    assert here.status == Status.CONVERGED == 1


@row('`res.hess_inv` of "L-BFGS-B": a product, and `sk`, `yk`')
def test_scipy_lbfgs_product():
    """SciPy's product from our pairs is our product."""
    here = minimize(valley, X0, ARGS, method="lbfgs", maxiter=8)
    S, Y, valid = here.pairs
    product = scipy.optimize.LbfgsInvHessProduct(np.asarray(S[valid]), np.asarray(Y[valid]))
    v = np.array([0.3, -2.0])
    # SciPy's starts from I, ours from gamma I: give it the same diagonal.
    s, y = product.sk[-1], product.yk[-1]
    gamma = (s @ y) / (y @ y)
    scaled = scipy.optimize.LbfgsInvHessProduct(
        product.sk / np.sqrt(gamma), product.yk * np.sqrt(gamma)
    )
    expected = gamma * scaled.matvec(v)
    found = here.hess_inv_product(jnp.asarray(v))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@row("`callback=`, raising `StopIteration`")
def test_scipy_callback():
    """Both see the result so far after every iteration, and may stop."""
    seen_there, seen_here = [], []

    def stop(intermediate_result):
        seen_there.append(float(intermediate_result.fun))
        if len(seen_there) == 4:
            raise StopIteration

    def stops(result):
        seen_here.append(float(result.fun))
        return result.nit == 4

    there = scipy_minimize(method="BFGS", callback=stop)
    here = minimize(valley, X0, ARGS, callback=stops)
    assert there.nit == here.nit == 4
    assert here.status == Status.STOPPED
    assert len(seen_here) == 4
    assert seen_there[-1] == there.fun
    assert seen_here[-1] == here.fun


@row('`options={"disp": True}`, `{"return_all": True}`')
def test_scipy_disp_and_return_all(capsys):
    path = []
    there = scipy_minimize(method="BFGS", options={"disp": True, "return_all": True})
    here = minimize(valley, X0, ARGS, progress=True, callback=lambda r: path.append(r.x))
    printed = capsys.readouterr()
    assert f"Iterations: {there.nit}" in printed.out
    assert re.search(rf"{here.nit} iterations.*evaluations +{here.nfev}\b", printed.err)
    assert len(there.allvecs) == there.nit + 1  # with x0
    assert len(path) == here.nit
    at_the_solution(there.allvecs[-1], path[-1])


@row('`method="L-BFGS-B", bounds=Bounds(low, high)`, `bounds=[(0, None), (0, 1)]`, `jaxopt.LBFGSB`')
def test_bounds(jaxopt):
    low, high = np.array([0.0, -np.inf]), np.array([np.inf, 1.0])
    of_scipy = [scipy.optimize.Bounds(low, high), [(0, None), (None, 1)]]
    there = [scipy_minimize(method="L-BFGS-B", bounds=bounds) for bounds in of_scipy]
    here = [minimize(valley, X0, ARGS, bounds=bounds) for bounds in [(low, high), *of_scipy]]
    projected = jaxopt.LBFGSB(valley, implicit_diff=False)
    found = projected.run(X0, (jnp.asarray(low), jnp.asarray(high)), *ARGS).params
    for x in (*(r.x for r in there), *(r.x for r in here), found):
        np.testing.assert_allclose(x[1], 1.0)
        np.testing.assert_allclose(x[0], here[0].x[0], rtol=1e-4)
    assert all(r.success for r in here)


@row("`constraints=`")
def test_constraints():
    with pytest.raises(TypeError, match="constraints"):
        minimize(valley, X0, ARGS, constraints=())


@row('`scipy.optimize.BFGS()`, `SR1()`: `initialize(n, "inv_hess")`, `update(s, y)`')
def test_scipy_update_strategies():
    """SciPy scales H = I before its first update by default; here one does it oneself."""
    pairs = np.random.default_rng(0).normal(size=(4, 3))
    B = np.diag([1.0, 2.0, 5.0])
    for strategy, update in (
        (scipy.optimize.BFGS(init_scale=1.0), jaxqn.bfgs_update),
        (scipy.optimize.SR1(init_scale=1.0), jaxqn.sr1_update),
    ):
        strategy.initialize(3, "inv_hess")
        H = jnp.eye(3)
        for s in pairs:
            strategy.update(s, B @ s)
            H = update(H, jnp.asarray(s), jnp.asarray(B @ s))
        np.testing.assert_allclose(H, strategy.get_matrix(), rtol=1e-9, atol=1e-12)


# --- jax.scipy -------------------------------------------------------------------------------


@row('`jax.scipy.optimize.minimize(f, x0, args, method="BFGS", options={"gtol": 1e-5})`')
def test_jax_scipy():
    """The same names again; x0 may be any pytree here. Its `tol` has no effect, ours has."""

    def there_and_here(x0):
        there = jax.scipy.optimize.minimize(
            valley, x0, ARGS, method="BFGS", options={"gtol": 1e-5, "maxiter": 99}
        )
        here = minimize(valley, x0, ARGS, gtol=1e-5, maxiter=99)
        return there, here

    there, here = jax.jit(there_and_here)(jnp.array([1.4, 1.8]))
    at_the_solution(there.x, here.x)
    assert here.success
    for result in (there, here):
        assert np.max(np.abs(result.jac)) <= 1e-5
        np.testing.assert_allclose(result.fun, 0, atol=1e-9)
    tree = {"x": jnp.array(1.2), "y": jnp.array(1.0)}
    here = minimize(lambda p, a: valley(jnp.stack([p["x"], p["y"]]), a), tree, ARGS)
    at_the_solution([here.x["x"], here.x["y"]])


# --- optax -----------------------------------------------------------------------------------


def objective(x):
    return valley(x, ARGS[0])


def documented_loop(solver, steps=60):
    """The loop in the documentation of ``optax.lbfgs``, and the state at its end."""
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry, _):
        x, state = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=objective)
        return (optax.apply_updates(x, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax.lbfgs adds an int32 to an int64
        return jax.jit(lambda: jax.lax.scan(step, (X0, solver.init(X0)), length=steps)[0])()


@row("`optax.lbfgs(memory_size=10)` in its documented loop")
def test_optax_lbfgs():
    for solver in (optax.lbfgs(memory_size=10), jaxqn.lbfgs(memory=10), jaxqn.osbfgs()):
        x, _ = documented_loop(solver)
        at_the_solution(x, rtol=1e-8)


@row("`optax.scale_by_lbfgs(memory_size=10)` with a learning rate")
def test_optax_scale_by_lbfgs():
    """Along one path both give the same directions, once there is a pair."""
    random = np.random.default_rng(0)
    B = np.diag(np.geomspace(0.1, 10.0, 5))
    path = jnp.asarray(np.cumsum(random.normal(size=(15, 5)), axis=0))

    def directions(transform):
        def step(state, x):
            direction, state = transform.update(jnp.asarray(B) @ x, state, x)
            return state, direction

        with jax.numpy_dtype_promotion("standard"):  # optax adds an int32 to an int64
            return jax.lax.scan(step, transform.init(path[0]), path)[1]

    there = directions(optax.scale_by_lbfgs(memory_size=10))
    here = directions(jaxqn.scale_by_lbfgs(10))
    np.testing.assert_allclose(here[1:], there[1:], rtol=1e-8, atol=1e-10)


@row("`optax.scale_by_zoom_linesearch(20)`, `optax.scale_by_backtracking_linesearch(20)`")
def test_optax_line_searches():
    """Any of four behind one method, optax's own among them."""
    zoom = optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")
    backtracking = optax.scale_by_backtracking_linesearch(20, store_grad=True)
    for solver in (
        jaxqn.bfgs(linesearch=zoom),
        jaxqn.bfgs(linesearch=backtracking),
        jaxqn.bfgs(linesearch=jaxqn.wolfe(max_trials=20)),
        optax.chain(
            jaxqn.scale_by_bfgs(),
            optax.scale(-1.0),
            jaxqn.scale_by_linesearch(jaxqn.backtracking(max_trials=20)),
        ),
    ):
        x, _ = documented_loop(solver)
        at_the_solution(x, rtol=1e-6)


@row('`optax.tree.get(state, "value")`, `"grad"`, `"learning_rate"`, `"info"`')
def test_optax_state():
    """The same names; `info` counts evaluations, and says whether a search failed."""
    for solver in (optax.lbfgs(), jaxqn.lbfgs()):
        x, state = documented_loop(solver, steps=5)
        np.testing.assert_allclose(optax.tree.get(state, "value"), objective(x), rtol=1e-12)
        np.testing.assert_allclose(optax.tree.get(state, "grad"), jax.grad(objective)(x), rtol=1e-9)
        assert optax.tree.get(state, "learning_rate") > 0
        info = optax.tree.get(state, "info")
        trials = info.nfev if hasattr(info, "nfev") else info.num_linesearch_steps
        assert 1 <= trials < 20
    assert not info.failed


# --- jaxopt ----------------------------------------------------------------------------------


@row("`jaxopt.BFGS(fun=f, maxiter=99, tol=1e-6).run(x0, *args)`")
def test_jaxopt(jaxopt):
    """Its tol bounds the Euclidean norm of the gradient, our gtol the largest entry."""
    there = jaxopt.BFGS(fun=valley, maxiter=99, tol=1e-6).run(X0, *ARGS)
    here = minimize(valley, X0, ARGS, maxiter=99, gtol=1e-6)
    at_the_solution(there.params, here.x)
    assert np.linalg.norm(there.state.grad) <= 1e-6
    assert np.max(np.abs(here.jac)) <= 1e-6


@row('`jaxopt.LBFGS(f, history_size=5, linesearch="backtracking", maxls=15)`')
def test_jaxopt_lbfgs(jaxopt):
    there = jaxopt.LBFGS(valley, history_size=5, linesearch="backtracking", maxls=15, tol=1e-6)
    here = minimize(
        valley,
        X0,
        ARGS,
        method=jaxqn.lbfgs_memory(5),
        linesearch=jaxqn.backtracking(max_trials=15),
    )
    at_the_solution(there.run(X0, *ARGS).params, here.x)


def bent(x, a):
    """Two equations, whose root is (a, a²)."""
    return jnp.stack([10 * (x[1] - x[0] ** 2), a - x[0]])


def contraction(x, a):
    """Its fixed point is (a, a²)."""
    return jnp.stack([0.5 * (x[0] + a), 0.5 * (x[1] + x[0] ** 2)])


@row(
    '`scipy.optimize.root(F, x0, args=args, method="hybr")`, `"broyden1"`, `"krylov"`, `"anderson"`'
)
def test_scipy_root():
    start = np.array([1.0, 1.0])
    for there, here in (("hybr", "broyden"), ("krylov", "newton-krylov"), ("anderson", "anderson")):
        found = scipy.optimize.root(jax.jit(bent), start, args=(A,), method=there)
        at_the_solution(found.x, jaxqn.root(bent, jnp.asarray(start), ARGS, method=here).x)


@row(
    "`optimistix.root_find(F, optimistix.Newton(rtol, atol), y0, args)`, "
    "`jaxopt.Broyden(F).run(x0, *args)`"
)
def test_root_finders(optimistix):
    solver = optimistix.Newton(rtol=1e-8, atol=1e-8)
    there = optimistix.root_find(bent, solver, X0, ARGS[0])
    at_the_solution(there.value, jaxqn.root(bent, X0, ARGS, method="newton").x)
    at_the_solution(jaxqn.root(bent, X0, ARGS).x)


@row(
    "`optimistix.fixed_point(g, solver, y0, args)`, "
    "`jaxopt.AndersonAcceleration(g, history_size=5).run(x0, *args)`"
)
def test_fixed_points(jaxopt):
    solver = jaxopt.AndersonAcceleration(contraction, history_size=5, tol=1e-8)
    there = solver.run(X0, *ARGS).params
    at_the_solution(there, jaxqn.fixed_point(contraction, X0, ARGS, memory=5).x)


@row("`jaxopt.LevenbergMarquardt(r).run(x0, *args)`, `jaxopt.GaussNewton(r)`")
def test_jaxopt_least_squares(jaxopt):
    here = least_squares(residuals, X0, ARGS)
    with jax.numpy_dtype_promotion("standard"):  # its damping mixes float32 and float64
        for solver in (jaxopt.LevenbergMarquardt, jaxopt.GaussNewton):
            at_the_solution(solver(residuals, tol=1e-8).run(X0, *ARGS).params, here.x)


@row("`state = solver.init_state(x0)`, `x, state = solver.update(x, state, *args)`")
def test_jaxopt_update(jaxopt):
    """One iteration at a time; here `maxiter` is the count at which to pause."""
    solver = jaxopt.BFGS(fun=valley, tol=1e-6)
    x, state = X0, solver.init_state(X0, *ARGS)
    update = jax.jit(solver.update)
    for _ in range(60):
        x, state = update(x, state, *ARGS)
    result = minimize(valley, X0, ARGS, maxiter=0)
    while result.status == Status.MAX_ITER:
        result = minimize(valley, X0, ARGS, state=result.state, maxiter=result.nit + 1)
    at_the_solution(x, result.x)
    whole = minimize(valley, X0, ARGS)
    assert (result.nit, result.nfev) == (whole.nit, whole.nfev)
    np.testing.assert_array_equal(result.x, whole.x)


def with_residual(x, a):
    return valley(x, a), a - x[0]


@row("`state.iter_num`, `num_fun_eval`, `value`, `grad`, `error`; `has_aux=True`, `state.aux`")
def test_jaxopt_state(jaxopt):
    solver = jaxopt.LBFGS(with_residual, has_aux=True, tol=1e-8, linesearch="backtracking")
    x, state = solver.run(X0, *ARGS)
    here = minimize(with_residual, X0, ARGS, has_aux=True)
    at_the_solution(x, here.x)
    for nit, nfev in ((state.iter_num, state.num_fun_eval), (here.nit, here.nfev)):
        assert 10 < nit <= nfev < 200
    for value, slope in ((state.value, state.grad), (here.fun, here.jac)):
        np.testing.assert_allclose(value, 0, atol=1e-12)
        np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(state.error, np.linalg.norm(state.grad), rtol=1e-9)
    np.testing.assert_allclose(state.aux, A - x[0], atol=1e-12)
    np.testing.assert_array_equal(here.aux, ARGS[0] - here.x[0])


@row("`value_and_grad=True`; in SciPy `jac=gradient`")
def test_value_and_grad(jaxopt):
    """A gradient of one's own is a `jax.custom_vjp`; wrong by a factor, so that it shows."""

    def both(x, a):
        value, grad = jax.value_and_grad(valley)(x, a)
        return value, 3 * grad

    f = jax.custom_vjp(lambda x, a: both(x, a)[0])
    f.defvjp(both, lambda grad, t: (jax.tree.map(lambda g: t * g, grad), None))

    solver = jaxopt.LBFGS(both, value_and_grad=True, maxiter=1, linesearch="backtracking")
    there = solver.run(X0, *ARGS)
    here = minimize(f, X0, ARGS, maxiter=1)
    for x, slope in ((there.params, there.state.grad), (here.x, here.jac)):
        np.testing.assert_allclose(slope, 3 * value_and_slope(np.asarray(x), A)[1], rtol=1e-9)


@row("`implicit_diff=True`; in optimistix `ImplicitAdjoint()`")
def test_implicit_differentiation(jaxopt):
    """The derivative of the solution by the data."""
    solution = lambda a: minimize(valley, X0, (a,)).x  # noqa: E731

    def there(a):
        solver = jaxopt.LBFGS(valley, tol=1e-8, implicit_diff=True, linesearch="backtracking")
        return solver.run(X0, a).params

    expected = np.array([1.0, 2 * A])
    np.testing.assert_allclose(jax.jacrev(there)(*ARGS), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jacrev(solution)(*ARGS), expected, rtol=1e-6)


@row("`unroll=True`: reverse mode through the iterations")
def test_no_reverse_mode_through_the_iterations(jaxopt):
    def there(a):
        solver = jaxopt.GradientDescent(
            lambda x, a: (x - a) ** 2,
            stepsize=0.4,
            maxiter=20,
            tol=1e-9,
            acceleration=False,
            implicit_diff=False,
            unroll=True,
        )
        return solver.run(jnp.zeros(()), a).params

    np.testing.assert_allclose(jax.grad(there)(*ARGS), 1.0, rtol=1e-6)
    slope = jax.grad(lambda a: minimize(valley, X0, (a,)).x[0])(*ARGS)
    np.testing.assert_allclose(slope, 1.0, rtol=1e-6)


@row("`jit=False`")
def test_without_jit(jaxopt):
    """It is always compiled, once; `jax.debug` sees every trial."""
    traced, seen = [], []

    def watched(x, a):
        traced.append(x)
        jax.debug.callback(seen.append, x)
        return valley(x, a)

    eager = jaxopt.GradientDescent(watched, stepsize=1e-3, maxiter=3, jit=False)
    eager.run(X0, *ARGS)
    assert len(traced) == 3
    minimize(watched, X0, ARGS, maxiter=1)
    jax.effects_barrier()
    traced.clear()
    seen.clear()
    here = jax.block_until_ready(minimize(watched, 0.5 * X0, ARGS, maxiter=2))
    jax.effects_barrier()
    assert traced == []
    assert len(seen) == here.nfev


@row("`stepsize=0.1`: no line search")
def test_fixed_step(jaxopt):
    """Without scaling H = I the first time, both take the textbook's steps."""

    def bowl(x):
        return 2 * x[0] ** 2 + x[0] * x[1] + 3 * (x[1] - 1) ** 2

    solver = jaxopt.BFGS(fun=bowl, stepsize=0.1)
    update = jax.jit(solver.update)
    optimizer = jaxqn.bfgs(learning_rate=0.1, scale_init=False)
    there, state = X0, solver.init_state(X0)
    here, opt_state = X0, optimizer.init(X0)
    for _ in range(10):
        there, state = update(there, state)
        updates, opt_state = optimizer.update(jax.grad(bowl)(here), opt_state, here)
        here = optax.apply_updates(here, updates)
        np.testing.assert_allclose(here, there, rtol=1e-6)


# --- optimistix ------------------------------------------------------------------------------


@row("`optimistix.minimise(f, optimistix.BFGS(rtol, atol), y0, args)`")
def test_optimistix(optimistix):
    there = optimistix.minimise(valley, optimistix.BFGS(1e-8, 1e-8), X0, ARGS[0])
    here = minimize(valley, X0, (ARGS[0],))
    at_the_solution(there.value, here.x)


@row("`optimistix.LBFGS(..., history_length=5)`, `optimistix.DFP(...)`")
def test_optimistix_methods(optimistix):
    for solver, method in (
        (optimistix.LBFGS(1e-8, 1e-8, history_length=5), jaxqn.lbfgs_memory(5)),
        (optimistix.DFP(1e-8, 1e-8), "dfp"),
    ):
        there = optimistix.minimise(valley, solver, X0, ARGS[0], max_steps=2000)
        here = minimize(valley, X0, ARGS, method=method)
        at_the_solution(there.value, here.x)


@row("`optimistix.least_squares(r, optimistix.LevenbergMarquardt(rtol, atol), y0, args)`")
def test_optimistix_least_squares(optimistix):
    solver = optimistix.LevenbergMarquardt(1e-8, 1e-8)
    there = optimistix.least_squares(residuals, solver, X0, ARGS[0])
    here = least_squares(residuals, X0, (ARGS[0],))
    at_the_solution(there.value, here.x)
    assert here.nfev <= there.stats["num_steps"]


@row("`rtol`, `atol`: of the step and of the value")
def test_optimistix_tolerances(optimistix):
    """Optimistix wants both small, here either may end the run; both are relative."""
    there = optimistix.minimise(valley, optimistix.BFGS(1e-3, 1e-3), X0, ARGS[0])
    by_step = minimize(valley, X0, ARGS, xtol=1e-3)
    by_value = minimize(lambda x, a: 1 + valley(x, a), X0, ARGS, ftol=1e-6)
    assert by_step.status == Status.XTOL
    assert by_value.status == Status.FTOL
    at_the_solution(there.value, by_step.x, rtol=2e-2)
    assert valley(by_value.x, *ARGS) < 1e-3


@row("`max_steps=7`, `throw=False`")
def test_optimistix_budget(optimistix):
    """`max_steps` counts trials, as `maxfun` does; nothing is thrown here."""
    there = optimistix.minimise(
        valley, optimistix.BFGS(1e-8, 1e-8), X0, ARGS[0], max_steps=7, throw=False
    )
    here = minimize(valley, X0, ARGS, maxfun=7)
    assert there.stats["num_steps"] == here.nfev == 7
    assert there.result != optimistix.RESULTS.successful
    assert here.status == Status.MAX_FUN


@row('`sol.value`, `sol.aux`, `sol.result`, `sol.stats["num_steps"]`')
def test_optimistix_solution(optimistix):
    there = optimistix.minimise(
        with_residual, optimistix.BFGS(1e-8, 1e-8), X0, ARGS[0], has_aux=True
    )
    here = minimize(with_residual, X0, ARGS, has_aux=True)
    at_the_solution(there.value, here.x)
    for aux in (there.aux, here.aux):
        np.testing.assert_allclose(aux, 0, atol=1e-6)
    assert there.result == optimistix.RESULTS.successful
    assert here.status == Status.CONVERGED
    for trials in (there.stats["num_steps"], here.nfev):
        assert 20 < trials < 200


@row("`optimistix.BestSoFarMinimiser(solver)`")
def test_best_so_far(optimistix):
    """The point returned is always the lowest finite one that was evaluated."""
    seen = []

    def watched(x, a):
        value = valley(x, a)
        jax.debug.callback(lambda v: seen.append(float(v)), value)
        return value

    solver = optimistix.BestSoFarMinimiser(optimistix.BFGS(1e-8, 1e-8))
    there = optimistix.minimise(valley, solver, X0, ARGS[0], max_steps=9, throw=False)
    assert valley(there.value, *ARGS) <= valley(X0, *ARGS)
    for budget in (3, 6, 9):
        seen.clear()
        here = minimize(watched, X0, ARGS, maxfun=budget)
        jax.block_until_ready(here)
        jax.effects_barrier()
        assert len(seen) == budget
        assert here.fun == min(seen)


# --- The table -------------------------------------------------------------------------------


def table(heading):
    """The rows of the table under a heading of the guide, as lists of cells."""
    section = GUIDE.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_the_table_has_these_rows():
    """Each row has a test that says which it is, in the table's order, and names what exists."""
    rows = table("Coming from elsewhere")
    assert [cells[0] for cells in rows] == list(ROWS)
    names = re.findall(r"jaxqn\.(\w+)", " ".join(" ".join(cells) for cells in rows))
    assert [name for name in names if not hasattr(jaxqn, name)] == []
