"""Eigenpairs from products alone, against NumPy's eigh of the whole matrix."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from programs import TraceCounter, count, marker_p

from jaxqn.linalg.eigenpairs import Eigenpairs, eigenpairs, hessian_eigenpairs

N, K = 60, 3
ENDS = ("largest", "smallest", "largest_magnitude", "smallest_magnitude")
each_end = pytest.mark.parametrize("which", ENDS)


def by_matrix(A, **options):
    """Eigenpairs of a matrix that is only multiplied with."""
    return eigenpairs(lambda v: jnp.dot(A, v, precision="highest"), A[0], **options)


@functools.cache
def solver(which, k=K):
    """One compiled program per end and dtype, shared by the tests; the tolerance is traced."""
    solve = jax.jit(lambda A, tol: by_matrix(A, k=k, which=which, tol=tol))
    return lambda A, tol=None: solve(A, default_tolerance(A) if tol is None else tol)


def default_tolerance(A):
    return float(jnp.finfo(A.dtype).eps) ** 0.5


@functools.cache
def continued(which):
    """The same from given rows."""
    return jax.jit(lambda A, start: by_matrix(A, k=K, which=which, start=start))


def spectra():
    rng = np.random.default_rng(0)
    gaussian = rng.normal(size=(N, N))
    steps, positive = np.tile(np.arange(12), 5), np.linspace(0.05, 1, N // 2)
    return {
        "random": np.linalg.eigvalsh(gaussian + gaussian.T),
        "definite": np.geomspace(1e-2, 1, N),
        "indefinite": np.linspace(-1, 1.1, N),
        "singular": np.append(0, np.linspace(0.1, 1, N - 1)),
        "rank-deficient": np.append(np.zeros(20), np.linspace(-1, 1, N - 20)),
        "clustered": np.repeat([-1, -0.5, 0.1, 0.6, 1], 12) + 1e-3 * steps,
        "graded": np.outer([1, -0.9], np.geomspace(1e-8, 1, N // 2)).ravel(),
        "symmetric": np.outer([1, -1], positive).ravel(),
    }


SPECTRA = spectra()


def rotated(eigenvalues, seed=1):
    """A symmetric matrix with that spectrum."""
    n = len(eigenvalues)
    Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    A = (Q * eigenvalues) @ Q.T
    return (A + A.T) / 2


def expected(A, which, k=K):
    """The eigenvalues asked for, best first, from the whole matrix."""
    values = np.linalg.eigvalsh(A)
    rank = {
        "largest": -values,
        "smallest": values,
        "largest_magnitude": -np.abs(values),
        "smallest_magnitude": np.abs(values),
    }
    return values[np.argsort(rank[which])[:k]]


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def recomputed(A, pairs):
    """|A v − lambda v| by NumPy."""
    V, values = double(pairs.vectors), double(pairs.values)
    return np.linalg.norm(V @ A - values[:, None] * V, axis=1)


def assert_sound(pairs, A, dtype, rounding=100):
    """Orthonormal vectors, true residuals, a scale that is a lower bound."""
    eps, scale = float(jnp.finfo(dtype).eps), float(pairs.scale)
    V = double(pairs.vectors)
    np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=rounding * eps)
    np.testing.assert_allclose(
        double(pairs.residuals), recomputed(A, pairs), atol=rounding * eps * scale
    )
    assert scale <= (1 + rounding * eps) * np.max(np.abs(np.linalg.eigvalsh(A)))
    assert all(leaf.dtype == dtype for leaf in (pairs.values, pairs.vectors, pairs.residuals))


@each_end
def test_against_eigh(which, dtype):
    """Values, order and residuals at the default tolerance, within the default budget.

    The magnitude of +lambda and −lambda is the same, so that only magnitudes are compared there.
    """
    tol = default_tolerance(jnp.zeros(0, dtype))
    for name, spectrum in SPECTRA.items():
        if (name, which, dtype) == ("graded", "smallest_magnitude", jnp.float64):
            continue  # see test_what_is_not_reached_is_said
        A = jnp.asarray(rotated(spectrum), dtype)
        pairs, A = solver(which)(A), double(A)
        assert_sound(pairs, A, dtype)
        assert np.max(pairs.residuals) <= tol * pairs.scale, name
        of = np.abs if "magnitude" in which else np.asarray
        found, true = of(double(pairs.values)), of(expected(A, which))
        assert np.max(np.abs(found - true)) <= tol * float(pairs.scale), name
        order = found if which.startswith("smallest") else -found
        assert np.all(np.diff(order) >= -1e-6 * float(pairs.scale)), name
        assert float(pairs.scale) >= 0.95 * np.max(np.abs(spectrum)), name


def test_vectors_are_the_eigenvectors(dtype):
    for which in ENDS:
        A = jnp.asarray(rotated(SPECTRA["random"]), dtype)
        pairs, A = solver(which)(A), double(A)
        values, Q = np.linalg.eigh(A)
        for value, v in zip(double(pairs.values), double(pairs.vectors), strict=True):
            overlap = abs(v @ Q[:, np.argmin(np.abs(values - value))])
            assert overlap >= 1 - 100 * float(jnp.finfo(dtype).eps) ** 0.5


@each_end
def test_multiplying_the_operator_changes_nothing_else(which):
    """From 1e-8 to 1e8: as many products."""
    A = jnp.asarray(rotated(SPECTRA["random"]), jnp.float32)
    one = solver(which)(A)
    for c in (1e-8, 1e8):
        scaled = jnp.float32(c) * A
        other, scale = solver(which)(scaled), c * float(one.scale)
        assert int(other.products) == int(one.products)
        np.testing.assert_allclose(other.scale, scale, rtol=1e-5)
        np.testing.assert_allclose(other.values, expected(double(scaled), which), atol=1e-5 * scale)
        assert np.max(other.residuals) <= default_tolerance(A) * scale


@each_end
def test_what_is_not_reached_is_said(which):
    """With tol = 0 the budget ends the run; its last residuals are true ones."""
    A = rotated(SPECTRA["graded"], 2)
    pairs = solver(which)(A, 0.0)
    assert int(pairs.products) == 20 * (40 if which == "smallest_magnitude" else 20)
    assert_sound(pairs, A, jnp.float64)
    if which == "smallest_magnitude":  # 1e-8 of the scale is below what this spectrum allows
        assert 1e-10 < np.max(pairs.residuals) < 1e-5


@each_end
def test_exhausted_spaces(which):
    """Multiples of the identity, rank one, zero: the Krylov space ends at once and is left."""
    identity, ones = np.eye(N), np.ones((N, N)) / N
    for A in (3 * identity, -2 * identity, 0 * identity, ones, identity - ones):
        pairs = solver(which)(A)
        assert_sound(pairs, A, jnp.float64)
        np.testing.assert_allclose(pairs.values, expected(A, which), atol=1e-13)
        np.testing.assert_allclose(pairs.residuals, 0, atol=1e-13)


@each_end
def test_a_product_that_is_nan_ends_the_run(which):
    A = rotated(SPECTRA["random"])
    A[3, 4] = np.nan
    pairs = solver(which)(A)
    assert np.all(np.isnan(pairs.values))
    assert np.all(np.isnan(pairs.residuals))
    assert int(pairs.products) < 20
    A[3, 4] = np.inf
    assert np.all(np.isnan(solver(which)(A).residuals))


def test_copies_of_a_multiple_eigenvalue():
    """k rows find k of them; a null space is found without being told so."""
    spectrum = np.append(np.ones(4), np.linspace(-1, 0.9, N - 4))
    start = np.random.default_rng(0).normal(size=(K, N))
    pairs = continued("largest")(rotated(spectrum), start)
    np.testing.assert_allclose(pairs.values, np.ones(K), atol=1e-10)
    null = solver("smallest_magnitude")(rotated(SPECTRA["rank-deficient"]))
    np.testing.assert_allclose(null.values, np.zeros(K), atol=1e-7)


def test_lambda_and_its_negative_are_told_apart():
    """One pair asked for where A² has two: a mixture of both would have value 0, residual 0.05."""
    A = rotated(np.outer([1, -1], np.linspace(0.05, 1, 10)).ravel())
    pairs = solver("smallest_magnitude", k=1)(A)
    np.testing.assert_allclose(np.abs(pairs.values), 0.05, rtol=1e-9)
    assert float(recomputed(A, pairs)[0]) < 1e-7


@pytest.mark.parametrize(("n", "which"), [(1, "smallest"), (4, "smallest_magnitude")])
def test_the_whole_spectrum_of_a_small_space(n, which):
    A = rotated(np.linspace(-1, 2.5, n))
    pairs = by_matrix(jnp.asarray(A), k=n, which=which)
    np.testing.assert_allclose(pairs.values, expected(A, which, n), atol=1e-12)
    assert int(pairs.products) == n
    assert_sound(pairs, A, jnp.float64)


def test_warm_starts_save_products():
    """The rows come first: at the same operator they are all it takes; far from it, no help."""
    rng = np.random.default_rng(0)
    A, E = rotated(SPECTRA["random"]), rng.normal(size=(N, N))
    cold = solver("largest")(A)
    again = continued("largest")(A, cold.vectors)
    assert int(again.products) == K
    np.testing.assert_allclose(again.values, cold.values, rtol=1e-12)
    used = [int(cold.products)]
    for size in (1e-4, 1e-6, 1e-9):
        near = A + size * (E + E.T)
        warm = continued("largest")(near, cold.vectors)
        np.testing.assert_allclose(warm.values, expected(near, "largest"), rtol=1e-10)
        assert_sound(warm, near, jnp.float64)
        used.append(int(warm.products))
    assert used == sorted(used, reverse=True)
    assert used[-1] <= used[0] / 3


def test_a_start_may_be_anything():
    """Dependent rows, zeros and NaN: random rows take the place of those that add nothing."""
    A = rotated(SPECTRA["random"])
    v = np.random.default_rng(0).normal(size=N)
    hopeless = np.zeros((K, N))
    for start in (np.stack([v, 2 * v, -v]), hopeless, hopeless + np.nan, 1e-30 * np.ones((K, N))):
        pairs = continued("largest")(A, start)
        np.testing.assert_allclose(pairs.values, expected(A, "largest"), rtol=1e-10)
        assert_sound(pairs, A, jnp.float64)


def tree_of(flat):
    """60 entries as a pytree of mixed shapes, a scalar among them."""
    return {
        "w": flat[..., :56].reshape(*flat.shape[:-1], 2, 4, 7),
        "b": [flat[..., 56:59], flat[..., 59]],
    }


def flat_of(tree):
    lead = tree["b"][1].shape
    parts = [tree["w"].reshape(*lead, 56), tree["b"][0], tree["b"][1][..., None]]
    return jnp.concatenate(parts, axis=-1)


def test_a_pytree_is_its_flat_vector():
    A = rotated(SPECTRA["random"])
    """And every product is counted."""
    start, calls = np.random.default_rng(0).normal(size=(K, N)), []

    @jax.jit
    def solve(A, start):
        def product(v):
            jax.debug.callback(lambda: calls.append(1))
            return tree_of(jnp.dot(A, flat_of(v), precision="highest"))

        return eigenpairs(product, tree_of(A[0]), k=K, which="largest", start=tree_of(start))

    pairs, flat = solve(A, jnp.asarray(start)), continued("largest")(A, start)
    assert jax.tree.structure(pairs.vectors) == jax.tree.structure(tree_of(A[0]))
    jax.effects_barrier()
    assert len(calls) == int(pairs.products) == int(flat.products)
    np.testing.assert_allclose(pairs.values, flat.values, rtol=1e-12)
    np.testing.assert_allclose(flat_of(pairs.vectors), flat.vectors, atol=1e-6)


def test_leaves_of_low_and_mixed_precision():
    """The basis is kept in float32 at least; the vectors come back in the leaves' dtypes."""
    d = jnp.linspace(1.0, 2.0, 40, dtype=jnp.float32)
    like = {"a": jnp.zeros(20, jnp.bfloat16), "b": jnp.zeros(20, jnp.float32)}

    def product(v):
        wide = jnp.concatenate([v["a"].astype(jnp.float32), v["b"]]) * d
        return {"a": wide[:20].astype(jnp.bfloat16), "b": wide[20:]}

    pairs = jax.jit(lambda: eigenpairs(product, like, k=1, which="largest"))()
    assert [leaf.dtype for leaf in jax.tree.leaves(pairs.vectors)] == [jnp.bfloat16, jnp.float32]
    assert pairs.values.dtype == jnp.float32
    np.testing.assert_allclose(pairs.values, 2, atol=2 * float(jnp.finfo(jnp.bfloat16).eps) ** 0.5)


def test_a_batch_is_its_operators():
    """Lane by lane, products included; a NaN stays in its lane."""
    matrices = np.stack([rotated(SPECTRA[name], 3) for name in ("random", "definite", "graded")])
    broken = matrices[0].copy()
    broken[0, 0] = np.nan
    lanes = jnp.asarray(np.concatenate([matrices, broken[None]]))
    batch = jax.jit(jax.vmap(functools.partial(by_matrix, k=K, which="smallest")))(lanes)
    for lane, A in enumerate(matrices):
        one, many = solver("smallest")(A), jax.tree.map(lambda leaf, i=lane: leaf[i], batch)
        assert int(many.products) == int(one.products)
        np.testing.assert_allclose(many.values, one.values, rtol=1e-9, atol=1e-12)
        assert_sound(many, A, jnp.float64)
    assert np.all(np.isnan(batch.residuals[-1]))
    assert not np.any(np.isnan(batch.residuals[:-1]))


def network(params, images):
    """A small network's loss, with a scalar parameter."""
    out = jnp.dot(jnp.tanh(images @ params["w"]), params["v"]) * params["gain"]
    return jnp.mean(jnp.sum(out**2, axis=1))


def test_hessian_of_a_network_and_sharded_parameters():
    """Compiled once; over eight devices the same, and the vectors lie where the parameters do."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 8)), "v": rng.normal(size=(8, 2)), "gain": np.ones(())}
    params, images = jax.tree.map(jnp.asarray, (params, rng.normal(size=(10, 4))))
    fun = TraceCounter(network)
    solve = functools.partial(hessian_eigenpairs, fun, which="largest")
    pairs = solve(params, (images,))
    assert isinstance(pairs, Eigenpairs)
    traces = fun.traces
    solve(params, (2 * images,), tol=1e-3, key=jax.random.key(7))  # all of these are arguments
    assert fun.traces == traces

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    H = np.asarray(jax.jit(jax.hessian(lambda x: network(unravel(x), images)))(flat))
    rows = jnp.stack([flatten(pairs.vectors, i) for i in range(2)])
    np.testing.assert_allclose(pairs.values, expected(H, "largest", 2), rtol=1e-9)
    assert_sound(pairs._replace(vectors=rows), H, jnp.float64)

    mesh = Mesh(np.array(jax.devices()), ("shards",))
    axes = {"w": (None, "shards"), "v": ("shards",), "gain": ()}
    shardings = {name: NamedSharding(mesh, PartitionSpec(*a)) for name, a in axes.items()}
    replicated = jax.device_put(images, NamedSharding(mesh, PartitionSpec()))
    spread = solve(jax.device_put(params, shardings), (replicated,))
    assert int(spread.products) == int(pairs.products)
    np.testing.assert_allclose(spread.values, pairs.values, rtol=1e-10)
    for name, vectors in spread.vectors.items():
        stack = NamedSharding(mesh, PartitionSpec(None, *axes[name]))
        assert vectors.sharding.is_equivalent_to(stack, vectors.ndim)
    for i in range(2):
        cosine = np.vdot(flatten(spread.vectors, i), flatten(pairs.vectors, i))
        np.testing.assert_allclose(np.abs(cosine), 1, rtol=1e-10)


def flatten(stack, i):
    return jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: leaf[i], stack))[0]


def test_one_product_in_the_program():
    """However many products a run takes, and whatever it starts from."""

    def product(v):
        return marker_p.bind(2 * v)

    like = jnp.zeros(50)
    for start in (None, jnp.ones((2, 50))):
        for which in ENDS:
            run = functools.partial(eigenpairs, product, which=which, start=start)
            assert count(jax.make_jaxpr(run)(like).jaxpr, "marker") == 1
    batch = jax.make_jaxpr(jax.vmap(lambda like: eigenpairs(product, like)))(jnp.zeros((3, 50)))
    assert count(batch.jaxpr, "marker") == 1


LIKE = {"a": np.zeros(4), "b": np.zeros((2, 3))}
WRONG = {
    "which must be one of": {"which": "middle"},
    "k must lie between 1 and the 10": {"k": 11},
    "but it is 0": {"k": 0},
    "basis must be at least k . 2 = 4": {"basis": 3},
    "max_products must be at least k": {"max_products": 1},
    "tol must be one number": {"tol": -1.0},
    "one more leading axis": {"start": LIKE},
    "a stack of 1 to k = 2": {"start": {"a": np.zeros((3, 4)), "b": np.zeros((3, 2, 3))}},
    "its leaves have shapes": {"start": np.zeros((2, 10))},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message):
    """Before anything is traced."""
    never = TraceCounter(lambda v: v)
    with pytest.raises(ValueError, match=message):
        eigenpairs(never, LIKE, **WRONG[message])
    with pytest.raises(ValueError, match=message):
        hessian_eigenpairs(never, LIKE, **WRONG[message])
    assert never.traces == 0


def test_errors_of_type():
    with pytest.raises(TypeError, match="int64: convert it"):
        eigenpairs(lambda v: v, np.arange(4))
    with pytest.raises(ValueError, match="the product of a vector must be like it"):
        eigenpairs(lambda v: v[:2], np.zeros(4))
    with pytest.raises(TypeError, match="fun must be a function"):
        hessian_eigenpairs(3, np.zeros(4))
    with pytest.raises(TypeError, match="args must be a tuple"):
        hessian_eigenpairs(network, np.zeros(4), np.zeros(3))
    with pytest.raises(TypeError):
        eigenpairs(lambda v: v, np.zeros(4), k=1.5)
