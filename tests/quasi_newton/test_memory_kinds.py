"""Limited memory over trees, dtypes, batches and devices; damping, access and errors."""

import pickle
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
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
    gradients,
    nested_batch,
    recursion,
    take,
    tally,
    verbs,
)

from jaxqn.formulas.curvature import powell_damping
from jaxqn.formulas.rules import bfgs_rule
from jaxqn.linalg import stacks
from jaxqn.quasi_newton.damping import damped
from jaxqn.quasi_newton.dense import dense
from jaxqn.quasi_newton.lbfgs import lbfgs_memory
from jaxqn.quasi_newton.lsr1 import lsr1_memory
from jaxqn.quasi_newton.stored_pairs import inverse_hessian_product, stored_pairs

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


@pytest.mark.compiled
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


@pytest.mark.compiled
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


@pytest.mark.compiled
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
