"""Broyden's updates against NumPy's inverse of the direct update, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqn import broyden_bad_update, broyden_good_update
from jaxqn.quasi_newton import broyden_jacobian, secant_memory

UPDATES = {"good": broyden_good_update, "bad": broyden_bad_update}
each_update = pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)


def pair(rng, n=5):
    """A well-conditioned Jacobian, a step and a change of F near J s."""
    J = np.eye(n) * 3 + rng.normal(size=(n, n))
    s = rng.normal(size=n)
    return J, s, J @ s + 0.3 * rng.normal(size=n)


def direct_good(J, s, y):
    """Broyden (1965), method 1, on the Jacobian itself."""
    return J + np.outer(y - J @ s, s) / (s @ s)


def test_the_good_update_is_the_inverse_of_the_direct_one(rng):
    J, s, y = pair(rng)
    H = broyden_good_update(jnp.asarray(np.linalg.inv(J)), jnp.asarray(s), jnp.asarray(y))
    np.testing.assert_allclose(H, np.linalg.inv(direct_good(J, s, y)), rtol=1e-11, atol=1e-13)


def test_the_bad_update_changes_the_inverse_least(rng):
    """Against the solution of the least-squares problem min ‖dH‖ with (H + dH) y = s."""
    J, s, y = pair(rng, 4)
    H = np.linalg.inv(J)
    constraint = np.kron(np.eye(4), y[None])
    change = np.linalg.lstsq(constraint, s - H @ y, rcond=None)[0].reshape(4, 4)
    found = broyden_bad_update(jnp.asarray(H), jnp.asarray(s), jnp.asarray(y))
    np.testing.assert_allclose(found, H + change, rtol=1e-11, atol=1e-13)


@each_update
def test_the_secant_equation_holds(rng, update, dtype):
    J, s, y = pair(rng)
    H, s, y = (jnp.asarray(a, dtype) for a in (np.linalg.inv(J), s, y))
    rtol = 1e-4 if dtype == jnp.float32 else 1e-11
    found = update(H, s, y)
    assert found.dtype == dtype
    np.testing.assert_allclose(found @ y, s, rtol=rtol, atol=rtol)


@each_update
@pytest.mark.parametrize(
    ("s", "y"),
    [
        ([0.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [1.0, 0.0]),
        ([1.0, 0.0], [0.0, 0.0]),
        ([np.nan, 1.0], [1.0, 1.0]),
        ([1.0, 1.0], [np.inf, 1.0]),
    ],
)
def test_an_unusable_pair_changes_no_entry(update, s, y):
    H = jnp.array([[2.0, -0.0], [1.0, 3.0]])
    found = update(H, jnp.array(s), jnp.array(y))
    assert np.asarray(found).tobytes() == np.asarray(H).tobytes()


def test_the_good_update_refuses_a_singular_jacobian():
    """Where sᵀH y = 0, J₊ would have no inverse."""
    H = jnp.eye(2)
    assert jnp.array_equal(broyden_good_update(H, jnp.array([1.0, 0]), jnp.array([0.0, 1])), H)


@each_update
def test_updates_scale_with_their_units(rng, update):
    """A change of units of x and F by powers of two changes no digit."""
    J, s, y = pair(rng)
    H = np.linalg.inv(J)
    found = update(jnp.asarray(H), jnp.asarray(s), jnp.asarray(y))
    scaled = update(jnp.asarray(H * 2.0**70), jnp.asarray(s * 2.0**40), jnp.asarray(y * 2.0**-30))
    np.testing.assert_array_equal(scaled, found * 2.0**70)


@each_update
def test_updates_map_over_a_batch(rng, update):
    pairs = [pair(rng) for _ in range(3)]
    H, s, y = (jnp.asarray(np.stack(part)) for part in zip(*pairs, strict=True))
    H = jnp.linalg.inv(H)
    together = jax.vmap(update)(H, s, y)
    np.testing.assert_allclose(together[1], update(H[1], s[1], y[1]), rtol=1e-12)


@pytest.mark.parametrize("bad", [False, True], ids=UPDATES)
def test_a_dense_state_holds_a_jacobian_and_its_inverse(rng, bad):
    qn = broyden_jacobian(bad=bad)
    J, *_ = pair(rng)
    state = qn.init(jnp.zeros(5), jnp.asarray(J))
    H = jnp.linalg.inv(jnp.asarray(J))
    for _ in range(4):
        _, s, y = pair(rng)
        state = qn.update(state, jnp.asarray(s), jnp.asarray(y))
        H = UPDATES["bad" if bad else "good"](H, jnp.asarray(s), jnp.asarray(y))
        np.testing.assert_allclose(state.H, H, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(state.J @ state.H, np.eye(5), atol=1e-7)
        np.testing.assert_allclose(state.J @ s, y, rtol=1e-8)


@pytest.mark.parametrize("bad", [False, True], ids=UPDATES)
def test_a_dense_update_over_measured_unknowns_is_that_of_scaled_ones(rng, bad):
    """Of z = D x: D H and J D⁻¹ are updated by D s and y."""
    qn = broyden_jacobian(bad=bad)
    J, s, y = (jnp.asarray(part) for part in pair(rng))
    D = jnp.asarray(2.0 ** np.arange(-20, 30, 10))
    plain = qn.update(qn.init(jnp.zeros(5), J), s, y, D)
    scaled = qn.update(qn.init(jnp.zeros(5), J / D[None]), D * s, y)
    np.testing.assert_allclose(D[:, None] * plain.H, scaled.H, rtol=1e-6)
    np.testing.assert_allclose(plain.J / D[None], scaled.J, rtol=1e-6)
    np.testing.assert_allclose(plain.J @ s, y, rtol=1e-8)


def test_a_singular_jacobian_is_regularised():
    qn = broyden_jacobian()
    J = jnp.array([[1.0, 2.0], [2.0, 4.0]])
    state = qn.renew(qn.init(jnp.zeros(2)), J)
    assert np.all(np.isfinite(state.H))
    F = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(J @ (state.H @ F), F, rtol=1e-6)


def of_the_newest_pairs(form, gamma, pairs, F):
    """H F by the recursion of the formulas, or Anderson's by least squares."""
    n = F.size
    if form == "anderson":
        S, Y = (np.stack(part, axis=1) for part in zip(*pairs, strict=True))
        w = np.linalg.lstsq(Y, F, rcond=None)[0]
        return S @ w + gamma * (F - Y @ w)
    H = jnp.asarray(gamma * np.eye(n))
    for s, y in pairs:
        H = UPDATES[form](H, jnp.asarray(s), jnp.asarray(y))
    return H @ F


@pytest.mark.parametrize("form", ["good", "bad", "anderson"])
def test_limited_memory_is_the_recursion_over_its_newest_pairs(rng, form):
    """While it fills, and after it has overwritten pairs."""
    n, m = 7, 3
    qn = secant_memory(m, form=form, gamma=0.5)
    J = np.eye(n) * 2 + 0.3 * rng.normal(size=(n, n))
    like = {"a": jnp.zeros(4), "b": jnp.zeros((3, 1))}

    def tree(v):
        return {"a": jnp.asarray(v[:4]), "b": jnp.asarray(v[4:, None])}

    state, pairs = qn.init(like), []
    update, apply = jax.jit(qn.update), jax.jit(qn.apply)
    for _ in range(5):
        s = rng.normal(size=n)
        y = J @ s + 0.1 * rng.normal(size=n)
        pairs.append((s, y))
        state = update(state, tree(s), tree(y))
        F = rng.normal(size=n)
        found = apply(state, tree(F))
        flat = np.concatenate([found["a"], found["b"][:, 0]])
        expected = of_the_newest_pairs(form, 0.5, pairs[-m:], F)
        np.testing.assert_allclose(flat, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("form", ["good", "bad", "anderson"])
def test_limited_memory_keeps_what_a_zero_pair_finds(rng, form):
    qn = secant_memory(3, form=form)
    v = jnp.asarray(rng.normal(size=4))
    state = qn.update(qn.init(v), v, 2 * v)
    again = qn.update(state, 0 * v, 0 * v)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(old, new)
