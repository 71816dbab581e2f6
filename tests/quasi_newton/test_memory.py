"""Limited memory against NumPy's dense recursion over the newest pairs, at every push."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from recursion import (
    DIAGONAL,
    LANES,
    METHODS,
    PUSHES,
    M,
    N,
    all_kinds,
    assert_close,
    assert_same_leaves,
    by_advance,
    by_update,
    each_name,
    from_scratch,
    gradients,
    nested_batch,
    passes,
    recursion,
    take,
    tally,
    verbs,
)

from jaxqn.quasi_newton.lbfgs import lbfgs_memory
from jaxqn.quasi_newton.lsr1 import lsr1_memory
from jaxqn.quasi_newton.stored_pairs import stored_pairs

TOLERANCE = {"float32": 1e-3, "float64": 1e-10}


def cast(dtype, *arrays):
    return [jnp.asarray(array, dtype) for array in arrays]


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
