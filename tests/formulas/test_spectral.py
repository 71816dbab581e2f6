"""Corrected inverses against NumPy's eigh: bounds, ranks and reports for every symmetric matrix.

What rounding may do, in every test below: an eigendecomposition in ``dtype`` is that of a matrix
within 2 n eps max|λ|, and a product of matrices is off by 2 n eps of the largest eigenvalue.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import random_spd
from programs import count, equations, product_shapes
from spectra import N, eps, from_spectrum, indefinite, symmetric_in, zero

from jaxqn.formulas.rank_one_corrections import wedderburn
from jaxqn.formulas.spectral import correct_inverse, spectral_correction, spectral_inverse

SIZES = (2, N, 12)
EACH = 38  # matrices per kind and size: with 9 kinds and 3 sizes, 1026 per dtype
OPTIONS = [
    ("all", "reflect"),
    ("all", "clip"),
    ("all", "drop"),
    (2, "reflect"),
    (2, "clip"),
    (2, "drop"),
    (0, "reflect"),
]
COVERED = OPTIONS[:2]  # nothing is ever left out
each_option = pytest.mark.parametrize(("rank", "mode"), OPTIONS)


def gram(rng, n, rank):
    """Positive semidefinite of that rank or less, in whole numbers: singular without rounding."""
    X = rng.integers(-4, 5, size=(n, rank))
    return (X @ X.T).astype(float)


def clustered(rng, n):
    """About a few values, the floors of both precisions among them."""
    centres = rng.choice([-1, -1e-3, 0, 1e-9, 2.0**-26, 2.0**-11.5, 1e-3, 1], size=n)
    return from_spectrum(rng, centres * (1 + 1e-6 * rng.normal(size=n)))


def graded(rng, n):
    return from_spectrum(rng, np.geomspace(1, 1e-16, n) * rng.choice([-1, 1], size=n))


def with_two_bad(rng, n):
    """At most two eigenvalues to correct: a tiny one and another one, negative or not."""
    bad = rng.choice([-1, 1], size=2) * 10.0 ** rng.uniform([-6, -3], [-3, -0.5])
    return from_spectrum(rng, np.concatenate([bad, rng.uniform(0.1, 1, size=n - 2)]))


KINDS = {
    "definite": lambda rng, n: random_spd(rng, n, 100.0),
    "negative definite": lambda rng, n: -random_spd(rng, n, 1e4),
    "singular": lambda rng, n: gram(rng, n, n - 1),
    "deficient": lambda rng, n: gram(rng, n, n // 2) * rng.choice([-1, 1]),
    "indefinite": indefinite,
    "clustered": clustered,
    "graded": graded,
    "two bad": with_two_bad,
    "zero": zero,
}


def of_kind(name):
    """Where in a stack that kind is."""
    start = list(KINDS).index(name) * EACH
    return slice(start, start + EACH)


@functools.cache
def matrices(dtype, n):
    """Every kind, one after the other, over twelve decades of scale."""
    rng = np.random.default_rng(n)
    kinds = [kind for kind in KINDS.values() for _ in range(EACH)]
    return symmetric_in(dtype, [kind(rng, n) * 10.0 ** rng.uniform(-6, 6) for kind in kinds])


@jax.jit
@jax.vmap
def all_options(H):
    """In one program: the eigendecomposition is shared, and compiled once."""
    return [spectral_correction(H, rank=rank, mode=mode) for rank, mode in OPTIONS]


def corrections(stack):
    """By option, as NumPy arrays. Stacks are brought to one length, for one compiled program."""
    full = np.resize(stack, (len(KINDS) * EACH, *stack.shape[1:]))
    outputs = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(stack)], all_options(full))
    return dict(zip(OPTIONS, outputs, strict=True))


@functools.cache
def results(dtype, n):
    return corrections(matrices(dtype, n))


# The oracle


def corrected_values(values, rank, floor, mode):
    """f(λ), and how many needed correction: one eigenvalue at a time, in plain Python."""
    delta = floor * max(abs(values))
    needs = [i for i, value in enumerate(values) if value < delta]
    chosen = sorted(needs, key=lambda i: abs(values[i]))[: None if rank == "all" else rank]
    f = np.where(np.any(values), values, 1.0)
    for i in needs:
        if i not in chosen or mode == "drop":
            f[i] = np.inf
        else:
            f[i] = max(abs(values[i]) if mode == "reflect" else values[i], delta)
    return f, needs, chosen


class Oracle:
    """The answers for a stack by NumPy's eigh in float64, and how far rounding may lead from them.

    In the Frobenius norm a function of a symmetric matrix changes by at most its Lipschitz constant
    times the change of the matrix. Here that constant is 1/min f², or the jump between an
    eigenvalue kept and one dropped over the distance of the two.

    Attributes:
      largest, delta: max|λ| and the floor, shape ``(B,)``; 1 for a zero matrix, whose f is 1.
      slack: 2 n eps / min f, what rounding of the inverse itself amounts to.
      tolerance: for the inverse.
      spectrum_tolerance: for its eigenvalues, which nothing but a change of counts can make jump.
      counts_are_clear: whether no eigenvalue is so close to the floor that rounding decides.
      inverse_is_clear: and nothing jumps there, nor where two magnitudes cannot be told apart.
    """

    def __init__(self, dtype, n, rank, mode):
        H = matrices(dtype, n).astype(np.float64)
        self.zero = ~np.any(H, axis=(1, 2))
        self.values, vectors = np.linalg.eigh(H)
        magnitudes = np.abs(self.values)
        largest, floor = np.max(magnitudes, axis=1), float(dtype(eps(dtype) ** 0.5))
        by_hand = [corrected_values(values, rank, floor, mode) for values in self.values]
        self.f = np.array([f for f, _, _ in by_hand])
        self.chosen = np.array([len(chosen) for _, _, chosen in by_hand])
        self.left = np.array([len(needs) for _, needs, _ in by_hand]) - self.chosen
        self.inverse = (vectors / self.f[:, None, :]) @ vectors.swapaxes(1, 2)
        self.largest = np.where(self.zero, 1, largest)
        self.delta = np.where(self.zero, 1, floor * largest)

        shift = 2 * n * eps(dtype) * self.largest
        bottom, kept = np.min(self.f, axis=1), np.isfinite(self.f)
        distances = np.abs(self.values[:, :, None] - self.values[:, None, :])
        across = kept[:, :, None] & ~kept[:, None, :]
        gap = np.min(distances, axis=(1, 2), where=across, initial=np.inf)
        with np.errstate(divide="ignore"):
            slope = np.maximum(bottom**-2.0, 1 / (bottom * gap))
        self.slack = 2 * n * eps(dtype) / bottom
        self.tolerance = shift * slope + self.slack
        self.spectrum_tolerance = 4 * shift / bottom**2 + self.slack
        near = np.min(np.abs(self.values - self.delta[:, None]), axis=1) < 2 * shift
        tied = np.zeros(len(H), bool)
        for i, (_, needs, chosen) in enumerate(by_hand):
            others = [magnitudes[i, j] for j in needs if j not in chosen]
            reached = [magnitudes[i, j] for j in chosen]
            if others and reached and mode != "drop":
                tied[i] = min(others) - max(reached) < 2 * shift[i]
        continuous = (self.left == 0) & (mode != "drop")
        self.counts_are_clear = ~near | self.zero
        self.inverse_is_clear = self.zero | continuous | ~(near | tied)


@functools.cache
def oracles_of(dtype, n, rank, mode):
    return Oracle(dtype, n, rank, mode)


def batches(dtype, rank, mode):
    """Size, stack in float64, correction and oracle: together 1026 matrices."""
    for n in SIZES:
        H = matrices(dtype, n).astype(np.float64)
        yield n, H, results(dtype, n)[rank, mode], oracles_of(dtype, n, rank, mode)


def frobenius(stack):
    return np.linalg.norm(np.asarray(stack, np.float64), axis=(1, 2))


def at_most(actual, bound):
    """``actual <= bound``, element by element, with a message that says where not."""
    worst = np.argmax(actual - bound)
    assert np.all(actual <= bound), (list(KINDS)[worst // EACH], worst)


@each_option
def test_inverse_is_the_oracles(rank, mode, dtype):
    """Everywhere but where rounding decides what is dropped; its eigenvalues there too, unless it
    decides how many are."""
    clear = total = 0
    for _, _, output, oracle in batches(dtype, rank, mode):
        assert output.inverse.dtype == dtype
        error = frobenius(output.inverse - oracle.inverse)
        at_most(np.where(oracle.inverse_is_clear, error, 0), oracle.tolerance)
        after = np.linalg.eigvalsh(output.inverse.astype(np.float64))
        error_of_spectrum = np.max(np.abs(after - np.sort(1 / oracle.f)), axis=1)
        at_most(np.where(oracle.counts_are_clear, error_of_spectrum, 0), oracle.spectrum_tolerance)
        total, clear = total + len(error), clear + np.sum(oracle.inverse_is_clear)
    assert total == 9 * 3 * EACH > 1000
    assert clear >= (1 if (rank, mode) in COVERED else 0.75) * total


def test_eigenvalues_before_are_the_oracles(dtype):
    for rank, mode in OPTIONS:
        for n, _, output, oracle in batches(dtype, rank, mode):
            error = np.max(np.abs(output.eigenvalues - oracle.values), axis=1)
            at_most(error, 2 * n * eps(dtype) * oracle.largest)
            assert np.all(np.diff(output.eigenvalues, axis=1) >= 0)


@each_option
def test_every_eigenvalue_of_the_inverse_is_within_bounds(rank, mode, dtype):
    """0, or in [1/max|λ|, 1/delta] up to 4 n eps of the largest: 2 for the decomposition, which
    moves delta, and 2 for the product. None is 0 where nothing is dropped, and none negative."""
    for n, _, output, oracle in batches(dtype, rank, mode):
        inverse = output.inverse.astype(np.float64)
        assert np.all(np.isfinite(inverse))
        np.testing.assert_array_equal(inverse, inverse.swapaxes(1, 2))
        assert np.all(inverse[oracle.zero] == np.eye(n)[None])
        after = np.linalg.eigvalsh(inverse)
        dropped = np.sum(np.isinf(output.corrected), axis=1)
        left_out = np.arange(n)[None] < dropped[:, None]
        slack = 4 * n * eps(dtype) / np.min(output.corrected, axis=1, keepdims=True)
        assert np.all(np.where(left_out, np.abs(after), 0) <= slack)
        assert np.all(left_out | (after >= 1 / oracle.largest[:, None] - slack))
        assert np.all(left_out | (after > 0))
        at_most(after[:, -1], (1 + 4 * n * eps(dtype)) / oracle.delta)
        if mode != "drop":
            assert np.all(dropped == output.uncorrected)
        if (rank, mode) in COVERED:
            assert not np.any(dropped)


@each_option
def test_the_report_is_what_was_done(rank, mode, dtype):
    """By the reported eigenvalues alone: counts exactly, f and the condition number to rounding."""
    floor, nothing_left = dtype(eps(dtype) ** 0.5), 0
    for _, _, output, _ in batches(dtype, rank, mode):
        assert output.eigenvalues.dtype == output.corrected.dtype == dtype
        assert output.rank.dtype == output.uncorrected.dtype == np.int32
        expected = [corrected_values(values, rank, floor, mode) for values in output.eigenvalues]
        for i, (f, needs, chosen) in enumerate(expected):
            assert output.rank[i] == len(chosen)
            assert output.uncorrected[i] == len(needs) - len(chosen)
            np.testing.assert_allclose(output.corrected[i], f, rtol=2 * eps(dtype))
            left = f[np.isfinite(f)]
            condition = np.max(left) / np.min(left) if len(left) else np.inf
            np.testing.assert_allclose(output.condition[i], condition, rtol=4 * eps(dtype))
            nothing_left += len(left) == 0
    assert (nothing_left > 0) == (mode == "drop" or rank == 0)


@each_option
def test_the_counts_are_the_oracles(rank, mode, dtype):
    clear = total = left = 0
    for _, _, output, oracle in batches(dtype, rank, mode):
        sure = oracle.counts_are_clear
        np.testing.assert_array_equal(output.rank[sure], oracle.chosen[sure])
        np.testing.assert_array_equal(output.uncorrected[sure], oracle.left[sure])
        clear, total, left = clear + np.sum(sure), total + len(sure), left + np.sum(oracle.left > 0)
    assert total > clear >= 0.9 * total
    assert (left > 0) == (rank != "all")


@pytest.mark.parametrize("mode", ["reflect", "clip", "drop"])
def test_rank_two_is_a_correction_of_rank_two(mode, dtype):
    """What is added to the inverse, or to the pseudo-inverse of a singular matrix, has rank 2 at
    most wherever at most two eigenvalues needed it; and 2 it is, not seldom."""
    met = of_rank_two = 0
    for n, stack, output, oracle in batches(dtype, 2, mode):
        for kind in ("definite", "singular", "two bad"):
            for i in range(*of_kind(kind).indices(len(stack))):
                if oracle.zero[i] or oracle.left[i] or not oracle.inverse_is_clear[i]:
                    continue
                inverse = np.linalg.pinv(stack[i], rcond=1e-13, hermitian=True)
                size = np.linalg.norm(inverse, 2)
                noise = oracle.tolerance[i] + 10 * n * 2e-16 * oracle.largest[i] * size**2
                E = output.inverse[i] - inverse
                singular_values = [*np.linalg.svd(E, compute_uv=False), 0.0]
                assert singular_values[2] <= noise, (kind, n)
                met, of_rank_two = met + 1, of_rank_two + (singular_values[1] > 2 * noise)
    assert met > 250
    assert of_rank_two > 20


@pytest.mark.parametrize(("rank", "mode"), COVERED)
def test_the_corrected_direction_descends_and_is_bounded(rank, mode, dtype):
    """d = -inverse g has gᵀd ≤ -‖g‖²/max|λ| < 0 and ‖d‖ ≤ ‖g‖/delta, with the bounds' rounding."""
    rng = np.random.default_rng(0)
    for n, stack, output, oracle in batches(dtype, rank, mode):
        for _ in range(3):
            g = rng.normal(size=(len(stack), n))
            d = -np.einsum("bij,bj->bi", output.inverse.astype(np.float64), g)
            gd, gg = np.sum(g * d, axis=1), np.sum(g * g, axis=1)
            assert np.all(gd < 0)
            at_most(gd, -(1 / oracle.largest - 2 * oracle.slack) * gg)
            reach = (1 + 4 * n * eps(dtype)) * np.sqrt(gg) / oracle.delta
            at_most(np.linalg.norm(d, axis=1), reach)


@each_option
def test_whatever_is_dropped_it_never_climbs(rank, mode, dtype):
    rng = np.random.default_rng(1)
    for n, stack, output, _ in batches(dtype, rank, mode):
        g = rng.normal(size=(len(stack), n))
        gd = -np.einsum("bi,bij,bj->b", g, output.inverse.astype(np.float64), g)
        slack = 2 * n * eps(dtype) / np.min(output.corrected, axis=1)
        at_most(gd, slack * np.sum(g * g, axis=1))


def test_drop_is_the_pseudo_inverse(dtype):
    """Of a singular positive semidefinite matrix, by NumPy with the same cut."""
    met = 0
    for _, stack, output, oracle in batches(dtype, "all", "drop"):
        for i in range(*of_kind("singular").indices(len(stack))):
            if oracle.inverse_is_clear[i] and not oracle.zero[i]:
                expected = np.linalg.pinv(stack[i], rcond=eps(dtype) ** 0.5, hermitian=True)
                assert np.linalg.norm(output.inverse[i] - expected) <= oracle.tolerance[i]
                met += 1
    assert met > 80


BY_HAND = {
    ("all", "reflect"): [4, 2, 2, 2, 8],
    ("all", "clip"): [2, 2, 2, 2, 8],
    ("all", "drop"): [np.inf, np.inf, np.inf, 2, 8],
    (2, "reflect"): [np.inf, 2, 2, 2, 8],
    (1, "reflect"): [np.inf, 2, np.inf, 2, 8],
    (0, "clip"): [np.inf, np.inf, np.inf, 2, 8],
    (9, "clip"): [2, 2, 2, 2, 8],
}


def test_by_hand():
    """The eigenvalues of a diagonal matrix are its entries; floor 1/4 of 8 is 2, and 2 will do."""

    @jax.jit
    def run(H):
        outputs = [spectral_correction(H, rank=r, mode=m, floor=0.25) for r, m in BY_HAND]
        return outputs, spectral_inverse(H, rank=1, floor=0.25)

    outputs, inverse = run(jnp.diag(jnp.array([-4.0, -1.0, 1.5, 2.0, 8.0])))
    for ((rank, _), f), output in zip(BY_HAND.items(), outputs, strict=True):
        np.testing.assert_allclose(output.corrected, f, rtol=1e-15)
        np.testing.assert_allclose(output.inverse, np.diag(1 / np.array(f)), atol=1e-16)
        corrected = 3 if rank == "all" else min(rank, 3)
        assert (int(output.rank), int(output.uncorrected)) == (corrected, 3 - corrected)
        assert float(output.condition) == 4
    np.testing.assert_array_equal(inverse, outputs[list(BY_HAND).index((1, "reflect"))].inverse)


def test_of_equal_magnitudes_as_many_are_corrected_as_the_rank_says(dtype):
    """Ties do not make the correction larger: three eigenvalues of -1, of which two are used."""
    H = np.diag(np.array([-1.0, -1.0, -1.0, 1.0, 1.0], dtype))[None]
    output = corrections(H)[2, "reflect"]
    assert (output.rank[0], output.uncorrected[0]) == (2, 1)
    np.testing.assert_allclose(np.sort(np.diag(output.inverse[0])), [0, 1, 1, 1, 1], atol=1e-6)


# Scale


@functools.cache
def at_scale_one(dtype):
    rng = np.random.default_rng(7)
    kinds = [KINDS[name] for name in ("definite", "negative definite", "singular", "two bad")]
    stack = [kind(rng, N) for kind in kinds for _ in range(10)]
    return symmetric_in(dtype, [H / np.max(np.abs(H)) for H in stack])


@pytest.mark.parametrize("power", [-100, -26, -1, 3, 26, 100])
def test_a_power_of_two_scales_it_exactly(power, dtype):
    """c H has the inverse / c, bit for bit; 2^±26 is about 1e±8, and 2^±100 about 1e±30."""
    c = dtype(2.0**power)
    scaled, plain = corrections(at_scale_one(dtype) * c), corrections(at_scale_one(dtype))
    for option in OPTIONS:
        mine, other = scaled[option], plain[option]
        np.testing.assert_array_equal(mine.inverse, other.inverse / c)
        np.testing.assert_array_equal(mine.eigenvalues, other.eigenvalues * c)
        np.testing.assert_array_equal(mine.corrected, other.corrected * c)
        for name in ("rank", "uncorrected", "condition"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


def test_any_scale_will_do(dtype):
    """Other factors, which round the entries by eps: no more than the floor makes of that."""
    ends = [1e-280, 1e280] if dtype == np.float64 else [1e-33, 1e33]
    plain = corrections(at_scale_one(dtype))
    for c in (1e-8, 1e-4, 1e4, 1e8, 1e-30, 1e30, *ends):
        scaled = corrections((at_scale_one(dtype).astype(np.float64) * c).astype(dtype))
        for option in (("all", "reflect"), ("all", "clip"), (2, "reflect"), (2, "clip")):
            actual = scaled[option].inverse.astype(np.float64) * c
            expected = plain[option].inverse.astype(np.float64)
            bound = 4 * N * eps(dtype) ** 0.5 * frobenius(expected)
            assert np.all(frobenius(actual - expected) <= bound), (c, option)


def test_the_ends_of_the_range(dtype):
    """Entries next to overflow and next to underflow: nothing is squared on the way."""
    info, signs = np.finfo(dtype), np.array([1, 1, 1, -1, 0.5])
    for c in (float(info.max) / 16, float(info.tiny) * 16):
        output = corrections(np.diag(c * signs).astype(dtype)[None])[2, "reflect"]
        np.testing.assert_allclose(
            output.inverse[0] * dtype(c), np.diag(1 / np.abs(signs)), rtol=4 * eps(dtype), atol=0
        )


# What is no Hessian


def test_zero_has_the_identity(dtype):
    """And so has a skew matrix, whose symmetric part is zero: in every mode."""
    skew = np.triu(np.ones((N, N)), 1) - np.tril(np.ones((N, N)), -1)
    for output in corrections(np.stack([np.zeros((N, N)), skew]).astype(dtype)).values():
        np.testing.assert_array_equal(output.inverse, [np.eye(N)] * 2)
        np.testing.assert_array_equal(output.corrected, np.ones((2, N)))
        np.testing.assert_array_equal(output.eigenvalues, np.zeros((2, N)))
        np.testing.assert_array_equal(output.condition, [1, 1])
        np.testing.assert_array_equal(output.rank + output.uncorrected, [0, 0])


def test_the_symmetric_part_is_used(dtype):
    H = np.random.default_rng(2).integers(-4, 5, size=(3, N, N)).astype(dtype)
    mine, other = corrections(H), corrections((H + H.swapaxes(1, 2)) / 2)
    for option in OPTIONS:
        np.testing.assert_array_equal(mine[option].inverse, other[option].inverse)


def test_what_is_not_finite_gives_nan_and_spoils_no_neighbour(dtype):
    stack = at_scale_one(dtype)[:4].copy()
    plain = corrections(stack)
    for lane, bad in enumerate((np.nan, np.inf, -np.inf)):
        stack[lane, 1, 2] = bad
    for option, output in corrections(stack).items():
        for name in ("inverse", "eigenvalues", "corrected", "condition"):
            assert np.all(np.isnan(getattr(output, name)[:3])), name
            np.testing.assert_array_equal(getattr(output, name)[3], getattr(plain[option], name)[3])
        np.testing.assert_array_equal(output.rank[:3] + output.uncorrected[:3], 0)


# Transformations and cost


def test_jit_vmap_and_vmap_of_vmap_are_a_loop():
    """One matrix at a time, with jit and without, a stack, and a stack of stacks."""
    stack = jnp.asarray(at_scale_one(jnp.float32)[[0, 10, 12, 20, 30, 35]])
    one = functools.partial(spectral_correction, rank=1, floor=0.01)
    batched = jax.jit(jax.vmap(one))(stack)
    nested = jax.jit(jax.vmap(jax.vmap(one)))(stack.reshape(2, 3, N, N))
    jitted = jax.jit(one)
    assert set(np.asarray(batched.uncorrected)) >= {0, 4}
    for i, H in enumerate(stack):
        single = jitted(H)
        others = [
            jax.tree.map(lambda leaf, i=i: leaf[i], batched),
            jax.tree.map(lambda leaf, i=i: leaf[i // 3, i % 3], nested),
            *([one(H)] if i == 1 else []),
        ]
        for other in others:
            for name, mine, theirs in zip(single._fields, single, other, strict=True):
                scale = np.max(np.abs(mine), where=np.isfinite(mine), initial=0)
                np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_the_floor_may_be_a_batch(dtype):
    """And one out of range, which tracing cannot refuse, gives NaN."""
    H = at_scale_one(dtype)[-1]
    floors = jnp.asarray([1e-5, 1e-2, 0.5, 1.0, 0.0, -1.0, 2.0, np.nan], dtype)
    swept = jax.jit(jax.vmap(lambda floor: spectral_correction(H, rank="all", floor=floor)))(floors)
    values, vectors = np.linalg.eigh(H.astype(np.float64))
    for i, floor in enumerate(np.asarray(floors[:4], np.float64)):
        f, _, _ = corrected_values(values, "all", floor, "reflect")
        tolerance = 4 * N * eps(dtype) / np.min(f)
        np.testing.assert_allclose(1 / swept.corrected[i], 1 / f, rtol=0, atol=tolerance / f[0])
        expected = (vectors / f) @ vectors.T
        np.testing.assert_allclose(swept.inverse[i], expected, rtol=0, atol=tolerance / np.min(f))
    assert np.all(np.isnan(swept.inverse[4:]))
    np.testing.assert_array_equal(swept.rank[4:] + swept.uncorrected[4:], 0)


def test_one_decomposition_and_no_select_over_a_matrix():
    """Decisions are made on eigenvalues; the only product of matrices puts the inverse together."""
    jaxpr = jax.make_jaxpr(spectral_correction)(jnp.eye(7)).jaxpr
    selected = [
        equation.outvars[0].aval.shape
        for equation in equations(jaxpr)
        if equation.primitive.name == "select_n"
    ]
    assert (7,) in selected
    assert (7, 7) not in selected
    assert count(jaxpr, "eigh") == 1
    assert product_shapes(jaxpr) == [((7, 7), (7, 7))]


def test_each_is_one_program():
    """Called as it is, too: options are static, and what is left is compiled once."""
    H, e, column = jnp.eye(3), jnp.ones(3), jnp.ones((3, 1))
    for function in (
        spectral_correction,
        lambda H: correct_inverse(H, e[:1], column, floor=0.25),
        lambda H: wedderburn(H, e),
    ):
        equations = jax.make_jaxpr(function)(H).jaxpr.eqns
        (equation,) = [eqn for eqn in equations if (3, 3) in [v.aval.shape for v in eqn.invars]]
        assert "jaxpr" in equation.params


@pytest.mark.parametrize("rank", [-1, 1.0, 2.5, True, None, "two", "All"])
def test_a_bad_rank_is_refused(rank):
    with pytest.raises(ValueError, match="rank must be a static int of at least 0, or 'all'"):
        spectral_inverse(jnp.eye(2), rank=rank)


def test_a_traced_rank_is_refused():
    with pytest.raises(ValueError, match="rank must be a static int"):
        jax.jit(lambda H, rank: spectral_inverse(H, rank=rank))(jnp.eye(2), 1)


def test_a_rank_of_numpy_is_an_int():
    jax.eval_shape(lambda H: spectral_inverse(H, rank=np.int64(1)), jnp.eye(2))


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.5, np.nan, np.inf, jnp.array([0.1, 0.2])])
def test_a_bad_floor_is_refused(floor):
    for H in (jnp.eye(2), jnp.eye(2, dtype=jnp.float32)):
        with pytest.raises(ValueError, match=r"must be a number in \(0, 1\]"):
            spectral_inverse(H, floor=floor)
        with pytest.raises(ValueError, match=r"must be a number in \(0, 1\]"):
            jax.jit(lambda H: spectral_inverse(H, floor=floor))(H)


def test_a_traced_floor_must_be_one_number():
    with pytest.raises(ValueError, match=r"must be a number in \(0, 1\]"):
        jax.jit(lambda floor: spectral_inverse(jnp.eye(2), floor=floor))(jnp.ones(2))


def test_other_bad_input_is_refused():
    eye = jnp.eye(2)
    with pytest.raises(ValueError, match="one of reflect, clip, drop, but it is 'abs'"):
        spectral_inverse(eye, mode="abs")
    for shape in ((2, 3), (2,), (0, 0), (3, 2, 2)):
        with pytest.raises(ValueError, match="H must be one square matrix"):
            spectral_inverse(jnp.zeros(shape))
    for bad in (jnp.bfloat16, jnp.float16, jnp.int32, complex):
        with pytest.raises(TypeError, match="H must be float32 or float64, but it is"):
            spectral_inverse(jnp.eye(2, dtype=bad))
    with pytest.raises(ValueError, match=r"shapes \(k,\) and \(2, k\)"):
        correct_inverse(eye, jnp.ones(1), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"shapes \(k,\) and \(2, k\)"):
        correct_inverse(eye, jnp.float64(1), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="mode must be one of"):
        correct_inverse(eye, jnp.ones(1), jnp.ones((2, 1)), mode="none")
    with pytest.raises(ValueError, match=r"e must have shape \(2,\)"):
        wedderburn(eye, jnp.ones(3))


# A given inverse


fix_inverse = jax.jit(correct_inverse, static_argnames="mode")


def smallest_pairs(H, dtype, k=None):
    values, vectors = np.linalg.eigh(H)
    order = np.argsort(np.abs(values))[:k]
    return jnp.asarray(values[order], dtype), jnp.asarray(vectors[:, order], dtype)


@pytest.mark.parametrize("mode", ["reflect", "clip", "drop"])
def test_correcting_an_inverse_is_the_spectral_inverse(mode, dtype):
    """With the two pairs that needed it, and the largest magnitude: from inv(H), whose rounding
    stays, to the spectral inverse of H by NumPy and by the library."""
    floor, rng = 0.05, np.random.default_rng(3)
    direct = jax.jit(functools.partial(spectral_inverse, floor=floor, mode=mode))
    for _ in range(10):
        bad = rng.choice([-1, 1], size=2) * rng.uniform(0.005, 0.04, size=2)
        spectrum = np.concatenate([bad, rng.uniform(0.1, 0.9, size=N - 3), [1.0]])
        H = from_spectrum(rng, spectrum * 10.0 ** rng.uniform(-8, 8))
        values, vectors = np.linalg.eigh(H)
        f, _, _ = corrected_values(values, "all", floor, mode)
        expected = (vectors / f) @ vectors.T
        inverse, largest = np.linalg.inv(H), np.max(np.abs(values))
        pairs = smallest_pairs(H, dtype, 2)
        given = jnp.asarray(inverse, dtype)
        actual = fix_inverse(given, *pairs, floor=floor, mode=mode, largest=largest)
        assert actual.dtype == dtype
        size = np.linalg.norm(inverse)
        noise = 4 * N * (eps(dtype) + eps(np.float64) * largest * size) * size
        assert np.linalg.norm(np.asarray(actual, np.float64) - expected) <= noise
        spectral = np.asarray(direct(jnp.asarray(H, dtype)), np.float64)
        noise += 4 * N * eps(dtype) / (floor**2 * largest)
        assert np.linalg.norm(np.asarray(actual, np.float64) - spectral) <= noise


@pytest.mark.parametrize("mode", ["reflect", "clip", "drop"])
def test_correcting_a_pseudo_inverse(mode, dtype):
    """Of a matrix that is singular in whole numbers: what it left out is put in at 1/delta."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        H = gram(rng, N, N - 2)
        largest = np.max(np.linalg.eigvalsh(H))
        inverse = np.linalg.pinv(H, rcond=1e-12, hermitian=True)
        values, vectors = smallest_pairs(H, dtype, 2)
        given = jnp.asarray(inverse, dtype)
        actual = fix_inverse(given, values, vectors, mode=mode, floor=0.01, largest=largest)
        null, put_in = np.asarray(vectors, np.float64), 0 if mode == "drop" else 100 / largest
        error = np.asarray(actual, np.float64) - (inverse + put_in * null @ null.T)
        assert np.linalg.norm(error) <= 4 * N * eps(dtype) * max(put_in, np.linalg.norm(inverse))


def test_pairs_that_need_no_correction_contribute_nothing(dtype):
    """Bit for bit: positive ones, those with a NaN, and all of them where there is no scale."""
    H = random_spd(np.random.default_rng(5), N)
    H_inv = jnp.asarray(np.linalg.inv(H), dtype)
    values, vectors = smallest_pairs(H, dtype)
    np.testing.assert_array_equal(fix_inverse(H_inv, values, vectors), H_inv)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        broken = values.at[0].set(bad)
        np.testing.assert_array_equal(fix_inverse(H_inv, broken, vectors), H_inv)
        broken = vectors.at[1].set(bad)
        np.testing.assert_array_equal(fix_inverse(H_inv, -values, broken), H_inv)
    np.testing.assert_array_equal(fix_inverse(H_inv, 0 * values, vectors), H_inv)
    np.testing.assert_array_equal(fix_inverse(H_inv, -values, vectors, largest=0.0), H_inv)
    np.testing.assert_array_equal(fix_inverse(H_inv, values[:0], vectors[:, :0]), H_inv)
    # One broken pair does not keep another from being used.
    flipped = (-2 * values).at[1:].set(jnp.nan)
    used = np.asarray(fix_inverse(H_inv, flipped, vectors), np.float64)
    v, before = np.asarray(vectors[:, 0], np.float64), np.asarray(H_inv, np.float64)
    expected = before + (0.5 / float(values[0]) - v @ before @ v) * np.outer(v, v)
    np.testing.assert_allclose(used, expected, rtol=0, atol=1e2 * eps(dtype) * np.max(H_inv))


def test_correcting_an_inverse_takes_the_largest_of_the_pairs(dtype):
    """All pairs, or two and the largest magnitude: the same, and no NaN for a floor in range."""
    H = from_spectrum(np.random.default_rng(6), np.array([-0.5, 1e-3, 1, 2, 4.0]))
    H_inv = jnp.asarray(np.linalg.inv(H), dtype)
    values, vectors = smallest_pairs(H, dtype)
    default = fix_inverse(H_inv, values, vectors, floor=0.01)
    given = fix_inverse(H_inv, values[:2], vectors[:, :2], floor=0.01, largest=4.0)
    np.testing.assert_allclose(default, given, rtol=0, atol=10 * eps(dtype) * np.max(H_inv))
    assert float(vectors[:, 0] @ default @ vectors[:, 0]) == pytest.approx(25, rel=1e-3)
    assert np.all(np.isnan(fix_inverse(H_inv, values, vectors, floor=-1.0)))


def test_correcting_an_inverse_multiplies_no_two_matrices():
    jaxpr = jax.make_jaxpr(correct_inverse)(jnp.eye(7), jnp.ones(2), jnp.eye(7)[:, :2]).jaxpr
    assert sorted(product_shapes(jaxpr)) == [((7, 2), (2, 7)), ((7, 7), (7, 2))]
    assert count(jaxpr, "eigh") == 0
