"""Dense approximations against NumPy's recursion: fused or not, deferred or not, batched or not."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import jaxqn
from jaxqn.drivers import minimize
from jaxqn.formulas import updates
from jaxqn.quasi_newton import dense, inverse_hessian
from jaxqn.quasi_newton.methods import METHODS

N, PUSHES = 8, 20
RULES = {
    "bfgs": (updates.bfgs_rule, oracles.bfgs),
    "dfp": (updates.dfp_rule, oracles.dfp),
    "sr1": (updates.sr1_rule, oracles.sr1),
    "ssbfgs": (updates.ssbfgs_rule, oracles.ssbfgs),
    "osbfgs": (updates.osbfgs_rule, oracles.osbfgs),
    "ssbroyden": (updates.ssbroyden_rule, oracles.ssbroyden),
}
# What each does with a step whose sᵀB s it cannot know.
UNSCALED = RULES | dict.fromkeys(("ssbfgs", "osbfgs", "ssbroyden"), RULES["bfgs"])

# Every rule with a panel of 3 pairs; some at once (a program compiles for every one).
CASES = [("bfgs", 0), ("sr1", 0), ("ssbroyden", 0), *((name, 3) for name in RULES)]
each_case = pytest.mark.parametrize(("name", "panel"), CASES)
each_scaled_case = pytest.mark.parametrize(
    ("name", "panel"), [case for case in CASES if case[0] != "sr1"]
)
each_panel = pytest.mark.parametrize("panel", [0, 3])


def first_scale(name):
    """SR1 would refuse its first pair from the scale that fits it: v = s - gamma y ⟂ y."""
    return 0.5 if name == "sr1" else 1.0


@functools.cache
def method(name, panel, scale_init=None):
    scale_init = first_scale(name) if scale_init is None else scale_init
    return dense(RULES[name][0], panel=panel, scale_init=scale_init)


matrices_of = jax.jit(jax.vmap(inverse_hessian))

# Two programs for each method. They take 2 × 20 pairs: every second one is there to be refused.


@functools.cache
def by_update(name, panel, scale_init=None):
    """``(S, Y, v) -> states, products H v`` after every push."""
    qn = method(name, panel, scale_init)

    def push(v, state, pair):
        state = qn.update(state, *pair)
        return state, (state, qn.apply(state, v))

    def program(S, Y, v, H0=None):
        return jax.lax.scan(functools.partial(push, v), qn.init(v, H0), (S, Y))[1]

    return jax.jit(program)


@functools.cache
def by_advance(name, panel):
    """``(S, Y, g) -> states, products H g`` after every push, by the fused path."""
    qn = method(name, panel)

    def push(carry, pair):
        state, g, Hg = carry
        s, y = pair
        state, Hg = qn.advance(state, s, y, g + y, Hg, jnp.any(s != 0))
        return (state, g + y, Hg), (state, Hg)

    def program(S, Y, g):
        state = qn.init(g)
        return jax.lax.scan(push, (state, g, qn.apply(state, g)), (S, Y))[1]

    return jax.jit(program)


def random_pairs(seed):
    """20 pairs through random Hessians."""
    rng = np.random.default_rng(seed)
    pairs = [oracles.random_pair(rng, N) for _ in range(PUSHES)]
    return tuple(np.array(column) for column in zip(*pairs, strict=True))


def interleaved(a, b=None):
    """a[0], b[0], a[1], b[1], ...; b is zero unless given."""
    return np.stack([a, np.zeros_like(a) if b is None else b], axis=1).reshape(-1, N)


def recursion(oracle, S, Y, H=None, scale_init=1.0):
    """NumPy's H after every pair, by the textbook's formula."""
    out = []
    for s, y in zip(S, Y, strict=True):
        if H is None:
            H = (scale_init * (s @ y) / (y @ y) if scale_init else 1) * np.eye(N)
        H = oracle(H, s, y)
        out.append(H)
    return np.array(out)


def walk(oracle, seed):
    """A quasi-Newton walk in NumPy, s = -alpha H g: pairs, first gradient, H after every pair.

    The objective is a convex quartic, the step lengths are random, and H is ``oracle``'s.
    """
    rng = np.random.default_rng(seed)
    A, x, H = oracles.random_spd(rng, N, 30.0), rng.normal(size=N), None
    S, Y, matrices, g0 = [], [], [], A @ x + x**3
    for _ in range(PUSHES):
        g = A @ x + x**3
        s = -0.1 * g if H is None else -rng.uniform(0.3, 1.5) * H @ g
        x = x + s
        y = A @ x + x**3 - g
        H = oracle((s @ y) / (y @ y) * np.eye(N) if H is None else H, s, y)
        S, Y, matrices = [*S, s], [*Y, y], [*matrices, H]
    return np.array(S), np.array(Y), g0, np.array(matrices)


def assert_close(actual, expected, tol):
    """Error at most ``tol`` relative to the largest entry of each matrix or vector of a stack."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    axes = tuple(range(1, expected.ndim))
    errors = np.max(np.abs(actual - expected), axis=axes)
    assert np.all(errors <= tol * np.max(np.abs(expected), axis=axes))


def assert_same_leaves(actual, expected):
    named = jax.tree_util.tree_leaves_with_path(expected)
    for leaf, (path, other) in zip(jax.tree.leaves(actual), named, strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))


def tally(states):
    """Pairs absorbed and pairs refused, of a state or a stack of them."""
    return np.stack([states.absorbed, states.refused])


def take(states, which):
    """Some of a stack of states."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[which], states)


@each_case
def test_every_push_follows_the_recursion(name, panel):
    """At every fill level of the panel, through two folds and more, zero pairs in between."""
    S, Y = random_pairs(0)
    v = np.linspace(-1, 1, N)
    states, products = by_update(name, panel)(interleaved(S), interleaved(Y), v)
    expected = recursion(UNSCALED[name][1], S, Y, scale_init=first_scale(name)).repeat(2, axis=0)
    assert_close(matrices_of(states), expected, 1e-9)
    assert_close(products, expected @ v, 1e-8)
    absorbed, refused = tally(states)
    np.testing.assert_array_equal(absorbed, np.arange(1, PUSHES + 1).repeat(2))
    assert not np.any(refused)


@each_scaled_case
def test_the_fused_path_follows_the_recursion(name, panel):
    """Along s = -alpha H g, where the self-scaled rules know sᵀB s without a linear solve."""
    S, Y, g0, expected = walk(RULES[name][1], seed=1)
    gradients = g0 + np.cumsum(Y, axis=0)
    states, products = by_advance(name, panel)(interleaved(S), interleaved(Y), g0)
    products_expected = np.einsum("kij,kj->ki", expected, gradients)
    assert_close(matrices_of(states), expected.repeat(2, axis=0), 1e-6)
    assert_close(products, products_expected.repeat(2, axis=0), 1e-6)


@each_case
def test_update_then_apply_is_advance(name, panel):
    """For steps in any direction: none is along -H g, so nothing is self-scaled."""
    S, Y = (interleaved(a) for a in random_pairs(2))
    g0 = np.ones(N)
    fused, products = by_advance(name, panel)(S, Y, g0)
    separate, _ = by_update(name, panel)(S, Y, g0)
    matrices, gradients = np.asarray(matrices_of(separate)), g0 + np.cumsum(Y, axis=0)
    assert_close(matrices_of(fused), matrices, 1e-8)
    assert_close(products, np.einsum("kij,kj->ki", matrices, gradients), 1e-7)


@pytest.mark.parametrize("name", ["ssbfgs", "osbfgs", "ssbroyden"])
def test_a_bent_step_is_not_self_scaled(name):
    """Clipping s breaks B s = -alpha g; the rule then falls back to its unscaled member, BFGS."""
    S, Y, g0, _ = walk(RULES[name][1], seed=3)
    for k in range(1, PUSHES):
        S[k] = np.clip(S[k], -np.abs(S[k]).max() / 3, np.abs(S[k]).max() / 3)
        Y[k] = oracles.random_spd(np.random.default_rng(k), N) @ S[k]
    first = recursion(RULES[name][1], S[:1], Y[:1])
    expected = np.concatenate([first, recursion(oracles.bfgs, S[1:], Y[1:], H=first[0])])
    states, _ = by_advance(name, 0)(interleaved(S), interleaved(Y), g0)
    assert_close(matrices_of(states), expected.repeat(2, axis=0), 1e-8)


@each_panel
def test_float32_follows_the_recursion(panel):
    S, Y = random_pairs(4)
    single = [jnp.asarray(a, jnp.float32) for a in (interleaved(S), interleaved(Y), np.ones(N))]
    states, products = by_update("bfgs", panel)(*single)
    assert_close(matrices_of(states)[::2], recursion(oracles.bfgs, S, Y), 1e-3)
    assert products.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(states)} == {"float32", "int32"}


def test_without_first_scaling():
    S, Y = random_pairs(5)
    states, _ = by_update("bfgs", 3, scale_init=0.0)(interleaved(S), interleaved(Y), np.ones(N))
    assert_close(matrices_of(states)[::2], recursion(oracles.bfgs, S, Y, scale_init=0.0), 1e-9)


def test_a_given_matrix_is_used_as_it_is():
    """H0 is neither scaled by the first pair nor shared with the caller's array."""
    H0 = jnp.asarray(oracles.random_spd(np.random.default_rng(6), N))
    state = method("bfgs", 3).init(jnp.zeros(N), H0)
    np.testing.assert_array_equal(inverse_hessian(state), H0)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert H0.unsafe_buffer_pointer() not in pointers
    S, Y = random_pairs(6)
    states, _ = by_update("bfgs", 3)(interleaved(S), interleaved(Y), np.ones(N), H0)
    assert_close(matrices_of(states)[::2], recursion(oracles.bfgs, S, Y, H=np.asarray(H0)), 1e-9)


# Laws of the state


@each_case
def test_zero_pair_changes_no_leaf(name, panel):
    """Bit for bit, at every fill level of the panel, fused and not."""
    S, Y = (interleaved(a) for a in random_pairs(7))
    for program in (by_update, by_advance):
        states, products = program(name, panel)(S, Y, np.linspace(1, 2, N))
        assert_same_leaves(take(states, np.s_[1::2]), take(states, np.s_[::2]))
        assert_close(products[1::2], products[::2], 1e-12)


@each_case
def test_a_refused_pair_only_counts_as_skipped(name, panel):
    """H, bit for bit, is what it was: NaN, Inf, and (but for SR1) negative curvature."""
    S, Y = random_pairs(8)
    bad_y = [np.full(N, np.nan), np.where(np.arange(N) == 2, np.inf, 1.0)]
    bad_y += [] if name == "sr1" else [-S[0]]
    bad_s = np.broadcast_to(S[0], S.shape)
    bad_y = np.resize(bad_y, S.shape)
    states, _ = by_update(name, panel)(interleaved(S, bad_s), interleaved(Y, bad_y), np.ones(N))
    good, refused = take(states, np.s_[::2]), take(states, np.s_[1::2])
    np.testing.assert_array_equal(matrices_of(refused), matrices_of(good))
    np.testing.assert_array_equal(tally(refused) - tally(good), [[0] * PUSHES, [1] * PUSHES])
    np.testing.assert_array_equal(tally(refused)[1], np.arange(1, PUSHES + 1))


@pytest.mark.parametrize("name", [name for name, qn in METHODS.items() if qn.model is None])
def test_named_methods_satisfy_the_secant_equation(name):
    """After every one of three pairs: a method learns from its first step, scaled or not."""
    qn, state = METHODS[name], METHODS[name].init(jnp.zeros(N))
    push = jax.jit(
        lambda state, s, y: (qn.update(state, s, y), qn.apply(qn.update(state, s, y), y))
    )
    for s, y in list(zip(*random_pairs(14), strict=True))[:3]:
        state, Hy = push(state, s, y)
        np.testing.assert_allclose(Hy, s, rtol=1e-10)


@functools.cache
def verbs(name, panel):
    """The jitted verbs of one approximation."""
    qn = method(name, panel)
    compiled = {verb: jax.jit(getattr(qn, verb)) for verb in ("update", "apply", "reset")}
    return qn._replace(**compiled)


@each_panel
def test_reset_gives_the_identity_and_a_new_start(panel):
    qn, yes, no = verbs("bfgs", panel), jnp.ones((), bool), jnp.zeros((), bool)
    S, Y = random_pairs(9)
    expected = recursion(oracles.bfgs, S[5:6], Y[5:6])[0]
    for given in (None, oracles.random_spd(np.random.default_rng(9), N)):
        state = qn.init(jnp.zeros(N), given)
        for s, y in zip(S[:5], Y[:5], strict=True):
            assert_same_leaves(qn.reset(state, no), state)
            fresh = qn.reset(state, yes)
            np.testing.assert_array_equal(inverse_hessian(fresh), np.eye(N))
            np.testing.assert_array_equal(qn.apply(fresh, s), s)
            after = inverse_hessian(qn.update(fresh, S[5], Y[5]))
            np.testing.assert_allclose(after, expected, rtol=1e-9, atol=1e-11)
            state = qn.update(state, s, y)


@pytest.mark.parametrize("name", ["bfgs", "ssbroyden", "sr1"])
@pytest.mark.parametrize("of_s", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("of_y", [1e-25, 1.0, 1e25])
def test_inner_products_out_of_range_leave_h_finite(name, of_s, of_y):
    """In float32 they underflow or overflow: the pair is refused, or used as it should be."""
    s, y = [jnp.asarray(a, jnp.float32) for a in random_pairs(16)]
    zeros = jnp.zeros((2 * PUSHES - 2, N), jnp.float32)
    pairs = [jnp.concatenate([a[:2] * c, zeros]) for a, c in ((s, of_s), (y, of_y))]
    states, _ = by_update(name, 0)(*pairs, jnp.ones(N, jnp.float32))
    absorbed, _ = tally(states)
    Hy = inverse_hessian(take(states, 1)) @ pairs[1][1]
    assert np.all(np.isfinite(matrices_of(states)))
    if absorbed[1] > absorbed[0]:
        np.testing.assert_allclose(Hy / of_s, s[1], rtol=1e-3)


@each_panel
def test_the_matrix_is_what_is_applied(panel):
    qn = method("bfgs", panel)
    S, Y = (interleaved(a) for a in random_pairs(10))
    states, _ = by_update("bfgs", panel)(S, Y, np.ones(N))
    columns = jax.jit(jax.vmap(jax.vmap(qn.apply, (None, 0), 1), (0, None)))(states, np.eye(N))
    assert_close(columns, np.asarray(matrices_of(states)), 1e-12)


@each_panel
def test_every_leaf_owns_its_buffer(panel):
    """So that a donated state can be updated in place, again and again."""
    qn = method("bfgs", panel)
    x = jnp.zeros(N)
    state = qn.init(x)
    leaves = [x, *jax.tree.leaves(state)]
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    donating = jax.jit(qn.update, donate_argnums=0)
    S, Y = random_pairs(11)
    for s, y in zip(S, Y, strict=True):
        matrix = state.matrix
        state = donating(state, s, y)
        assert matrix.is_deleted()
    assert_close(inverse_hessian(state)[None], recursion(oracles.bfgs, S, Y)[-1:], 1e-9)


def empty_leaves(state):
    named = jax.tree_util.tree_leaves_with_path(state)
    return [jax.tree_util.keystr(path) for path, leaf in named if leaf.size == 0]


@pytest.mark.parametrize("name", METHODS)
def test_no_leaf_of_a_run_is_empty(name):
    """Checkpoint libraries refuse empty arrays."""
    squares = jaxqn.sum_of_squares(lambda x: x)
    fun = squares if METHODS[name].model else lambda x: jnp.sum(x["a"] ** 2) + x["b"] ** 2
    run = functools.partial(minimize, fun, method=name)
    state = jax.eval_shape(lambda x: run(x).state, {"a": jnp.ones((2, 3)), "b": jnp.ones(())})
    assert empty_leaves(state) == []


TRANSFORMATIONS = {
    name: make
    for name in jaxqn.__all__
    if callable(make := getattr(jaxqn, name))
    and typing.get_type_hints(make).get("return") is optax.GradientTransformationExtraArgs
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_no_leaf_of_a_transformation_is_empty(name):
    needed = (dense(),) if name == "scale_by_quasi_newton" else ()
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(())}
    assert empty_leaves(jax.eval_shape(TRANSFORMATIONS[name](*needed).init, params)) == []


def test_every_transformation_is_looked_at():
    assert {"bfgs", "lsr1", "newton"} < TRANSFORMATIONS.keys()
    assert {name for name in jaxqn.__all__ if name.startswith("scale_by")} < TRANSFORMATIONS.keys()


# Batches and sizes


@each_panel
def test_a_batch_is_its_lanes(panel):
    """Lanes refuse different pairs, so their panels fill and fold at different times."""
    lanes = []
    for seed in range(3):
        S, Y = random_pairs(seed)
        Y[seed :: seed + 2] *= -1
        lanes.append((interleaved(S), interleaved(Y), np.ones(N)))
    batch = [np.stack(column) for column in zip(*lanes, strict=True)]
    batched, _ = jax.jit(jax.vmap(by_update("bfgs", panel)))(*batch)
    for number, lane in enumerate(lanes):
        alone, together = by_update("bfgs", panel)(*lane)[0], take(batched, number)
        assert_close(matrices_of(together), np.asarray(matrices_of(alone)), 1e-10)
        np.testing.assert_array_equal(tally(together), tally(alone))


def test_the_matrix_of_a_batch_has_its_axis():
    """As `result.hess_inv` has under vmap."""
    qn = method("bfgs", 3)
    S, Y = random_pairs(12)
    batch = jax.jit(jax.vmap(lambda s, y: qn.update(qn.init(s), s, y)))(S[:3], Y[:3])
    expected = [recursion(oracles.bfgs, S[k : k + 1], Y[k : k + 1])[0] for k in range(3)]
    np.testing.assert_allclose(inverse_hessian(batch), expected, rtol=1e-10, atol=1e-12)


def test_large_matrices_are_deferred_and_the_same():
    """By default n = 1000 keeps its newest pairs beside the matrix; 70 pushes fold it twice."""
    n, rng = 1000, np.random.default_rng(13)
    S = rng.normal(size=(70, n))
    Y = S * np.linspace(1, 10, n)
    default, at_once = dense(updates.bfgs_rule), dense(updates.bfgs_rule, panel=0)

    def last_product(qn):
        def program(S, Y, v):
            state, _ = jax.lax.scan(lambda st, p: (qn.update(st, *p), None), qn.init(v), (S, Y))
            return qn.apply(state, v)

        return np.asarray(jax.jit(program)(S, Y, np.ones(n)))

    assert default.init(jnp.zeros(n)).panel.shape == (n, 64)
    np.testing.assert_allclose(last_product(default), last_product(at_once), rtol=1e-9, atol=1e-11)


def test_the_same_options_are_the_same_method():
    """A method is a key of compiled programs: asking for it twice must not compile twice."""
    assert dense(updates.sr1_rule, panel=2) is dense(updates.sr1_rule, panel=2)
    assert dense(updates.sr1_rule) is not dense(updates.bfgs_rule)
