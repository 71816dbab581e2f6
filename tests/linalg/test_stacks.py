"""Inner products and norms of vectors, whatever they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqn.linalg import stacks, vectors
from jaxqn.linalg.numerics import computed_once
from jaxqn.linalg.packing import Packed

KINDS = {
    "short": lambda v: v[:7],
    "flat": lambda v: v,
    "packed": lambda v: Packed(v, []),
    "partly packed": lambda v: Packed(v[:40], [v[40:100].reshape(6, 10), v[100:]]),
    "tree": lambda v: {"a": v[:9].reshape(3, 3), "b": [v[9:200], v[200:]]},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def made_of(kind, dtype, count=3):
    """Vectors of that kind, and the same numbers flat in float64."""
    rows = np.random.default_rng(0).standard_normal((count, 300))
    made = [kind(jnp.asarray(row, dtype)) for row in rows]
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(v)]) for v in made]
    return made, [v.astype(np.float64) for v in flat]


@each_kind
def test_products_of_pairs(kind, dtype):
    """Also of a vector with itself, and of one that several pairs share on either side."""
    (a, b, c), (u, v, w) = made_of(kind, dtype)
    found = vectors.products((a, b), (c, b), (b, b), (a, c), (c, a))
    expected = np.array([u @ v, w @ v, v @ v, u @ w, w @ u])
    tolerance = 10 * jnp.finfo(dtype).eps * np.max(np.abs(u)) * np.max(np.abs(v)) * u.size
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=float(tolerance))
    assert all(product.dtype == dtype for product in found)


@each_kind
def test_products_of_a_batch_are_those_of_its_members(kind):
    (a, b, _), _ = made_of(kind, jnp.float64)

    def products(scale):
        scaled = jax.tree.map(lambda leaf: scale * leaf, a)
        return jnp.stack(vectors.products((scaled, b), (scaled, scaled)))

    scales = jnp.array([1.0, 2.0, -3.0])
    singles = np.stack([products(scale) for scale in scales])
    np.testing.assert_allclose(jax.vmap(products)(scales), singles, rtol=1e-12, atol=1e-12)


@each_kind
def test_largest_magnitudes(kind, dtype):
    made, flat = made_of(kind, dtype)
    found = np.stack(vectors.inf_norms(*made))
    np.testing.assert_array_equal(found, [np.max(np.abs(v)) for v in flat])
    poisoned = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), made[1])
    found = np.stack(vectors.inf_norms(made[0], poisoned))
    np.testing.assert_array_equal(np.isnan(found), [False, True])


@pytest.mark.parametrize("rows", [3, 40])
@each_kind
def test_inner_products_with_rows_and_combinations_of_rows(kind, rows, dtype):
    """Coefficients for a vector, and for a stack; few rows and many."""
    made, flat = made_of(kind, dtype, rows)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    S, c = np.stack(flat), np.linspace(-1, 1, 2 * rows).reshape(2, rows)
    found = stacks.dots(stack, made[1])
    assert found.dtype == dtype
    tolerance = dict(rtol=1e3 * float(jnp.finfo(dtype).eps), atol=1e3 * float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(found, S @ S[1], **tolerance)
    several = stacks.combine(jnp.asarray(c, dtype), stack)
    for i in range(2):
        alone = stacks.combine(jnp.asarray(c[i], dtype), stack, made[0])
        for combination in (alone, stacks.row(several, i)):
            leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(combination)]
            np.testing.assert_allclose(np.concatenate(leaves), c[i] @ S, **tolerance)


def test_a_combination_of_narrow_rows_is_wide():
    stack = jnp.ones((3, 5), jnp.bfloat16)
    assert stacks.combine(jnp.ones(3, jnp.float32), stack).dtype == jnp.float32
    assert stacks.combine(jnp.ones((2, 3), jnp.float32), stack).dtype == jnp.float32
    assert stacks.combine(jnp.ones(3), stack, jnp.ones(5, jnp.float64)).dtype == jnp.float64


def test_flags_are_what_they_were():
    flags = [jnp.array(flag) for flag in (True, False, True)]
    assert jax.jit(computed_once)(*flags).tolist() == [True, False, True]
