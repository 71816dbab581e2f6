"""Many problems through a few lanes: every one as if it had been alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import TraceCounter, bodies, count, equations, marked

import jaxqn
from jaxqn import Status, minimize_batch, multi_start
from jaxqn.drivers import minimize
from jaxqn.drivers.in_axes import common_size, split
from jaxqn.drivers.lanes import second_stage_lanes

COUNT = 1024
MANY = 72
"""Lanes enough for a second stage."""

BUDGETS = {"gtol": 1e-8, "maxiter": 100, "maxfun": 90}
FIELDS = ("x", "fun", "jac", "status", "nit", "nfev")


def objective(x, data):
    """Rosenbrock's valley, a slope without end, NaN beyond an edge, and a wall."""
    valley = data["width"] * jnp.sum((x[1:] - x[:-1] ** 2) ** 2) + jnp.sum((1 - x[:-1]) ** 2)
    slope = data["slope"] * jnp.sum(x) + data["cube"] * jnp.sum(x**3)
    beyond = jnp.where(x[0] < data["edge"], jnp.nan, 0)
    wall = jnp.where(x[0] > data["wall"], 10.0, 0.0).astype(x.dtype)
    return data["keep"] * valley - slope + data["offset"] + beyond + wall


KINDS = {"solved": 3, "nan": 5, "edge": 7, "falling": 9, "tiny": 11, "plunging": 13, "wall": 15}
"""Which problem of sixteen is what; the others are valleys, narrow and wide."""


@functools.cache
def problems(dtype=np.float64):
    """Starts and data, and of what kind each problem is."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(COUNT, 3))
    full = functools.partial(np.full, COUNT)
    data = {
        "width": rng.permutation(np.geomspace(1, 100, COUNT)),
        "offset": rng.uniform(0, 1, COUNT),
        "edge": full(-np.inf),
        "wall": full(np.inf),
        "keep": full(1.0),
        "slope": full(0.0),
        "cube": full(0.0),
    }
    kind = np.arange(COUNT) % 16
    x[kind == KINDS["solved"]] = 1
    data["offset"][kind == KINDS["nan"]] = np.nan
    data["edge"][kind == KINDS["edge"]] = np.minimum(x[kind == KINDS["edge"], 0] - 1, 0.3)
    data["keep"][kind == KINDS["falling"]] = 0
    data["slope"][kind == KINDS["falling"]] = 1
    data["keep"][kind == KINDS["tiny"]] = 1e-8
    data["keep"][kind == KINDS["plunging"]] = 0
    data["cube"][kind == KINDS["plunging"]] = 1
    # Right behind the start of a slope: every step down it ends higher.
    data["keep"][kind == KINDS["wall"]] = 0
    data["slope"][kind == KINDS["wall"]] = 1
    data["wall"][kind == KINDS["wall"]] = x[kind == KINDS["wall"], 0]
    as_dtype = functools.partial(jnp.asarray, dtype=dtype)
    return *jax.tree.map(as_dtype, (x, data)), kind


def taken(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def one_by_one(fun, x, args, **options):
    """The oracle: `minimize`, called for one problem after the other."""
    size = jax.tree.leaves(x)[0].shape[0]
    results = [
        minimize(fun, taken(x, k), taken(args, k), **options)._replace(state=None)
        for k in range(size)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


@functools.cache
def singles(size=COUNT, **options):
    """The first so many problems alone."""
    x, data, _ = taken(problems(), slice(size))
    return one_by_one(objective, x, (data,), **(BUDGETS | options))


def batch(x, data, **options):
    return minimize_batch(objective, x, (data,), **(BUDGETS | options))


STEEP = 100
"""The size of the Hessians, and so what rounding of x makes of gradients."""


def assert_same(found, expected, tol):
    """The same ends and values up to rounding; where not finite, in the same way.

    Rounding is not the same in a batch, and what it does at first a run may amplify. In all but one
    problem of a hundred counters are equal, and points and gradients up to rounding; in that one
    another gradient may be the first within the tolerance.
    """
    np.testing.assert_array_equal(found.status, expected.status)
    for field in ("fun", "aux"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol, err_msg=field),
            getattr(found, field),
            getattr(expected, field),
        )
    size = expected.status.size
    apart = np.zeros(size, bool)
    for field in ("nit", "nfev"):
        more = np.abs(np.asarray(getattr(found, field)) - getattr(expected, field))
        assert np.max(more) <= 2, field
        apart |= more > 0
    for field, atol in (("x", tol), ("jac", STEEP * tol)):
        leaves = [jax.tree.leaves(getattr(result, field)) for result in (found, expected)]
        for a, b in zip(*leaves, strict=True):
            close = np.isclose(a, b, rtol=tol, atol=atol, equal_nan=True)
            apart |= ~np.all(close.reshape(size, -1), axis=1)
    assert np.sum(apart) <= max(1, size // 100), np.flatnonzero(apart)


def test_the_problems_are_what_they_should_be():
    """Easy and hard ones, and every bad end that a problem can come to by itself."""
    result, (x, data, kind) = singles(), problems()
    ends = {name: set(result.status[kind == k].tolist()) for name, k in KINDS.items()}
    assert ends["nan"] == {Status.NON_FINITE}
    assert ends["falling"] == {Status.UNBOUNDED}
    assert Status.UNBOUNDED in ends["plunging"]
    assert Status.LINE_SEARCH_FAILED in ends["wall"]
    assert np.abs(result.x[kind == KINDS["plunging"]]).max() > 1e8
    assert ends["solved"] == ends["tiny"] == {Status.CONVERGED}
    assert set(result.nfev[kind == KINDS["solved"]]) == {1}
    assert Status.CONVERGED in ends["edge"]
    some = np.flatnonzero(kind == KINDS["edge"])
    no_edge = taken(data | {"edge": jnp.full(COUNT, -jnp.inf)}, some)
    open_field = one_by_one(objective, x[some], (no_edge,), **BUDGETS)
    assert np.any(open_field.nfev != result.nfev[some]), "no run meets the edge"
    plain = ~np.isin(kind, list(KINDS.values()))
    assert set(result.status[plain]) == {Status.CONVERGED}
    assert result.nfev[plain].min() < 15
    assert result.nfev[plain].max() > 60


@pytest.mark.parametrize("lanes", [1, 7, MANY])
def test_every_problem_is_as_alone(lanes):
    x, data, _ = problems()
    result = batch(x, data, lanes=lanes)
    assert_same(result, singles(), tol=1e-7)
    assert result.state.lanes.tolist() == [[lanes, second_stage_lanes(lanes)]]


@pytest.mark.parametrize("lanes", [7, MANY])
def test_the_order_of_the_queue_changes_nothing(lanes):
    """Everything follows up to rounding, and exactly where all lanes are one program."""
    x, data, _ = problems()
    result = batch(x, data, lanes=lanes)
    backwards = np.arange(COUNT)[::-1]
    hardest_first, hardest_last = np.argsort(-result.nfev), np.argsort(result.nfev)
    shuffled = np.random.default_rng(1).permutation(COUNT)
    for order in (backwards, hardest_first, hardest_last, shuffled):
        moved = batch(x[order], taken(data, order), lanes=lanes)
        assert_same(moved, taken(result._replace(state=None), order), tol=1e-7)
        if second_stage_lanes(lanes) == 0:
            for field in FIELDS:
                a, b = getattr(moved, field), getattr(result, field)[order]
                np.testing.assert_array_equal(a, b, field)


@pytest.mark.parametrize("budgets", [{"maxiter": 4}, {"maxfun": 5}, {"maxiter": 0}])
def test_budgets(budgets):
    """Numbers compile nothing, and end each problem where it would end alone."""
    x, data, kind = problems()
    result = batch(x, data, lanes=7, **budgets)
    assert_same(taken(result._replace(state=None), slice(128)), singles(128, **budgets), tol=1e-7)
    status = Status.MAX_ITER if "maxiter" in budgets else Status.MAX_FUN
    assert set(result.status[kind == 0].tolist()) == {status}


def test_tolerances():
    x, data, _ = problems()
    loose = {"gtol": 0.0, "ftol": 1e-3, "xtol": 1e-2}
    result = batch(x, data, lanes=7, **loose)
    assert_same(taken(result._replace(state=None), slice(128)), singles(128, **loose), tol=1e-7)
    assert {Status.FTOL, Status.XTOL} <= set(result.status.tolist())


def test_float32():
    x, data, _ = taken(problems(np.float32), slice(96))
    options = BUDGETS | {"gtol": 1e-3, "maxiter": 8}
    result = minimize_batch(objective, x, (data,), lanes=7, **options)
    assert {result.x.dtype, result.fun.dtype, result.jac.dtype} == {jnp.dtype(jnp.float32)}
    assert_same(result, one_by_one(objective, x, (data,), **options), tol=2e-3)


def bowl(x, centre):
    return jnp.sum(jnp.cosh(x - centre)) + 0.1 * jnp.sum(x) ** 2


@pytest.mark.parametrize("method", ["lbfgs", "newton"])
def test_methods(method):
    centres = jnp.asarray(np.random.default_rng(3).normal(size=(19, 4)) * 2)
    options = {"method": method, "gtol": 1e-7}
    result = minimize_batch(bowl, 0 * centres, (centres,), lanes=5, **options)
    assert bool(jnp.all(result.success))
    assert_same(result, one_by_one(bowl, 0 * centres, (centres,), **options), tol=1e-8)


def fit(params, data, weight, power):
    """A line through points, with the residuals as auxiliary output."""
    residual = params["line"][0] + params["line"][1] * data["t"] - data["y"]
    value = jnp.sum(weight * jnp.abs(residual) ** power) + 0.1 * params["ridge"] ** 2
    return value, {"residual": residual, "worst": jnp.max(jnp.abs(residual))}


def test_pytrees_auxiliary_output_and_an_initial_matrix():
    """Problems on other axes than the first, on some leaves and not on others."""
    rng = np.random.default_rng(4)
    x0 = {"line": jnp.asarray(rng.normal(size=(2, 21))), "ridge": jnp.float64(1.0)}
    t = jnp.linspace(-1, 1, 6)
    y = jnp.asarray(rng.normal(size=(6, 21)))
    H0 = jnp.diag(jnp.array([0.1, 0.2, 3.0]))
    in_axes = ({"line": -1, "ridge": None}, {"t": None, "y": 1}, None, None)
    args = ({"t": t, "y": y}, jnp.linspace(0.5, 1, 6), 2.0)
    options = {"has_aux": True, "hess_inv0": H0, "gtol": 1e-9, "method": "ssbroyden"}
    result = minimize_batch(fit, x0, args, in_axes=in_axes, lanes=4, **options)
    assert result.x["line"].shape == (21, 2)
    assert result.x["ridge"].shape == (21,)
    assert result.aux["residual"].shape == (21, 6)
    x = {"line": x0["line"].T, "ridge": jnp.ones(21)}
    tiled = ({"t": jnp.tile(t, (21, 1)), "y": y.T}, jnp.tile(args[1], (21, 1)), jnp.full(21, 2.0))
    assert_same(result, one_by_one(fit, x, tiled, **options), tol=1e-8)
    for k in (0, 20):
        a = np.stack([np.ones(6), np.asarray(t)], axis=1) * np.sqrt(np.asarray(args[1]))[:, None]
        b = np.asarray(y[:, k]) * np.sqrt(np.asarray(args[1]))
        np.testing.assert_allclose(
            result.x["line"][k], np.linalg.lstsq(a, b, rcond=None)[0], atol=1e-7
        )


AXES = [
    0,
    -1,
    (0, 0, 0),
    [1, 0, -2],
    (None, 0, None),
    (0, {"p": 0, "q": (None, 1)}, None),
    (0, {"p": 1, "q": -1}, 0),
    (-1, {"p": None, "q": (-2, None)}, -1),
]


@pytest.mark.parametrize("in_axes", AXES, ids=str)
def test_axes_are_those_of_vmap(in_axes):
    """`jax.vmap` of the identity puts every leaf's axis of problems in front."""
    rng = np.random.default_rng(6)
    square, cube = (jnp.asarray(rng.normal(size=(4,) * d)) for d in (2, 3))
    arguments = (square, {"p": 2 * square, "q": (cube, 3 * cube)}, -square)
    mapped, shared, layout = split(in_axes, arguments)
    assert common_size(mapped) == 4
    expected = jax.vmap(lambda *a: a, in_axes)(*arguments)
    for k in range(4):
        joined = layout.join([leaf[k] for leaf in mapped], shared)
        jax.tree.map(np.testing.assert_array_equal, joined, taken(expected, k))
    assert hash(layout) == hash(split(in_axes, arguments)[2])


TWO = jnp.ones((4, 2))


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, r"nothing runs over problems.*in_axes=\(None, 0\)", {"in_axes": None}),
        (ValueError, r"differ in size, \[4, 5\]", {"args": (jnp.ones((5, 2)),)}),
        (ValueError, "in_axes has 1 entries, but there are 2 arguments", {"in_axes": (0,)}),
        (ValueError, "pytree of these like the arguments", {"in_axes": (0, {"b": 0})}),
        (ValueError, "pytree of these like the arguments", {"in_axes": ({"a": 0}, 0)}),
        (ValueError, "pytree of these like the arguments", {"in_axes": ("0", 0)}),
        (ValueError, "pytree of these like the arguments", {"in_axes": (0.5, 0)}),
        (ValueError, r"x0 has shape \(4, 2\), and so no axis 2", {"in_axes": (2, 0)}),
        (ValueError, r"args\[0\] has shape \(4, 2\), and so no axis -3", {"in_axes": (0, -3)}),
        (
            ValueError,
            r"args\[0\]\['k'\] has shape \(\), and so no axis 0",
            {"args": ({"k": 1.0},)},
        ),
        (
            ValueError,
            "there are no problems",
            {"args": (TWO[:0],), "in_axes": (None, 0), "x0": TWO[0]},
        ),
        (ValueError, "lanes must be a whole number of at least 1, but it is 0", {"lanes": 0}),
        (ValueError, "lanes must be .* but it is True", {"lanes": True}),
        (ValueError, "lanes must be .* but it is '4'", {"lanes": "4"}),
        (ValueError, "lanes must be .* but it is 2.5", {"lanes": 2.5}),
        (TypeError, "x0 has dtype int", {"x0": jnp.ones((4, 2), int)}),
        (ValueError, "simplex", {"method": "simplex"}),
        (TypeError, "args must be a tuple", {"args": TWO}),
        (ValueError, "gtol", {"gtol": -1.0}),
        (ValueError, "hess_inv0", {"hess_inv0": jnp.eye(3)}),
        (
            ValueError,
            "hess_inv0 starts a quasi-Newton",
            {"hess_inv0": jnp.eye(2), "method": "newton"},
        ),
        (ValueError, "must return a scalar", {"fun": lambda x, c: x - c}),
        (TypeError, r"must return \(value, aux\)", {"has_aux": True}),
    ],
)
def test_bad_input(error, words, call):
    call = {"fun": bowl, "x0": TWO, "args": (TWO,)} | call
    with pytest.raises(error, match=words):
        minimize_batch(call.pop("fun"), call.pop("x0"), call.pop("args"), **call)


@pytest.mark.parametrize(
    ("problems", "n", "lanes"),
    [(8, 3, 8), (1024, 3, 64), (9000, 3, 64), (9000, 400, 26)],
)
def test_the_default_width(problems, n, lanes):
    """No more than there are problems, than keep the queue long, than 32 MB of matrices hold."""
    assert_width(problems, n, lanes)


@pytest.mark.parametrize(
    ("problems", "n", "lanes"), [(9000, 3, 9000), (99_000, 3, 65_536), (9000, 400, 209)]
)
def test_the_default_width_of_an_accelerator(problems, n, lanes, monkeypatch):
    """All at once, as long as its memory has no more to do than its launches take."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert_width(problems, n, lanes)


def assert_width(problems, n, lanes):
    solve = functools.partial(minimize_batch, lambda x: x @ x)
    jaxpr = jax.make_jaxpr(lambda x: solve(x).state.lanes)(jnp.zeros((problems, n))).jaxpr
    loops = [e for e in equations(jaxpr) if e.primitive.name == "while"]
    assert (lanes, n, n) in {v.aval.shape for loop in loops for v in loop.outvars}


# What is compiled.


def outside_loops(jaxpr):
    """The equations of a body but for those in loops of its own, such as the refill."""
    for equation in jaxpr.eqns:
        inner = [e for e in jax.tree.leaves(list(equation.params.values()))]
        yield equation
        if equation.primitive.name != "while":
            for jaxpr_in in inner:
                if hasattr(jaxpr_in, "jaxpr") or hasattr(jaxpr_in, "eqns"):
                    yield from outside_loops(getattr(jaxpr_in, "jaxpr", jaxpr_in))


OTHERS = ("newton", "lbfgs", "lsr1", "structured", "lm", "residual")
DENSE = [method for method in jaxqn.METHODS if method not in OTHERS]


@functools.cache
def traced(method, lanes, n=13):
    def fun(x, centre):
        return jnp.sum((x - centre) ** 4)

    x = jnp.zeros((90, n))
    solve = functools.partial(minimize_batch, marked(fun), lanes=lanes, method=method)
    return jax.make_jaxpr(lambda x: solve(x, (x,)))(x).jaxpr


@pytest.mark.parametrize(
    ("method", "lanes"),
    [("osbfgs", 5), ("lbfgs", MANY), ("lsr1", MANY), *((method, MANY) for method in DENSE)],
)
def test_a_loop_for_either_width_with_one_objective_site_each(method, lanes):
    """No loop in the loop evaluates: no lane waits for another's line search."""
    jaxpr = traced(method, lanes)
    widths = 1 + (second_stage_lanes(lanes) > 0)
    assert len(bodies(jaxpr)) == widths
    assert count(jaxpr, "marker") == widths


@pytest.mark.parametrize("method", DENSE)
def test_no_matrix_is_selected_in_a_trip(method):
    """Held lanes are masked by coefficients; only a refill, in a loop of its own, writes anew."""

    def selected(equations):
        return {e.outvars[0].aval.shape for e in equations if e.primitive.name == "select_n"}

    for body, lanes in zip(
        bodies(traced(method, MANY)), (MANY, second_stage_lanes(MANY)), strict=True
    ):
        in_a_trip = selected(outside_loops(body))
        assert (lanes, 13) in in_a_trip, "the vectors should be seen"
        assert (lanes, 13, 13) not in in_a_trip
        assert (lanes, 13, 13) in selected(equations(body)), "the refill should be seen"


def test_new_numbers_compile_nothing_and_no_nan_is_made():
    fun, traces = TraceCounter(bowl), []
    rng = np.random.default_rng(7)
    with jax.debug_nans(True):
        for gtol, maxfun in ((1e-3, 50), (1e-6, None), (jnp.float64(1e-5), 90)):
            centres = jnp.asarray(rng.normal(size=(9, 2)))
            call = {"lanes": 2, "gtol": gtol, "maxfun": maxfun}
            result = minimize_batch(fun, centres * 0, (centres,), **call)
            traces.append(fun.traces)
            assert bool(jnp.all(result.success))
    assert traces[0] == traces[2]


def test_lanes_stay_busy():
    """The cost is the sum of the evaluations, though a few problems take many times the mean."""
    x, data, kind = problems()
    heavy = np.flatnonzero(kind == KINDS["falling"])
    calm = np.flatnonzero((kind != KINDS["falling"]) & (kind != KINDS["plunging"]))
    order = np.resize(calm, 32 * MANY)
    order[5::150] = heavy[: order[5::150].size]
    result = batch(x[order], taken(data, order), lanes=MANY, maxfun=300)
    nfev, (lanes,), (trips,) = map(np.asarray, (result.nfev, *result.state[:2]))
    assert nfev.max() > 8 * nfev.mean()
    assert lanes.tolist() == [MANY, second_stage_lanes(MANY)]
    occupancy = nfev.sum() / (trips @ lanes)
    assert float(result.state.occupancy(result.nfev)) == pytest.approx(occupancy, rel=1e-6)
    assert occupancy >= 0.9


# Inside other transformations.


def test_under_jit_and_vmap_with_nothing_leaked():
    """A batch of batches of batches: (2, 3) queues of 5 problems through 2 lanes each."""
    x, data, _ = problems()
    grouped = jax.tree.map(lambda leaf: leaf[:30].reshape(2, 3, 5, *leaf.shape[1:]), (x, data))

    @jax.jit
    @jax.vmap
    @jax.vmap
    def nested(x, data):
        return batch(x, data, lanes=2)._replace(state=None)

    with jax.checking_leaks():
        result = nested(*grouped)
    result = jax.tree.map(lambda leaf: leaf.reshape(30, *leaf.shape[3:]), result)
    assert_same(result, singles(30), tol=1e-7)


# Many starts of one problem.


def wells(x, tilt):
    """Minima near ±1 in every coordinate, of different depths; no number far to either side."""
    far = jnp.where(x[0] < -10, jnp.nan, jnp.where(x[0] > 10, -jnp.inf, 0))
    return jnp.sum((x**2 - 1) ** 2 + tilt * x) + far


TILT = (jnp.array([0.1, 0.2, 0.3]),)


@functools.cache
def starts():
    x = np.random.default_rng(9).uniform(-2, 2, size=(60, 3))
    x[[7, 33], 0], x[50, 0] = -11, 11
    return jnp.asarray(x)


@functools.cache
def started(target):
    """One compiled program for every target; minus infinity is never reached."""
    found = multi_start(wells, starts(), TILT, gtol=1e-6, lanes=16, target=target)
    return jax.tree.map(np.asarray, found)


def test_ranking():
    """NumPy's, over runs one by one; those that end without a number come last."""
    tilts = jnp.broadcast_to(TILT[0], (60, 3))
    alone = one_by_one(wells, starts(), (tilts,), gtol=1e-6)
    found = started(-np.inf)
    assert_same(found.runs, alone, tol=1e-6)
    values = np.where(np.isfinite(found.runs.fun), found.runs.fun, np.inf)
    np.testing.assert_array_equal(found.ranking, np.argsort(values, kind="stable"))
    assert found.ranking[-3:].tolist() == [7, 33, 50]
    assert found.best.fun == values.min()
    assert len(set(np.round(values[values < np.inf], 6))) == 8, "all wells are found"
    jax.tree.map(np.testing.assert_array_equal, found.best.x, found.runs.x[found.ranking[0]])
    assert found.best.message == jaxqn.MESSAGES[Status.CONVERGED]
    np.testing.assert_allclose(found.best.x, -np.ones(3), atol=0.1)


@pytest.mark.parametrize("which", ["deepest", "any"])
def test_a_target_stops_the_runs(which):
    whole = started(-np.inf)
    target = {"deepest": float(whole.best.fun) + 1e-6, "any": np.inf}[which]
    found = started(target)
    runs = found.runs
    stopped, begun = runs.status == Status.STOPPED, runs.nfev > 0
    assert np.any(runs.success & (runs.fun <= target))
    assert found.best.fun <= target
    assert found.best.success
    assert not stopped[found.ranking[: (~stopped).sum()]].any(), "those cut short come last"
    assert stopped.sum() > 15
    assert runs.nfev.sum() < 0.7 * whole.runs.nfev.sum()
    # Those that ended before are as ever; those cut short have the lowest point they saw.
    assert_same(
        taken(runs._replace(state=None), ~stopped),
        taken(whole.runs._replace(state=None), ~stopped),
        tol=1e-6,
    )
    cut = stopped & begun
    assert cut.any()
    values = jax.vmap(wells, (0, None))(runs.x, *TILT)
    np.testing.assert_allclose(runs.fun[cut], values[cut], rtol=1e-12)
    assert np.all(runs.nfev[cut] <= whole.runs.nfev[cut])
    # Those never begun are untouched.
    np.testing.assert_array_equal(runs.x[~begun], starts()[~begun])
    assert np.all(runs.fun[~begun] == np.inf)
    # Nearly every evaluation made is in the results.
    (lanes,), (trips,) = runs.state[:2]
    assert 0.8 * (lanes @ trips) <= runs.nfev.sum() <= lanes @ trips


# Several devices.


COLLECTIVE = re.compile(r" (?:all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(")


@pytest.mark.compiled
@pytest.mark.parametrize(("size", "lanes", "width"), [(45, 2, 2), (48, 20, 6)])
def test_devices_share_the_problems(size, lanes, width):
    """Eight devices, each by itself, with no more lanes than it has problems.

    Only where they do not divide the problems does anything travel, before the loop and after it.
    """
    x, data, _ = taken(problems(), slice(size))
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    shared = jax.jit(functools.partial(batch, lanes=lanes, mesh=mesh))
    compiled = shared.lower(x, data).compile()
    loops, entry = compiled.as_text().split("\nENTRY ")
    assert " while(" in entry
    assert not COLLECTIVE.search(loops)
    assert bool(COLLECTIVE.search(entry)) == (size % 8 != 0)
    result = compiled(x, data)
    alone = jax.jit(lambda x, data: minimize(objective, x, (data,), **BUDGETS))
    each = [alone(taken(x, k), taken(data, k))._replace(state=None) for k in range(size)]
    assert_same(result, jax.tree.map(lambda *leaves: np.stack(leaves), *each), tol=1e-7)
    assert result.state.lanes.tolist() == [[width, 0]] * 8
    assert len(set(result.state.trips[:, 0].tolist())) > 1
    assert 0.2 < float(result.state.occupancy(result.nfev)) <= 1


def test_a_mesh_as_jax_makes_it():
    """Its axes are of another type; traced only."""
    mesh = jax.make_mesh((8,), ("problems",))
    x, data, _ = taken(problems(), slice(45))
    result = jax.eval_shape(functools.partial(batch, lanes=2, mesh=mesh), x, data)
    assert result.x.shape == (45, 3)
    assert result.state.trips.shape == (8, 2)
