"""Limited memory against NumPy's dense recursion over the newest pairs, at every push."""

import functools
import pickle
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxqn.formulas.curvature import powell_damping
from jaxqn.formulas.rules import bfgs_rule
from jaxqn.linalg import stacks
from jaxqn.quasi_newton.damping import damped
from jaxqn.quasi_newton.dense import dense
from jaxqn.quasi_newton.lbfgs import lbfgs_memory
from jaxqn.quasi_newton.lsr1 import lsr1_memory
from jaxqn.quasi_newton.stored_pairs import inverse_hessian_product, stored_pairs

N, M, PUSHES = 7, 4, 18
METHODS = {"bfgs": lbfgs_memory, "sr1": lsr1_memory}
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}
DIAGONAL = np.geomspace(0.2, 3.0, N)
LANES = (2, 20)
each_name = pytest.mark.parametrize("name", METHODS)


# The oracle: pairs in a Python list, H from scratch after every push


def passes(H, s, y, rtol=1e-7):
    """SR1's test."""
    v = s - H @ y
    return abs(v @ y) > rtol * np.linalg.norm(v) * np.linalg.norm(y)


def from_scratch(name, pairs, H):
    """The recursion over pairs from H₀; SR1 steps over those that fail its test."""
    for s, y in pairs:
        if name == "bfgs":
            H = oracles.bfgs(H, s, y)
        elif passes(H, s, y):
            H = oracles.sr1(H, s, y)
    return H


def recursion(name, S, Y, *, m=M, H0=None):
    """H after every push, and how many pairs have been absorbed and refused."""
    pairs, gamma, tally, matrices, tallies = [], 1.0, [0, 0], [], []
    for s, y in zip(S, Y, strict=True):
        usable = np.all(np.isfinite([s, y])) and np.any(s) and np.any(y)
        curved = usable and s @ y > 1e-12 * np.linalg.norm(s) * np.linalg.norm(y)
        scale = gamma
        if curved:
            scale = (1.0 if name == "bfgs" else 0.5) * (s @ y) / (y @ y)
        start = scale * np.eye(len(s)) if H0 is None else H0
        accepted = curved
        if name == "sr1" and usable:
            accepted = passes(from_scratch(name, [*pairs, None][-m:-1], start), s, y)
        if accepted:
            pairs, gamma = [*pairs, (s, y)][-m:], scale
        tally = [tally[0] + bool(accepted), tally[1] + bool(not accepted and np.any(s != 0))]
        start = gamma * np.eye(len(s)) if H0 is None else H0
        matrices, tallies = [*matrices, from_scratch(name, pairs, start)], [*tallies, tally]
    return np.array(matrices), np.array(tallies)


def all_kinds(seed, n=N):
    """Pairs through random Hessians; every third is reversed, one is zero, two are not finite."""
    rng = np.random.default_rng(seed)
    pairs = [oracles.random_pair(rng, n) for _ in range(PUSHES)]
    S, Y = (np.array(column) for column in zip(*pairs, strict=True))
    Y[2::3] *= -1
    S[4], Y[4] = 0, 0
    Y[7, 2], S[10, 0] = np.nan, np.inf
    return S, Y


def gradients(Y):
    """A first gradient, and that after every pair; one that is not finite changes nothing."""
    g = np.linspace(-1, 2, Y.shape[1])
    changes = np.where(np.all(np.isfinite(Y), axis=1, keepdims=True), Y, 0)
    return g, g + np.cumsum(changes, axis=0)


# Programs, compiled once for all tests


@functools.cache
def by_update(qn):
    """``(S, Y, H0) -> states, H as matrices`` after every push."""

    def program(S, Y, H0=None):
        def step(state, pair):
            state = qn.update(state, *pair)
            return state, (
                state,
                jax.vmap(functools.partial(qn.apply, state))(jnp.eye(N, dtype=S.dtype)),
            )

        return jax.lax.scan(step, qn.init(S[0], H0), (S, Y))[1]

    return jax.jit(program)


@functools.cache
def by_advance(qn):
    """``(S, Y, g, G, H0) -> states, products H g`` after every push, by the fused path."""

    def program(S, Y, g, G, H0=None):
        def step(carry, inputs):
            state, Hg = carry
            s, y, g = inputs
            state, Hg = qn.advance(state, s, y, g, Hg, jnp.any(s != 0))
            return (state, Hg), (state, Hg)

        return jax.lax.scan(step, (qn.init(g, H0), g), (S, Y, G))[1]

    return jax.jit(program)


def cast(dtype, *arrays):
    return [jnp.asarray(array, dtype) for array in arrays]


def assert_close(actual, expected, tol):
    """Error at most ``tol`` relative to the largest entry of each matrix or vector of a stack."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    axes = tuple(range(1, expected.ndim))
    errors = np.max(np.abs(actual - expected), axis=axes)
    assert np.all(errors <= tol * np.max(np.abs(expected), axis=axes)), errors


def assert_same_leaves(actual, expected, apart_from=()):
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        if path[0].name not in apart_from:
            np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))
            assert leaf.dtype == other.dtype


def tally(states):
    """Pairs absorbed and pairs refused."""
    return np.stack([states.absorbed, states.refused], axis=-1)


def take(tree, which):
    return jax.tree.map(lambda leaf: leaf[which], tree)


# Products


def follows_the_recursion(name, m, dtype, seeds):
    for seed in range(seeds):
        S, Y = all_kinds(seed)
        states, matrices = by_update(METHODS[name](m))(*cast(dtype, S, Y))
        expected, tallies = recursion(name, S, Y, m=m)
        assert_close(matrices, expected, TOLERANCE[matrices.dtype.name])
        np.testing.assert_array_equal(tally(states), tallies)
        assert tallies[-1][0] > 2 * M
        assert tallies[-1][1] > 1
        assert set(np.asarray(states.slot).tolist()) == set(range(m))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(states)} == {
            jnp.dtype(dtype).name,
            "int32",
        }


@each_name
def test_every_push_follows_the_recursion(name, dtype):
    """Partly filled, full and wrapped, at every offset of the ring, with refused pairs between."""
    follows_the_recursion(name, M, dtype, seeds=3)


def test_a_memory_of_one_pair():
    follows_the_recursion("bfgs", 1, np.float64, seeds=1)


@each_name
def test_the_fused_path_follows_the_recursion(name, dtype):
    for seed in range(3):
        S, Y = all_kinds(seed)
        g, G = gradients(Y)
        expected, tallies = recursion(name, S, Y)
        states, products = by_advance(METHODS[name](M))(*cast(dtype, S, Y, g, G))
        np.testing.assert_array_equal(tally(states), tallies)
        expected = np.einsum("kij,kj->ki", expected, G)
        assert_close(products, expected, TOLERANCE[np.dtype(dtype).name])


@each_name
def test_the_fused_path_does_not_need_consecutive_gradients(name):
    """y may be of another batch than g: the inner products with y are then formed anew."""
    S, Y = all_kinds(3)
    G = np.random.default_rng(3).normal(size=Y.shape)
    expected = np.einsum("kij,kj->ki", recursion(name, S, Y)[0], G)
    expected[4] = expected[3]  # nothing has moved: the product is the one known
    _, products = by_advance(METHODS[name](M))(S, Y, np.ones(N), G)
    assert_close(products, expected, 1e-10)


@each_name
@pytest.mark.parametrize("extra", [False, True])
def test_update_and_advance_may_alternate(name, extra):
    """With gradients that every y has changed, or with pairs beside those of the walk."""
    qn, (S, Y) = verbs(METHODS[name](M)), all_kinds(4)
    g, _ = gradients(Y)
    state, Hg = qn.init(g), g
    expected, _ = recursion(name, S, Y)
    for k, (s, y) in enumerate(zip(S, Y, strict=True)):
        if k % 2 == 0 or not extra:
            g = g + np.where(np.all(np.isfinite(y)), y, 0)
        if k % 2:
            state = qn.update(state, s, y)
        else:
            state, Hg = qn.advance(state, s, y, g, Hg, bool(np.any(s)))
            if np.any(s):
                assert_close(Hg[None], (expected[k] @ g)[None], 1e-10)
    assert_close(qn.apply(state, g)[None], (expected[-1] @ g)[None], 1e-10)


@each_name
def test_a_diagonal_start(name):
    """It is neither scaled nor shared with the caller's array, and a reset returns to it."""
    S, Y = all_kinds(5)
    g, G = gradients(Y)
    qn, H0 = METHODS[name](M), jnp.asarray(DIAGONAL)
    expected, tallies = recursion(name, S, Y, H0=np.diag(DIAGONAL))
    states, products = by_advance(qn)(S, Y, g, G, H0)
    np.testing.assert_array_equal(tally(states), tallies)
    assert_close(products, np.einsum("kij,kj->ki", expected, G), 1e-10)
    fresh = verbs(qn).reset(take(states, -1), True)
    np.testing.assert_allclose(verbs(qn).apply(fresh, g), DIAGONAL * g, rtol=1e-15)
    assert qn.init(g, H0).start.unsafe_buffer_pointer() != H0.unsafe_buffer_pointer()


def test_another_start_for_one_product():
    """As Adam's second moment gives: a diagonal, or any linear function, new at every call."""
    S, Y = all_kinds(6)
    g, G = gradients(Y)
    qn, rng = lbfgs_memory(M), np.random.default_rng(6)
    diagonals = rng.uniform(0.1, 2.0, size=Y.shape)
    matrices = np.array([oracles.random_spd(rng, N) for _ in S])

    @jax.jit
    def program(S, Y, g, G, diagonals, matrices):
        def step(carry, inputs):
            state, Hg = carry
            s, y, g, diagonal, matrix = inputs
            state, Hg = qn.advance(state, s, y, g, Hg, jnp.any(s != 0), H0=diagonal)
            applied = qn.apply(state, g, H0=lambda v: jnp.dot(matrix, v))
            return (state, Hg), (state, Hg, applied, qn.apply(state, g))

        return jax.lax.scan(step, (qn.init(g), g), (S, Y, G, diagonals, matrices))[1]

    states, fused, applied, plain = program(S, Y, g, G, diagonals, matrices)
    default, tallies = recursion("bfgs", S, Y)
    np.testing.assert_array_equal(tally(states), tallies)
    assert_close(plain, np.einsum("kij,kj->ki", default, G), 1e-10)
    for k in range(PUSHES):
        stored_S, stored_Y, valid = (np.asarray(a) for a in stored_pairs(take(states, k)))
        pairs = list(zip(stored_S[valid], stored_Y[valid], strict=True))
        assert_close(applied[k][None], [from_scratch("bfgs", pairs, matrices[k]) @ G[k]], 1e-10)
        if k != 4:  # where nothing has moved, the product is the one known
            H = from_scratch("bfgs", pairs, np.diag(diagonals[k]))
            assert_close(fused[k][None], [H @ G[k]], 1e-10)
    np.testing.assert_array_equal(fused[4], fused[3])


def test_lsr1_leaves_out_a_stored_pair_that_fails_later():
    """Pair 2 passes beside pair 1; alone, its v is orthogonal to y."""
    a, b, c, d = np.eye(N)[:4]
    H0 = jnp.ones(N)
    s1, y1 = 3 * a + c, a + c  # v = 2 a
    s2, y2 = 2 * a, a + b  # v = a − b from H₀ = I, orthogonal to y; −a − b beside pair 1
    s3, y3 = 2 * d, d
    S, Y = np.array([s1, s2, s3]), np.array([y1, y2, y3])
    states, matrices = by_update(lsr1_memory(2))(S, Y, H0)
    np.testing.assert_array_equal(tally(states), [[1, 0], [2, 0], [3, 0]])
    expected, _ = recursion("sr1", S, Y, m=2, H0=np.eye(N))
    assert not passes(np.eye(N), s2, y2)
    assert_close(matrices, expected, 1e-12)


def test_lsr1_refuses_what_h_knows_already(dtype):
    """s = H y to within rounding: v is nothing but rounding, whatever its angle to y."""
    qn = verbs(lsr1_memory(M))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        A, state = oracles.random_spd(rng, N), qn.init(jnp.zeros(N, dtype), jnp.ones(N, dtype))
        for _ in range(M - 1):
            s = rng.normal(size=N)
            state = qn.update(state, *cast(dtype, s, A @ s))
        known = tally(state).tolist()
        y = jnp.asarray(rng.normal(size=N), dtype)
        assert tally(qn.update(state, qn.apply(state, y), y)).tolist() == [known[0], known[1] + 1]


def test_exact_line_searches_on_a_quadratic_make_conjugate_gradients():
    """N&W section 7.2: then any m gives the iterates of CG; here against CG written out."""
    n, rng = 12, np.random.default_rng(8)
    A, b, x = oracles.random_spd(rng, n, 30.0), rng.normal(size=n), np.zeros(n)
    cg_x, r = x.copy(), b.copy()
    p = r.copy()
    qn = verbs(lbfgs_memory(2))
    g = A @ x - b
    state, Hg = qn.init(jnp.asarray(x)), g
    for _ in range(n):
        alpha = (r @ r) / (p @ A @ p)
        cg_x, new_r = cg_x + alpha * p, r - alpha * A @ p
        p, r = new_r + (new_r @ new_r) / (r @ r) * p, new_r
        d = -np.asarray(Hg)
        s = -(g @ d) / (d @ A @ d) * d
        state, Hg = qn.advance(state, s, A @ s, g + A @ s, Hg, True)
        x, g = x + s, g + A @ s
        np.testing.assert_allclose(x, cg_x, rtol=1e-6, atol=1e-8)
    assert np.linalg.norm(A @ x - b) < 1e-9


# Laws of the state


@functools.cache
def verbs(qn):
    """The jitted verbs."""
    names = ("update", "apply", "advance", "reset")
    return qn._replace(**{name: jax.jit(getattr(qn, name)) for name in names})


@each_name
def test_a_useless_pair_changes_no_leaf(name):
    """Bit for bit, whatever the offset: the zero pair none, a refused one the counter alone."""
    S, Y = all_kinds(9)
    g, G = gradients(Y)
    newest_gradient = {"sg", "gg"}
    updated, _ = by_update(METHODS[name](M))(S, Y)
    advanced, _ = by_advance(METHODS[name](M))(S, Y, g, G)
    useless = [k for k in range(1, PUSHES) if tally(updated)[k, 0] == tally(updated)[k - 1, 0]]
    assert set(useless) >= {4, 7, 10}
    for k in useless:
        apart = {"counts"} if k != 4 else set()
        assert_same_leaves(take(updated, k), take(updated, k - 1), apart)
        apart = apart | newest_gradient if k != 4 else set()
        assert_same_leaves(take(advanced, k), take(advanced, k - 1), apart)
    refused = tally(updated)[:, 1]
    assert refused[4] == refused[3]
    assert refused[7] == refused[6] + 1


@each_name
def test_reset_forgets_the_pairs(name):
    """At whatever offset the ring is: afterwards only newer pairs count."""
    qn, (S, Y) = verbs(METHODS[name](M)), all_kinds(10)
    v = np.linspace(1, 2, N)
    state = qn.init(v)
    for k in range(7):
        assert_same_leaves(qn.reset(state, False), state)
        fresh = qn.reset(state, True)
        np.testing.assert_array_equal(qn.apply(fresh, v), v)
        assert tally(fresh).tolist() == [0, int(tally(state)[1])]
        after = S[11:14], Y[11:14]
        for s, y in zip(*after, strict=True):
            fresh = qn.update(fresh, s, y)
        expected = recursion(name, *after)[0][-1] @ v
        np.testing.assert_allclose(qn.apply(fresh, v), expected, rtol=1e-9)
        state = qn.update(state, S[k], Y[k])


def test_every_leaf_owns_its_buffer():
    """So that a donated state is updated in place, again and again."""
    qn, (S, Y) = lbfgs_memory(M), all_kinds(11)
    g, G = gradients(Y)
    x, H0 = jnp.ones(N), jnp.asarray(DIAGONAL)
    state = qn.init(x, H0)
    leaves = [x, H0, *jax.tree.leaves(state)]
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    donating = jax.jit(qn.advance, donate_argnums=0)
    expected, Hg = recursion("bfgs", S, Y, H0=np.diag(DIAGONAL))[0], g
    for k in range(PUSHES):
        held = state.s
        state, Hg = donating(state, S[k], Y[k], G[k], Hg, bool(np.any(S[k])))
        assert held.is_deleted()
        assert_close(Hg[None], (expected[k] @ G[k])[None], 1e-9)


def test_a_saved_state_continues_exactly():
    qn, (S, Y) = verbs(lbfgs_memory(M)), all_kinds(12)
    g, G = gradients(Y)

    def walk(state, Hg, pushes):
        for k in pushes:
            state, Hg = qn.advance(state, S[k], Y[k], G[k], Hg, bool(np.any(S[k])))
        return state, Hg

    half = walk(qn.init(jnp.asarray(g)), jnp.asarray(g), range(9))
    saved = pickle.dumps(jax.tree.map(np.asarray, half))
    restored = jax.tree.map(jnp.asarray, pickle.loads(saved))
    straight, resumed = (walk(*state, range(9, PUSHES)) for state in (half, restored))
    for one, other in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


# Descent, range


@functools.cache
def nested_batch(qn):
    return jax.jit(jax.vmap(jax.vmap(by_advance(qn))))


@pytest.mark.parametrize("kind", ["random", "nearly orthogonal"])
def test_lbfgs_directions_always_descend(kind, dtype):
    """Over pairs that no function has: half of them refused, or hardly any curvature in them."""
    rng = np.random.default_rng(13)
    S, Y, G = rng.normal(size=(3, *LANES, PUSHES, N))
    if kind == "nearly orthogonal":
        size = (*LANES, PUSHES, 1)
        cosine = 10 ** rng.uniform(np.log10(20 * np.finfo(dtype).eps), -2, size)
        Y -= np.sum(S * Y, -1, keepdims=True) / np.sum(S * S, -1, keepdims=True) * S
        lengths = np.linalg.norm(Y, axis=-1, keepdims=True)
        Y += cosine * lengths * S / np.linalg.norm(S, axis=-1, keepdims=True)
    arrays = cast(dtype, S, Y, G[:, :, 0], G)
    states, products = nested_batch(lbfgs_memory(M))(*arrays)
    slopes = np.sum(np.asarray(arrays[3], np.float64) * np.asarray(products, np.float64), -1)
    assert np.all(slopes > 0)
    absorbed = tally(states)[..., -1, 0]
    assert np.all(absorbed > (1 if kind == "random" else PUSHES - 3))
    assert np.any(absorbed > 2 * M)


@each_name
@pytest.mark.parametrize("power", [-26, 26])
def test_the_scale_of_f_decides_nothing(name, power, dtype):
    """From 1.5e-8 to 6.7e7, a power of two: H₊ g is the same, bit for bit."""
    S, Y = all_kinds(14)
    g, G = gradients(Y)
    run = by_advance(METHODS[name](M))
    states, products = run(*cast(dtype, S, Y, g, G))
    scaled, same = run(*cast(dtype, S, *(2.0**power * a for a in (Y, g, G))))
    np.testing.assert_array_equal(tally(scaled), tally(states))
    np.testing.assert_array_equal(same, products)


@each_name
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gradients_out_of_range_leave_h_usable(name, scale):
    """In float32 their squares underflow or overflow: such pairs are refused, such g passed on."""
    S, Y = all_kinds(15)
    g, G = gradients(Y)
    run = by_advance(METHODS[name](M))
    states, products = run(*cast(jnp.float32, S, *(scale * a for a in (Y, g, G))))
    assert not np.any(tally(states)[:, 0])
    np.testing.assert_array_equal(products[:4], jnp.asarray(scale * G[:4], jnp.float32))

    qn = verbs(METHODS[name](M))
    state = qn.init(jnp.zeros(N, jnp.float32))
    for s, y in zip(*cast(jnp.float32, S[:2], Y[:2]), strict=True):
        state = qn.update(state, s, y)
    Hg = np.asarray(qn.apply(state, jnp.asarray(scale * g, jnp.float32)), np.float64)
    assert np.all(np.isfinite(Hg))
    assert Hg @ g > 0


# Trees, dtypes, batches, devices


def as_tree(v):
    """Seven numbers as leaves of three shapes."""
    return {"a": v[..., :2], "b": [v[..., 2:6].reshape(*v.shape[:-1], 2, 2), v[..., 6]]}


@each_name
def test_a_tree_is_its_flat_vector(name, monkeypatch):
    """Also where many leaves or many pairs call for other products."""
    S, Y = all_kinds(16)
    g, G = gradients(Y)
    run = by_advance(METHODS[name](M))
    states, products = run(S, Y, g, G, DIAGONAL)
    trees = [as_tree(a) for a in (S, Y, g, G, DIAGONAL)]
    monkeypatch.setattr(stacks, "MATMUL_LEAVES", 0)
    monkeypatch.setattr(stacks, "MATMUL_ROWS", 0)

    def program(S, Y, g, G, H0):
        qn = METHODS[name](M)

        def step(carry, inputs):
            state, Hg = carry
            s, y, g, moved = inputs
            state, Hg = qn.advance(state, s, y, g, Hg, moved)
            return (state, Hg), (state, Hg)

        return jax.lax.scan(step, (qn.init(g, H0), g), (S, Y, G, np.arange(PUSHES) != 4))[1]

    tree_states, tree_products = jax.jit(program)(*trees)
    np.testing.assert_array_equal(tally(tree_states), tally(states))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10),
        tree_products,
        as_tree(np.asarray(products)),
    )
    assert tree_states.s["b"][0].shape == (PUSHES, M, 2, 2)


def rounded(dtype, *arrays):
    return [np.asarray(a, dtype).astype(np.float64) for a in arrays]


@each_name
def test_a_rounded_history_is_the_matrix_of_the_rounded_pairs(name):
    S, Y = (a[:4] for a in all_kinds(17))
    g, G = gradients(Y)
    qn = METHODS[name](3, history_dtype=jnp.bfloat16)
    states, products = by_advance(qn)(S, Y, g, G)
    expected, tallies = recursion(name, *rounded(ml_dtypes.bfloat16, S, Y), m=3)
    np.testing.assert_array_equal(tally(states), tallies)
    assert_close(products, np.einsum("kij,kj->ki", expected, G), 1e-10)
    exact = np.einsum("kij,kj->ki", recursion(name, S, Y, m=3)[0], G)
    assert_close(products[:2], exact[:2], 0.05)
    assert states.s.dtype == states.y.dtype == jnp.bfloat16
    assert states.sy.dtype == products.dtype == jnp.float64


@pytest.mark.parametrize("m", [8, 20])
def test_a_rounded_history_is_never_widened_as_a_whole(m):
    n = 2**18
    qn, x = lbfgs_memory(m, history_dtype=jnp.bfloat16), jnp.zeros(n, jnp.float32)
    memory = jax.jit(qn.apply).lower(qn.init(x), x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < m * n  # a quarter of one stack in float32


@pytest.mark.parametrize("devices", [1, 8])
def test_leaves_in_half_precision(devices, monkeypatch):
    """Leaf by leaf their own dtype; inner products, and so all decisions, in float32."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)  # with one, small leaves are joined
    S, Y = (a[:4] for a in all_kinds(18))
    g, G = gradients(Y)
    dtypes = [jnp.bfloat16, jnp.float16, jnp.float32]

    def half(v):
        leaves, structure = jax.tree.flatten(as_tree(np.asarray(v)))
        return structure.unflatten([jnp.asarray(a, d) for a, d in zip(leaves, dtypes, strict=True)])

    def held(v):
        leaves = [np.asarray(a, np.float64) for a in jax.tree.leaves(half(v))]
        return np.concatenate([a.reshape(*v.shape[:-1], -1) for a in leaves], axis=-1)

    qn = lbfgs_memory(3)
    advance = jax.jit(lambda *args: qn.advance(*args))  # compiled for this number of devices
    state, Hg = qn.init(half(g)), half(g)
    expected, tallies = recursion("bfgs", held(S), held(Y), m=3)
    for k in range(4):
        state, Hg = advance(state, half(S[k]), half(Y[k]), half(G[k]), Hg, True)
        found = np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(Hg)])
        assert_close(found[None], (expected[k] @ held(G[k]))[None], 2.0**-6)
    np.testing.assert_array_equal(tally(state), tallies[-1])
    for tree in (state.s, state.y, Hg):
        assert [leaf.dtype for leaf in jax.tree.leaves(tree)] == dtypes
    assert state.sy.dtype == state.gamma.dtype == jnp.float32


@each_name
def test_a_batch_is_its_lanes(name):
    """Lanes refuse different pairs, so their rings are at different offsets; nested batches too."""
    lanes = []
    for seed in range(LANES[0] * LANES[1]):
        S, Y = all_kinds(20 + seed)
        Y[seed % 5 :: seed % 3 + 2] *= -1 if name == "bfgs" else 0
        lanes.append((S, Y, *gradients(Y)))
    run = by_advance(METHODS[name](M))
    batch = [np.stack(column) for column in zip(*lanes, strict=True)]
    batch = [a.reshape(*LANES, *a.shape[1:]) for a in batch]
    together, products = nested_batch(METHODS[name](M))(*batch)
    for number, lane in list(enumerate(lanes))[::3]:
        alone, expected = run(*lane)
        where = divmod(number, LANES[1])
        np.testing.assert_array_equal(tally(together)[where], tally(alone))
        np.testing.assert_array_equal(together.slot[where], alone.slot)
        assert_close(products[where], expected, 1e-9)
        assert_close(together.s[where], alone.s, 1e-15)
    assert len(np.unique(tally(together)[:, :, -1].reshape(-1, 2), axis=0)) > 3


def test_sharded_parameters_keep_their_shards():
    """Eight devices: rows of the ring placed like the parameters, one round of reductions."""
    rng = np.random.default_rng(24)
    shapes, specs = {"w": (4, 16), "b": (8,), "c": (3,)}, {"w": (None, "d"), "b": ("d",), "c": ()}
    mesh = Mesh(np.array(jax.devices()[:8]), ("d",))

    def place(v):
        return {
            k: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*specs[k])))
            for k, a in v.items()
        }

    qn = verbs(lbfgs_memory(M))
    g = {k: rng.normal(size=shape) for k, shape in shapes.items()}
    one = qn.init(jax.tree.map(jnp.asarray, g)), jax.tree.map(jnp.asarray, g)
    many = qn.init(place(g)), place(g)
    assert many[0].s["w"].sharding.spec == PartitionSpec(None, None, "d")
    text = (
        qn.advance.lower(many[0], place(g), place(g), place(g), place(g), True).compile().as_text()
    )
    for k in range(7):
        s = jax.tree.map(lambda a: rng.normal(size=a.shape), g)
        y = jax.tree.map(lambda a, sign=1 if k != 3 else -1: sign * a, s)
        g = jax.tree.map(np.add, g, y)
        one = qn.advance(one[0], *(jax.tree.map(jnp.asarray, v) for v in (s, y, g)), one[1], True)
        many = qn.advance(many[0], place(s), place(y), place(g), many[1], True)
    for leaf, other in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-12, atol=1e-14)
    for stack in (many[0].s, many[0].y):
        assert {k: tuple(a.sharding.spec) for k, a in stack.items() if k != "c"} == {
            "w": (None, None, "d"),
            "b": (None, "d"),
        }
        assert stack["w"].addressable_shards[0].data.shape == (M, 4, 2)
    # One is for every call, the other in the loop that runs where y is not the change of g.
    assert len(re.findall(r"= \S.* all-reduce\(", text)) == 2
    assert not re.findall("all-gather|all-to-all|collective-permute", text)


@each_name
def test_a_loop_copies_no_history(name):
    """XLA writes the row in place: no copy of a stack per trip, and no room for one."""
    n, m = 100_000, 6
    qn = METHODS[name](m)

    def loop(state, g):
        def trip(_, carry):
            state, g, Hg = carry
            s = -0.5 * Hg
            y = s * jnp.linspace(1, 2, n)
            state, Hg = qn.advance(state, s, y, g + y, Hg, Hg[0] < 1e9)
            return state, g + y, Hg

        return jax.lax.fori_loop(0, 50, trip, (state, g, g))

    compiled = jax.jit(loop, donate_argnums=0).lower(qn.init(jnp.zeros(n)), jnp.ones(n)).compile()
    stack = rf"= f64\[{m},{n}\]\S*"
    assert re.search(rf"{stack} (dynamic-update-slice|fusion)\(", compiled.as_text())
    assert not re.search(rf"{stack} copy\(", compiled.as_text())
    assert compiled.memory_analysis().temp_size_in_bytes < m * n * 8


# Damping


def dual_damping(H, s, y, theta):
    """N&W procedure 18.2 for (H, y, s): curvature added to s."""
    yHy, sy = y @ H @ y, s @ y
    t = 1.0 if sy >= theta * yHy else (1 - theta) * yHy / (yHy - sy)
    return t * s + (1 - t) * H @ y


def test_damped_pairs_are_all_used():
    """Against damping and recursion written out."""
    rng = np.random.default_rng(25)
    pairs = [oracles.random_pair(rng, N) for _ in range(PUSHES)]
    S, Y = (np.array(column) for column in zip(*pairs, strict=True))
    Y[1::3] *= -1
    g, G = gradients(Y)
    steps, H = [], np.eye(N)
    for k in range(PUSHES):
        steps.append(dual_damping(H, S[k], Y[k], theta=0.3))
        H = recursion("bfgs", np.array(steps), Y[: k + 1])[0][-1]
    expected, tallies = recursion("bfgs", np.array(steps), Y)
    states, products = by_advance(damped(lbfgs_memory(M), theta=0.3))(S, Y, g, G)
    assert_close(products, np.einsum("kij,kj->ki", expected, G), 1e-9)
    np.testing.assert_array_equal(tally(states), tallies)
    assert tallies[-1].tolist() == [PUSHES, 0]


def test_damping_wraps_dense_methods_too():
    qn, rng = dense(bfgs_rule), np.random.default_rng(26)
    state = qn.init(jnp.zeros(N))

    @jax.jit
    def both(state, s, y):
        by_hand = qn.update(state, powell_damping(s, y, qn.apply(state, y)), y)
        return by_hand, damped(qn).update(state, s, y)

    for sign in (1, -1, 1):
        s, y = oracles.random_pair(rng, N)
        by_hand, state = both(state, s, sign * y)
        assert_close(state.matrix, by_hand.matrix, 1e-12)
    assert tally(state).tolist() == [3, 0]


def test_damping_leaves_good_and_zero_pairs_alone():
    plain, (S, Y) = lbfgs_memory(M), all_kinds(27)
    S, Y = 10 * np.abs(S), np.abs(Y)  # from H = I, sᵀy > yᵀy
    S[1:], Y[1:] = 0, 0
    inputs = S, Y, *gradients(Y)
    ours, theirs = (by_advance(qn)(*inputs)[0] for qn in (damped(plain, theta=0.3), plain))
    assert tally(ours)[-1].tolist() == [1, 0]
    assert_same_leaves(ours, theirs)
    assert_same_leaves(take(ours, -1), take(ours, 0))


# Access, errors


def test_stored_pairs_are_in_order():
    S, Y = all_kinds(28)
    states, _ = by_update(lbfgs_memory(M))(S, Y)
    absorbed = []
    for k in range(PUSHES):
        if tally(states)[k, 0] > (tally(states)[k - 1, 0] if k else 0):
            absorbed.append(k)
        stored_S, stored_Y, valid = stored_pairs(take(states, k))
        newest = absorbed[-M:]
        np.testing.assert_array_equal(valid, np.arange(M) >= M - len(newest))
        np.testing.assert_array_equal(stored_S[valid], S[newest])
        np.testing.assert_array_equal(stored_Y[valid], Y[newest])


@each_name
def test_inverse_hessian_product_is_apply(name):
    S, Y = all_kinds(29)
    states, matrices = by_update(METHODS[name](M))(S, Y)
    v = np.linspace(1, 2, N)
    product = jax.jit(inverse_hessian_product)(take(states, -1), v)
    np.testing.assert_allclose(product, matrices[-1] @ v, rtol=1e-12)


@each_name
def test_the_class_of_a_state_names_its_method(name):
    """It survives pickling and every transformation, and a pytree of the other is another one."""
    (S, Y), v = all_kinds(30), np.linspace(1, 2, N)
    states, matrices = by_update(METHODS[name](M))(S, Y)
    state = take(states, -1)
    saved = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))
    for copy in (saved, jax.jit(lambda tree: tree)(state), jax.vmap(lambda tree: tree)(states)):
        assert jax.tree.structure(copy) == jax.tree.structure(state)
    np.testing.assert_allclose(inverse_hessian_product(saved, v), matrices[-1] @ v, rtol=1e-12)
    structures = {jax.tree.structure(make(M).init(v)) for make in METHODS.values()}
    assert len(structures) == len(METHODS)


@each_name
def test_bad_options_are_refused(name):
    method = METHODS[name]
    for m in (2.0, "3", True, None):
        with pytest.raises(TypeError, match="whole number of pairs"):
            method(m)
    with pytest.raises(ValueError, match="at least 1 pair"):
        method(0)
    with pytest.raises(TypeError, match=r"floating dtype such as jnp\.bfloat16"):
        method(3, history_dtype=jnp.int8)
    for H0 in (jnp.ones(N - 1), jnp.eye(N), {"x": jnp.ones(N)}):
        with pytest.raises(ValueError, match=r"like x0 .*a diagonal"):
            method(3).init(jnp.ones(N), H0)
    with pytest.raises(ValueError, match="theta must be between 0 and 1"):
        damped(method(3), theta=1.0)


def test_lsr1_takes_its_start_at_init_only():
    qn, x = lsr1_memory(2), jnp.ones(N)
    with pytest.raises(TypeError, match="give L-SR1 its H0 at init"):
        jax.eval_shape(lambda x: qn.apply(qn.init(x), x, H0=x), x)


def test_the_same_options_are_the_same_method():
    """A method is a key of compiled programs: asking for it twice must not compile twice."""
    assert lbfgs_memory() is lbfgs_memory(10)
    assert lbfgs_memory(3, history_dtype="bfloat16") is lbfgs_memory(3, history_dtype=jnp.bfloat16)
    assert lbfgs_memory(3) is not lsr1_memory(3)
    assert not lbfgs_memory(3).dense
    assert damped(lbfgs_memory(3)) is damped(lbfgs_memory(3))
