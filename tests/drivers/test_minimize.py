"""The driver: problems with known answers, SciPy, all that it counts and all that it promises.

Most tests run one compiled program a method: `problems.numbered`, which is the whole table of
problems at any scale, numbers being arguments.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    NAMES,
    QUADRATIC_HESSIAN,
    SIZE,
    by_name,
    numbered,
    numbered_start,
    rosenbrock,
)
from programs import TraceCounter, bodies, count, equations, marked, product_shapes
from scipy import optimize

from jaxqn import METHODS, MinimizeResult, Status, backtracking, minimize_batch, wolfe
from jaxqn.drivers import minimize, small_programs
from jaxqn.formulas import updates
from jaxqn.linalg import vectors
from jaxqn.loop import default_method
from jaxqn.quasi_newton.dense import default_panel, dense
from jaxqn.quasi_newton.lbfgs import lbfgs_memory

DEFAULT = default_method(numbered)
value_and_grad = jax.jit(jax.value_and_grad(numbered))


def run(name, dtype=np.float64, scale=1.0, **options):
    x0, args = numbered_start(name, dtype, scale)
    return minimize(numbered, x0, args, **options)


def status(result):
    return Status(int(result.status))


def slope(result):
    return float(np.max(np.abs(result.jac)))


def slope_at_start(name, dtype=np.float64, scale=1.0):
    x0, args = numbered_start(name, dtype, scale)
    return float(np.max(np.abs(value_and_grad(x0, *args)[1])))


def assert_same_bits(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# Methods × problems

# Pairs that need not converge within the default budget, and why.
EXCEPTIONS = {
    ("dfp", "rosenbrock10"): "DFP corrects a large eigenvalue of H slowly (N&W section 6.1)",
    ("dfp", "wood"): "the same",
    ("dfp", "quadratic"): "the same",
    ("dfp", "powell_singular"): "the same",
    ("dfp", "logistic"): "the same",
    (
        "lsr1",
        "powell_singular",
    ): "slow down the valley of a singular Hessian",
    ("newton", "rosenbrock10"): "from this start it finds the other local minimum, f = 3.987",
    (
        "sr1",
        "quadratic",
    ): "float32: with a line search, SR1 loses the descent direction in the noise",
}

# Pairs that reach the minimum, in so many steps that rounding says how they end; in the valley of
# the singular function rounding is larger than the gradient along it.
MAY_STALL = {("lbfgs", "quadratic"), ("sr1", "powell_singular"), ("bfgs", "powell_singular")}


@functools.cache
def scipy_bfgs(name, gtol=1e-5):
    x0, args = numbered_start(name)
    return optimize.minimize(
        lambda x: [np.asarray(v) for v in value_and_grad(x, *args)],
        np.asarray(x0),
        jac=True,
        method="BFGS",
        options={"gtol": gtol},
    )


OF_RESIDUALS = ("structured", "lm", "residual")
QUASI_NEWTON = [name for name in METHODS if name not in ("newton", *OF_RESIDUALS)]

# All methods in float64, some in float32: a program compiles for every one.
RUNS = [(name, np.float64) for name in METHODS if name not in OF_RESIDUALS]
RUNS += [(name, np.float32) for name in ("bfgs", "osbfgs", "sr1", "ssbroyden")]
each_run = pytest.mark.parametrize(
    ("method", "dtype"), RUNS, ids=[f"{name}-{dtype.__name__}" for name, dtype in RUNS]
)


@pytest.mark.parametrize("name", NAMES)
@each_run
def test_minimum(method, name, dtype):
    """As low as SciPy and as the known minimum, with a gradient as small as asked for."""
    single = dtype is np.float32
    result, minimum = run(name, dtype, method=method), by_name(name).minimum
    assert result.x.dtype == result.fun.dtype == result.jac.dtype == dtype
    value, gradient = value_and_grad(result.x, *numbered_start(name, dtype)[1])
    reduction = slope(result) / slope_at_start(name, dtype)
    tol = 1e-3 if single else 1e-8
    np.testing.assert_allclose(result.fun, value, rtol=1e-5 if single else 1e-12, atol=1e-12)
    np.testing.assert_allclose(result.jac, gradient, atol=tol * slope_at_start(name, dtype))
    if bool(result.success):
        assert reduction <= tol, "a success with an unreduced gradient"
    if (method, name) in EXCEPTIONS:
        assert bool(result.success) or status(result) in (Status.STALLED, Status.MAX_ITER)
        return
    may_stall = (method, name) in MAY_STALL and status(result) == Status.STALLED
    assert status(result) == Status.CONVERGED or may_stall
    assert float(result.fun) <= minimum + (1e-5 if single else 1e-10) * max(1, abs(minimum))
    if not single:
        assert float(result.fun) <= scipy_bfgs(name).fun + 1e-10 * max(1, abs(minimum))
        assert reduction <= 1e-9 or slope(result) <= np.max(np.abs(scipy_bfgs(name).jac))


def test_solutions_are_the_known_ones():
    """Where the minimiser is unique and well determined."""
    for name in ("rosenbrock", "rosenbrock10", "beale", "wood", "logistic", "quadratic"):
        solution = by_name(name).solution
        np.testing.assert_allclose(run(name).x[: solution.size], solution, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_backtracking_converges_too(name):
    result = run(name, method="bfgs", linesearch=backtracking())
    minimum = by_name(name).minimum
    assert bool(result.success) or ("bfgs", name) in MAY_STALL
    assert float(result.fun) <= minimum + 1e-10 * max(1, abs(minimum))


def test_no_dearer_than_scipy():
    """The default method to SciPy's own tolerance, over the table: evaluations in all."""
    names = [name for name in NAMES if name != "rosenbrock10"]  # SciPy ends in a local minimum
    ours = sum(int(run(name, gtol=1e-5).nfev) for name in names)
    assert ours <= 1.25 * sum(scipy_bfgs(name).nfev for name in names)


@pytest.mark.parametrize("method", ["bfgs", "sr1", "ssbfgs", "ssbroyden"])
def test_the_tail_is_superlinear(method):
    """The last three steps contract the error more than the three before; no linear rate does."""
    results = []
    run("rosenbrock", method=method, gtol=2e-8, callback=results.append)
    errors = [np.linalg.norm(result.x[:2] - 1) for result in results]
    last, before = errors[-1] / errors[-4], errors[-4] / errors[-7]
    assert errors[-1] < 1e-8
    assert last < 1e-3
    assert last < before


# Scale


@each_run
@pytest.mark.parametrize("power", [-26, 26])
def test_a_power_of_two_changes_nothing(method, power, dtype):
    """c f for c = 2^±26, about 1e±8: the same iterates and counts, bit for bit."""
    plain = run("rosenbrock10", dtype, method=method, maxiter=300)
    scaled = run("rosenbrock10", dtype, 2.0**power, method=method, maxiter=300)
    assert_same_bits(scaled.x, plain.x)
    assert_same_bits(scaled.fun, plain.fun * 2.0**power)
    assert_same_bits(scaled.jac, plain.jac * 2.0**power)
    assert (status(scaled), int(scaled.nit), int(scaled.nfev)) == (
        status(plain),
        int(plain.nit),
        int(plain.nfev),
    )


@pytest.mark.parametrize("c", [1e-8, 1e-4, 1.0, 1e4, 1e8])
def test_the_scale_of_the_objective_changes_no_decision(c, dtype):
    """The same iterates up to rounding, which a long path through the valley amplifies."""
    single = dtype == jnp.float32
    for maxiter, tol in ((3, 1e-4), (8, 1e-2)) if single else ((8, 1e-11), (20, 1e-8)):
        plain = run("rosenbrock10", dtype, maxiter=maxiter)
        scaled = run("rosenbrock10", dtype, c, maxiter=maxiter)
        assert int(scaled.nfev) == int(plain.nfev)
        np.testing.assert_allclose(scaled.x, plain.x, rtol=tol, atol=tol)
    plain, scaled = run("rosenbrock10", dtype), run("rosenbrock10", dtype, c)
    assert status(plain) == status(scaled) == Status.CONVERGED
    assert abs(int(scaled.nit) - int(plain.nit)) <= 0.3 * int(plain.nit)
    np.testing.assert_allclose(scaled.x, 1, atol=1e-2 if single else 1e-6)


@pytest.mark.parametrize("c", [1e-8, 1e-4, 1.0, 1e4, 1e8])
@pytest.mark.parametrize("name", NAMES)
def test_success_is_never_false(name, c, dtype):
    result = run(name, dtype, c)
    if bool(result.success):
        tol = 1e-5 if dtype == jnp.float32 else 1e-9
        assert slope(result) <= tol * slope_at_start(name, dtype, c)
    else:
        # Stalled: the value is at its rounding noise.
        gap = float(result.fun) - c * by_name(name).minimum
        noise = 100 * float(jnp.finfo(dtype).eps) * abs(float(result.fun))
        assert status(result) == Status.STALLED
        assert gap <= noise + 1e-6 * c


# Counts and budgets


class Recorder:
    """An objective that writes down, on the host, every point where it runs."""

    def __init__(self):
        self.points = []

    def __call__(self, x):
        jax.debug.callback(lambda x: self.points.append(np.array(x)), x, ordered=True)
        return rosenbrock(x)


@pytest.mark.parametrize("linesearch", [wolfe(), backtracking()], ids=["wolfe", "backtracking"])
def test_reported_evaluations_are_the_counted_ones(linesearch):
    """The first is at x0, no point is evaluated twice, and the best one is returned."""
    fun, x0 = Recorder(), by_name("rosenbrock").x0
    result = jax.block_until_ready(minimize(fun, jnp.asarray(x0), linesearch=linesearch))
    jax.effects_barrier()
    assert int(result.nfev) == len(fun.points)
    np.testing.assert_array_equal(fun.points[0], x0)
    assert len({point.tobytes() for point in fun.points}) == len(fun.points)
    values = [optimize.rosen(point) for point in fun.points]
    assert float(result.fun) == pytest.approx(min(values), rel=1e-6, abs=1e-25)
    np.testing.assert_array_equal(result.x, fun.points[int(np.argmin(values))])


@pytest.mark.parametrize("maxfun", [1, 2, 3, 7, 8, 11, 25])
def test_maxfun_is_exact(maxfun):
    """Also in the middle of a line search: it is checked before every evaluation."""
    result = run("wood", maxfun=maxfun)
    assert (status(result), int(result.nfev)) == (Status.MAX_FUN, maxfun)


@pytest.mark.parametrize("maxiter", [0, 1, 2, 9])
def test_maxiter_is_exact(maxiter):
    result = run("wood", maxiter=maxiter)
    assert (status(result), int(result.nit)) == (Status.MAX_ITER, maxiter)


def test_a_converged_start_costs_one_evaluation(dtype):
    for name in ("rosenbrock", "wood"):
        x0, args = numbered_start(name, dtype)
        n = by_name(name).x0.size
        solution = jnp.where(jnp.arange(SIZE) < n, jnp.ones_like(x0), jnp.zeros_like(x0))
        result = minimize(numbered, solution, args)
        assert (status(result), int(result.nit), int(result.nfev)) == (Status.CONVERGED, 0, 1)
        assert_same_bits(result.x, solution)


def test_the_lowest_point_seen_is_returned_whenever_it_ends():
    """For every budget: no run with more evaluations returns a higher point."""
    values = [float(run("wood", maxfun=k).fun) for k in range(1, 60)]
    assert values[0] == pytest.approx(19192)
    assert np.all(np.diff(values) <= 0)


# Continuing


@pytest.mark.parametrize("method", ["osbfgs", "bfgs", "sr1"])
def test_a_continued_run_is_one_long_run(method):
    """Bit for bit in every leaf, wherever the first part stopped."""
    whole = run("wood", method=method, maxfun=60)
    for first in [{"maxiter": k} for k in (0, 1, 2, 13)] + [
        {"maxfun": k} for k in (1, 5, 6, 7, 31)
    ]:
        part = run("wood", method=method, **first)
        rest = run("wood", method=method, maxfun=60, state=part.state)
        assert_same_bits(rest, whole)


def test_a_run_may_be_continued_after_every_evaluation():
    whole = run("wood", maxfun=40)
    part = run("wood", maxfun=1)
    for k in range(2, 41):
        part = run("wood", maxfun=k, state=part.state)
        assert int(part.nfev) == k
    assert_same_bits(part, whole)


def test_a_limited_memory_that_was_given_a_diagonal_is_continued():
    whole = run("wood", method="lbfgs", hess_inv0=0.1 * np.ones(SIZE), maxfun=30)
    part = run("wood", method="lbfgs", hess_inv0=0.1 * np.ones(SIZE), maxfun=10)
    assert_same_bits(run("wood", method="lbfgs", maxfun=30, state=part.state), whole)


@jax.tree_util.register_pytree_node_class
class Box:
    """A pytree whose instances are equal to themselves only."""

    def __init__(self, content):
        self.content = content

    def tree_flatten(self):
        return (self.content,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_trees_are_compared_by_their_leaves():
    def fun(box):
        return jnp.sum((box.content - 1) ** 4), Box(jnp.max(box.content))

    x0, H0 = Box(jnp.zeros(3)), Box(jnp.ones(3))
    call = functools.partial(minimize, fun, x0, method="lbfgs", has_aux=True)
    first = call(hess_inv0=H0, maxiter=2)
    assert call(state=first.state).success


@pytest.mark.parametrize("size", [1e20, 1e-20])
def test_no_step_is_short_where_squares_are_out_of_range(size):
    """In float32; one that cannot be measured is no reason to stop."""
    size = jnp.float32(size)

    def fun(x):
        return jnp.sum((x / size - 3) ** 2 * jnp.array([1, 10], x.dtype))

    result = minimize(fun, size * jnp.array([1, 2], size.dtype), xtol=1e-3, x_scale=1.0)
    assert status(result) != Status.XTOL


def test_a_finished_run_continues_under_a_smaller_tolerance():
    coarse = run("wood", gtol=1.0)
    assert (status(coarse), bool(coarse.success)) == (Status.CONVERGED, True)
    fine = run("wood", state=coarse.state)
    assert_same_bits(fine, run("wood"))
    again = run("wood", state=fine.state)
    assert_same_bits(again, fine)


def test_a_state_may_be_donated():
    """Every leaf owns its buffer, so that a service can step in place."""
    x0, args = numbered_start("wood")

    @functools.partial(jax.jit, donate_argnames="state")
    def more(x0, args, state, maxfun):
        return minimize(numbered, x0, args, state=state, maxfun=maxfun).state

    state = run("wood", maxfun=1).state
    for k in range(2, 41):
        before = jax.tree.leaves(state)
        state = more(x0, args, state=state, maxfun=jnp.int32(k))
        assert all(leaf.is_deleted() for leaf in before if leaf.size)
    expected = run("wood", maxfun=40)
    again = run("wood", maxfun=40, state=state)
    assert int(again.nfev) == 40
    np.testing.assert_allclose(again.x, expected.x, rtol=1e-8)


# Looking on


def test_callback_sees_every_iteration_and_changes_none():
    seen = []
    result = run("wood", callback=seen.append)
    assert [int(r.nit) for r in seen] == list(range(1, int(result.nit) + 1))
    assert all(isinstance(r, MinimizeResult) for r in seen)
    assert_same_bits(seen[-1].x, result.x)
    for r in seen[:5]:
        assert_same_bits(r.x, run("wood", maxiter=int(r.nit)).x)
    assert_same_bits(result, run("wood"))


def test_callback_stops_the_run():
    result = run("wood", callback=lambda r: int(r.nit) == 4)
    assert (status(result), int(result.nit)) == (Status.STOPPED, 4)
    assert not bool(result.success)
    assert_same_bits(result.x, run("wood", maxiter=4).x)
    assert_same_bits(run("wood", state=result.state), run("wood"))


def test_progress_is_printed(capsys):
    result = run("wood", progress=True)
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(rf"evaluations +{int(result.nfev)}\b", lines[-1])
    assert_same_bits(result, run("wood"))


@pytest.mark.parametrize("option", [{"callback": print}, {"progress": True}])
def test_looking_on_needs_an_eager_call(option):
    with pytest.raises(TypeError, match=r"concrete numbers.*eagerly.*maxiter"):
        jax.jit(lambda x: minimize(rosenbrock, x, **option))(jnp.zeros(2))


# What an objective may be


def with_aux(x, offset):
    residual = x - offset
    return residual @ residual + jnp.sum(residual**4), {"residual": residual, "nothing": None}


def test_auxiliary_output_is_that_of_the_point_returned():
    offset = jnp.arange(3.0)
    for maxfun in (1, 2, 3, None):
        result = minimize(with_aux, jnp.ones(3), (offset,), has_aux=True, maxfun=maxfun)
        assert_same_bits(result.aux["residual"], result.x - offset)
        assert result.aux["nothing"] is None
    assert bool(result.success)
    np.testing.assert_allclose(result.x, offset, atol=1e-6)


def tree_rosenbrock(tree, scale):
    flat = jnp.concatenate([tree["a"][None], tree["b"][0].ravel(), tree["b"][1]])
    return scale["s"] * rosenbrock(flat)


def test_a_pytree_is_its_ravelled_vector():
    """Scalars, matrices and vectors; arguments that are pytrees; the same path."""
    flat = jnp.asarray(by_name("rosenbrock10").x0)
    tree = {"a": flat[0], "b": (flat[1:7].reshape(2, 3), flat[7:])}
    result = minimize(tree_rosenbrock, tree, ({"s": jnp.array(1.0)},))
    reference = run("rosenbrock10")
    assert jax.tree.map(jnp.shape, result.x) == {"a": (), "b": ((2, 3), (3,))}
    assert jax.tree.structure(result.jac) == jax.tree.structure(tree)
    assert result.hess_inv.shape == (10, 10)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(result.x)[0], np.ones(10), atol=1e-6)
    assert abs(int(result.nfev) - int(reference.nfev)) <= 0.2 * int(reference.nfev)
    early = minimize(tree_rosenbrock, tree, ({"s": jnp.array(1.0)},), maxiter=10)
    x = jax.flatten_util.ravel_pytree(early.x)[0]
    np.testing.assert_allclose(x, run("rosenbrock10", maxiter=10).x, rtol=1e-9)


@pytest.mark.parametrize("start", [1.5, [1.5], np.array(1.5), [np.float64(1.5)]])
def test_numbers_and_lists_are_pytrees_too(start):
    result = minimize(lambda x: jnp.sum((jnp.asarray(jax.tree.leaves(x)[0]) - 3) ** 2), start)
    assert jax.tree.structure(result.x) == jax.tree.structure(start)
    assert float(jax.tree.leaves(result.x)[0]) == pytest.approx(3)


# The inverse Hessian


def test_an_exact_initial_inverse_hessian_makes_newtons_method():
    H0 = np.linalg.inv(QUADRATIC_HESSIAN)
    result = run("quadratic", method="bfgs", hess_inv0=(H0 + H0.T) / 2)
    assert bool(result.success)
    assert int(result.nit) <= 2
    assert int(result.nfev) <= 4


def test_an_initial_inverse_hessian_gives_the_first_direction():
    d = np.ones(SIZE)
    H0 = np.eye(SIZE) + np.outer(d, d)
    x0, args = numbered_start("quadratic")
    first = run("quadratic", hess_inv0=H0, maxiter=1)
    step, newton = first.x - x0, -H0 @ value_and_grad(x0, *args)[1]
    cosine = step @ newton / (np.linalg.norm(step) * np.linalg.norm(newton))
    assert cosine == pytest.approx(1, abs=1e-12)


def test_an_initial_inverse_hessian_may_be_a_diagonal():
    d = np.linspace(0.5, 2, SIZE)
    diagonal, matrix = (run("quadratic", hess_inv0=H0) for H0 in (d, np.diag(d)))
    assert_same_bits(diagonal, matrix)


@pytest.mark.parametrize("method", ["bfgs", "sr1"])
def test_the_final_inverse_hessian_is_the_quadratics(method):
    """SR1 to many digits; BFGS along the directions it has taken, which are all of them here."""
    expected = np.linalg.inv(QUADRATIC_HESSIAN)
    actual = run("quadratic", method=method).hess_inv
    tol = 1e-6 if method == "sr1" else 0.1
    np.testing.assert_allclose(actual, expected, atol=tol * np.abs(expected).max())


@pytest.mark.parametrize("c", [1e-8, 1e8])
def test_the_inverse_hessian_has_the_objectives_units(c):
    plain, scaled = run("logistic", method="bfgs"), run("logistic", scale=c, method="bfgs")
    size = by_name("logistic").x0.size
    expected = np.asarray(plain.hess_inv)[:size, :size]
    actual = np.asarray(scaled.hess_inv)[:size, :size] * c
    np.testing.assert_allclose(actual, expected, atol=0.05 * np.abs(expected).max())


# Tracing and compiling


def test_a_second_call_traces_nothing():
    """Neither do new numbers: points, arguments, tolerances and budgets are operands."""
    fun = TraceCounter(lambda x, a: a * rosenbrock(x))
    x0, args, H0 = jnp.array([-1.2, 1.0]), (jnp.float64(1),), np.diag([1.0, 2.0])
    first = minimize(fun, x0, args)
    assert fun.traces == 1
    minimize(fun, x0, args)
    minimize(fun, x0 + 1, (jnp.float64(3),))
    minimize(fun, np.array([3.0, 4.0]), (np.array(3.0),))
    minimize(fun, x0, args, gtol=1e-3, ftol=1e-9, xtol=1e-9, maxiter=7, maxfun=50)
    minimize(fun, x0, args, gtol=jnp.array(1e-3))
    minimize(fun, x0, args, hess_inv0=H0)
    minimize(fun, x0, args, state=first.state)
    minimize(fun, x0, args, callback=lambda result: int(result.nit) > 2)
    minimize(fun, x0, args, method=DEFAULT)
    assert fun.traces == 1


@pytest.mark.parametrize("linesearch", [wolfe(), backtracking()], ids=["wolfe", "backtracking"])
@pytest.mark.parametrize(
    "method", [*QUASI_NEWTON, dense(updates.bfgs_rule, panel=2)], ids=[*QUASI_NEWTON, "panel"]
)
def test_one_objective_site_and_no_matrix_product(method, linesearch):
    fun = marked(rosenbrock)
    solve = functools.partial(minimize, fun, method=method, linesearch=linesearch)
    jaxpr = jax.make_jaxpr(solve)(jnp.zeros(7)).jaxpr
    assert count(jaxpr, "marker") == 1
    # Loops of at most one trip fold a panel, read a history once more, and aim in place.
    (body,) = bodies(jaxpr)
    limited = method in ("lbfgs", "lsr1")
    assert count(body, "while") == (2 if limited else 0 if isinstance(method, str) else 1)
    products = product_shapes(jaxpr)
    assert any((7, 7) in shapes for shapes in products) != limited
    assert ((7, 7), (7, 7)) not in products


def test_no_select_over_a_matrix():
    """Scalars and vectors are masked, never the n-by-n matrix."""
    jaxpr = jax.make_jaxpr(functools.partial(minimize, rosenbrock))(jnp.zeros(7)).jaxpr
    for equation in equations(jaxpr):
        if equation.primitive.name == "select_n":
            assert equation.outvars[0].aval.shape != (7, 7)


@pytest.mark.compiled
def test_a_long_run_has_room_for_ten_vectors_beside_its_history():
    """The eighth and ninth are the curvature and its correction, made near an end only.

    An eleventh would be a copy of the trial, made for the loop that holds a refused one.
    """
    n, m = 20_000, 5

    def solve(x):
        return minimize(rosenbrock, x, method=lbfgs_memory(m)).x

    memory = jax.jit(solve, donate_argnums=0).lower(jnp.zeros(n)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < (2 * m + 10.5) * n * 8


def edged(x, edge):
    """The valley, and a step up beyond an edge."""
    return rosenbrock(x) + jnp.where(jnp.min(x) < edge, 1e3, 0)


def edged_anew(x, edge):
    """The same as another function, which is compiled anew."""
    return edged(x, edge)


@pytest.mark.parametrize("method", ["osbfgs", "lbfgs"])
@pytest.mark.parametrize("edge", [-np.inf, -1.3], ids=["smooth", "with an edge"])
def test_branches_around_long_vectors_give_what_selects_do(method, edge, monkeypatch):
    """Both with refused trials, and the second with failed searches too."""
    x0 = jnp.array([-1.2, 1.0, -1.2, 1.0])
    short = minimize(edged, x0, (edge,), method=method)
    monkeypatch.setattr(vectors, "LONG", 1)
    long = minimize(edged_anew, x0, (edge,), method=method)
    assert short.nfev > short.nit + 1
    assert (status(long), int(long.nit)) == (status(short), int(short.nit))
    assert int(long.nfev) == int(short.nfev)
    np.testing.assert_allclose(long.x, short.x, rtol=1e-6)


@pytest.mark.parametrize(("backend", "long"), [("cpu", 10_000), ("gpu", 4_000_000)])
def test_what_is_long_and_what_is_deferred_depends_on_the_device(backend, long, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    sizes = [[jax.ShapeDtypeStruct((n,), float)] for n in (long, long + 1)]
    assert [vectors.branching_pays(size) for size in sizes] == [False, True]
    large = 1000 if backend == "cpu" else 5000
    assert [default_panel(n) for n in (large - 1, large)] == [0, 32]


def test_what_a_result_looks_like():
    """The state, which holds the matrix, is not printed; a batch and a trace print, too."""
    text = repr(minimize(rosenbrock, np.ones(2)))
    assert "status=CONVERGED, nit=0, nfev=1, fun=0.0, x=[1. 1.]" in text
    assert "DenseState" not in text
    batch = jax.vmap(functools.partial(minimize, rosenbrock))(np.ones((3, 2)))
    assert "status=[1 1 1]" in repr(batch)
    seen = []
    jax.jit(lambda x: seen.append(repr(minimize(rosenbrock, x))))(np.ones(2))
    assert "status=" in seen[0]
    assert "None" in repr(jax.tree.map(lambda _: None, batch))


@pytest.mark.parametrize("method", [DEFAULT, "lbfgs"])
def test_what_a_result_says_of_curvature_is_one_program_each(method):
    result = run("wood", method=method)

    def programs(ask):
        return [equation.primitive.name for equation in jax.make_jaxpr(ask)(result).jaxpr.eqns]

    asked = [lambda r: r.hess_inv_product(r.x)]
    asked += [lambda r: r.pairs] if method == "lbfgs" else [lambda r: r.hess_inv]
    assert [len(programs(ask)) for ask in asked] == [1, 1]


def test_under_jit_it_is_the_same(monkeypatch):
    """To the last digit where the compiler has the same options, and else up to rounding."""
    x0, args = numbered_start("wood")
    jitted = jax.jit(lambda x, args: minimize(numbered, x, args))(x0, args)
    quick = run("wood")
    np.testing.assert_allclose(jitted.x, quick.x, rtol=1e-8)
    assert status(jitted) == status(quick)
    monkeypatch.setattr(small_programs, "_knows_options", lambda: False)
    eager = minimize(numbered, x0, args)
    assert (status(jitted), int(jitted.nit), int(jitted.nfev)) == (
        status(eager),
        int(eager.nit),
        int(eager.nfev),
    )
    np.testing.assert_allclose(jitted.x, eager.x, rtol=1e-9, atol=1e-12)
    assert isinstance(jitted, MinimizeResult)


def test_in_a_scan_each_run_starts_where_the_last_ended():
    """A path of problems, warm-started."""
    centres = jnp.linspace(0.0, 2.0, 5)

    def solve(x, c):
        result = minimize(lambda x, c: jnp.sum((x - c) ** 4 + (x - c) ** 2) + 1, x, (c,))
        return result.x, (result.x, result.nit, result.success)

    _, (xs, nit, success) = jax.lax.scan(solve, jnp.zeros(2), centres)
    np.testing.assert_allclose(xs, np.repeat(centres[:, None], 2, axis=1), atol=1e-6)
    assert nit.tolist()[0] == 0
    assert bool(jnp.all(success))


def solution(way, a):
    """The minimum of (x − a)², where a comes in by the way named."""
    fun, x0 = (lambda x, a: jnp.sum((x - a) ** 2)), jnp.zeros(2)
    if way == "args":
        return minimize(fun, x0, (a,), method="lbfgs").x
    if way == "x0":
        return minimize(fun, x0 + a, (1.0,)).x
    if way == "closure":
        return minimize(lambda x: fun(x, a), x0, method="lbfgs").x
    return minimize_batch(fun, x0[None], (a,), in_axes=(0, None)).x[0]


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev], ids=["jvp", "vjp"])
@pytest.mark.parametrize("way", ["args", "x0", "closure", "batch"])
def test_a_solution_moves_with_its_data(way, mode):
    """Whichever way they come in; the first point has no part in it."""
    slope = mode(functools.partial(solution, way))(jnp.array(2.0))
    np.testing.assert_allclose(slope, np.full(2, 0.0 if way == "x0" else 1.0), rtol=1e-9)


@pytest.mark.parametrize("way", ["closure", "batch"])
def test_a_constant_of_a_run_stays_one(way):
    def scaled(a):
        return a * jnp.sum(solution(way, jax.lax.stop_gradient(a)))

    gradients = jax.vmap(jax.grad(scaled))(jnp.array([2.0, 3.0]))
    np.testing.assert_allclose(gradients, [4.0, 6.0], rtol=1e-6)


# JAX's own checks


def test_no_tracer_leaks():
    with jax.checking_leaks():
        result = minimize(lambda x: jnp.sum((x - 2) ** 4), jnp.zeros(2), maxiter=5)
    assert int(result.nit) == 5


def test_no_nan_is_made_where_the_objective_is_finite(dtype):
    """Under `jax_debug_nans`, a NaN anywhere in the program is an error."""
    with jax.debug_nans(True):
        result = run("wood", dtype)
    assert status(result) == Status.CONVERGED


def test_arrays_stay_on_their_device():
    device = jax.devices()[3]
    x0, args = jax.device_put(numbered_start("wood"), device)
    result = minimize(numbered, x0, args)
    assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(result))
    assert_same_bits(result.x, run("wood").x)


def test_python_numbers_do_not_promote(dtype):
    """Under strict promotion: tolerances and budgets take the dtype of x0, or none."""
    result = run("beale", dtype, gtol=1e-3, ftol=1e-9, xtol=1e-9, maxiter=50, maxfun=99)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(result)}
    assert dtypes == {np.dtype(dtype), np.dtype(np.int32), np.dtype(bool)}
