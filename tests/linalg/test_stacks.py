"""Inner products and norms of vectors, whatever they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqn.linalg import vectors
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


def test_flags_are_what_they_were():
    flags = [jnp.array(flag) for flag in (True, False, True)]
    assert jax.jit(computed_once)(*flags).tolist() == [True, False, True]
