"""The formulas against their textbook forms, and the laws every update keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from problems import by_name
from programs import product_shapes
from scipy import optimize

from jaxqn import (
    bfgs_update,
    broyden_update,
    dfp_update,
    osbfgs_update,
    rank_one,
    rank_two,
    sherman_morrison,
    sr1_update,
    ssbfgs_update,
    ssbroyden_update,
)

N = 6
PHIS = (0.0, 0.3, 0.5, 0.7, 1.0, 1.5, -0.02)

bfgs, dfp, sr1 = bfgs_update, dfp_update, sr1_update
ssbfgs, osbfgs, ssbroyden = ssbfgs_update, osbfgs_update, ssbroyden_update


def member(phi):
    return lambda H, s, y: broyden_update(H, s, y, phi=jnp.asarray(phi, H.dtype))


UPDATES = {
    "bfgs": (bfgs, oracles.bfgs),
    "dfp": (dfp, oracles.dfp),
    "sr1": (sr1, oracles.sr1),
    "ssbfgs": (ssbfgs, oracles.ssbfgs),
    "osbfgs": (osbfgs, oracles.osbfgs),
    "ssbroyden": (ssbroyden, oracles.ssbroyden),
    **{f"broyden({phi})": (member(phi), oracles.member(phi)) for phi in PHIS},
}
KEEPS_DEFINITE = [name for name in UPDATES if name not in ("sr1", "broyden(-0.02)")]
NEEDS_CURVATURE = [name for name in UPDATES if name != "sr1"]
FORMULAS = {
    "bfgs": bfgs_update,
    "dfp": dfp_update,
    "sr1": sr1_update,
    "broyden": functools.partial(broyden_update, phi=0.3),
    "ssbfgs": ssbfgs_update,
    "osbfgs": osbfgs_update,
    "ssbroyden": ssbroyden_update,
}
CHEAP = {
    **FORMULAS,
    "ssbfgs": functools.partial(ssbfgs_update, sBs=1.0),
    "osbfgs": functools.partial(osbfgs_update, sBs=1.0),
    "ssbroyden": functools.partial(ssbroyden_update, sBs=1.0),
    "sherman_morrison": sherman_morrison,
}

each_update = pytest.mark.parametrize("name", UPDATES)


def tolerance(dtype, c=1.0):
    """Relative error to expect of a few operations on well-conditioned numbers."""
    return c * 1e3 * float(jnp.finfo(dtype).eps)


def cases(seeds=8, n=N):
    """Random ``(H, s, y)`` with sᵀy > 0, over several scales of the step."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        H = oracles.random_spd(rng, n)
        s, y = oracles.random_pair(rng, n)
        yield H, s * 10.0 ** (seed % 5 - 2), y * 10.0 ** (seed % 5 - 2)


def cast(dtype, *arrays):
    return [jnp.asarray(array, dtype) for array in arrays]


def assert_close(actual, expected, tol):
    """Error at most ``tol``, relative to the largest entry expected."""
    error = np.max(np.abs(np.asarray(actual, np.float64) - expected))
    assert error <= tol * np.max(np.abs(expected))


@each_update
def test_update_is_its_product_form(name, dtype):
    update, oracle = UPDATES[name]
    for H, s, y in cases():
        actual = update(*cast(dtype, H, s, y))
        assert actual.dtype == dtype
        assert_close(actual, oracle(H, s, y), tolerance(dtype))


@each_update
def test_secant_equation(name, dtype):
    """To the rounding of the product H₊ y, the terms of which cancel where H₊ is large."""
    update, _ = UPDATES[name]
    for case in cases():
        H, s, y = cast(dtype, *case)
        new, s, y = (np.asarray(array, np.float64) for array in (update(H, s, y), s, y))
        error = np.max(np.abs(new @ y - s))
        assert error <= tolerance(dtype, 0.03) * np.max(np.abs(new) @ np.abs(y))


@each_update
def test_symmetry(name, dtype):
    update, _ = UPDATES[name]
    for case in cases():
        H = np.asarray(update(*cast(dtype, *case)), np.float64)
        assert_close(H.T, H, tolerance(dtype))


@pytest.mark.parametrize("name", KEEPS_DEFINITE)
def test_positive_definite_stays_so(name):
    """Over 60 updates in a row, each with a pair of another random Hessian."""
    update, _ = UPDATES[name]
    rng = np.random.default_rng(0)
    H = oracles.random_spd(rng, N)
    for _ in range(60):
        H = np.asarray(update(H, *oracles.random_pair(rng, N)))
        smallest, *_, largest = np.linalg.eigvalsh((H + H.T) / 2)
        assert smallest > 1e-12 * largest


def test_sr1_may_become_indefinite():
    """H y = y overshoots s = y/2 along y alone; v.y = -1/2, so nothing is refused."""
    H, y = np.eye(2), np.array([1.0, 0.0])
    expected = [[-0.5, 0.0], [0.0, 1.0]]
    np.testing.assert_allclose(sr1(H, -y / 2, y), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("inverse", "direct"), [(bfgs, dfp), (dfp, bfgs), (sr1, sr1)], ids=["bfgs", "dfp", "sr1"]
)
def test_duality(inverse, direct):
    """The inverse of an updated H is the dual update of B = H⁻¹, with s and y swapped."""
    for H, s, y in cases():
        B = np.linalg.inv(H)
        B = (B + B.T) / 2
        product = np.asarray(inverse(H, s, y)) @ np.asarray(direct(B, y, s))
        scale = np.linalg.norm(inverse(H, s, y)) * np.linalg.norm(direct(B, y, s))
        assert np.max(np.abs(product - np.eye(N))) <= 1e-12 * max(scale, 1)


@pytest.mark.parametrize("phi", PHIS)
def test_broyden_ends_and_line(phi):
    """phi = 0 is DFP, phi = 1 is BFGS, and the rest lies on the line through them."""
    for H, s, y in cases():
        line = (1 - phi) * np.asarray(dfp(H, s, y)) + phi * np.asarray(bfgs(H, s, y))
        assert_close(member(phi)(H, s, y), line, tolerance(np.float64))


def test_broyden_takes_a_plain_number():
    H, s, y = next(cases())
    assert_close(broyden_update(H, s, y, phi=0.3), oracles.broyden(H, s, y, 0.3), 1e-12)
    assert_close(broyden_update(H, s, y, phi=1), oracles.bfgs(H, s, y), 1e-12)


@pytest.mark.parametrize("phi", [-1e-6, -1e-30, 0.0, 1e-6])
def test_broyden_is_continuous_where_its_form_changes(phi):
    for H, s, y in cases():
        assert_close(member(phi)(H, s, y), oracles.broyden(H, s, y, phi), 1e-12)


def test_self_scaling_in_every_regime():
    """Steps scaled up and down, so that every branch of the published parameters is taken."""
    rng, seen = np.random.default_rng(3), set()
    for _ in range(200):
        H, (s, y) = oracles.random_spd(rng, N, 1e3), oracles.random_pair(rng, N)
        H = H * 10.0 ** rng.uniform(-2, 2)
        phi, tau = oracles.ssbroyden_parameters(H, s, y)
        b = s @ np.linalg.solve(H, s) / (y @ s)
        seen.add((phi < 1, b > 1, tau < 0.99, y @ H @ y < b * (s @ y)))
        assert_close(ssbroyden(H, s, y), oracles.ssbroyden(H, s, y), 1e-9)
        assert_close(ssbfgs(H, s, y), oracles.ssbfgs(H, s, y), 1e-9)
        assert_close(osbfgs(H, s, y), oracles.osbfgs(H, s, y), 1e-9)
    assert {(True, False, True, False), (False, True, True, True)} <= seen
    assert any(b_above and not h_below for _, b_above, _, h_below in seen)


@pytest.mark.parametrize("update", [ssbfgs_update, osbfgs_update, ssbroyden_update])
def test_self_scaled_updates_take_the_known_curvature_of_the_step(update):
    """After s = -alpha H g, sᵀB s = -alpha sᵀg saves the linear solve."""
    rng = np.random.default_rng(4)
    H, g, alpha = oracles.random_spd(rng, N), rng.normal(size=N), 0.7
    s = -alpha * H @ g
    y = oracles.random_spd(rng, N, 10.0) @ s
    jitted = jax.jit(update)
    assert_close(jitted(H, s, y, sBs=-alpha * s @ g), jitted(H, s, y), 1e-11)


@pytest.mark.parametrize("name", ["ssbfgs", "osbfgs", "ssbroyden"])
def test_self_scaled_updates_have_limits(name):
    """n = 1, where no volume is left to preserve, and a = 0, where H already maps y to s."""
    update, _ = UPDATES[name]
    one = np.ones(1)
    assert_close(update(np.array([[3.0]]), one, 2 * one), np.array([[0.5]]), 1e-14)
    H = oracles.random_spd(np.random.default_rng(5), N)
    y = np.arange(1.0, N + 1)
    assert_close(update(H, H @ y, y), H, 1e-6)


@each_update
def test_zero_pair_changes_nothing(name, dtype):
    """The zero-pair law, bit for bit; also with an H that no update would leave so by luck."""
    update, _ = UPDATES[name]
    zero = jnp.zeros(N, dtype)
    for H, _, _ in cases(3):
        H = jnp.asarray(H + np.triu(np.ones((N, N))) / 3, dtype)
        np.testing.assert_array_equal(update(H, zero, zero), H)


@each_update
def test_useless_pairs_change_nothing(name, dtype):
    update, _ = UPDATES[name]
    (H, s, y) = cast(dtype, *next(cases()))
    zero, spoilt = jnp.zeros_like(s), s.at[2].set
    useless = [(zero, y), (s, zero)] if name in NEEDS_CURVATURE else [(H @ y, y)]
    useless += [(spoilt(bad), y) for bad in (jnp.nan, jnp.inf, -jnp.inf)]
    useless += [(s, y.at[2].set(bad)) for bad in (jnp.nan, jnp.inf, -jnp.inf)]
    useless += [(spoilt(jnp.nan), y.at[0].set(jnp.inf))]
    if name in NEEDS_CURVATURE:
        useless += [(s, -y), (-s, y)]
    for bad_s, bad_y in useless:
        np.testing.assert_array_equal(update(H, bad_s, bad_y), H)


@pytest.mark.parametrize("name", NEEDS_CURVATURE)
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e4, 1e12])
def test_the_curvature_test_is_relative(name, scale, dtype):
    """Only the angle between s and y decides, at any scale."""
    update, _ = UPDATES[name]
    eps = float(np.finfo(dtype).eps)
    H, s = jnp.eye(2, dtype=dtype), jnp.asarray([scale, 0.0], dtype)
    for cosine, used in ((0.1 * eps, False), (100 * eps**0.5, True), (-1.0, False)):
        y = jnp.asarray([cosine, np.sqrt(1 - cosine**2)], dtype)
        assert bool(jnp.any(update(H, s, y) != H)) is used


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_sr1_guard_is_relative(scale, dtype):
    """|vᵀy| is compared with ‖v‖ ‖y‖ (N&W eq. 6.26), whatever their lengths."""
    eps = float(np.finfo(dtype).eps)
    H, y = jnp.zeros((2, 2), dtype), jnp.asarray([1.0, 0.0], dtype)
    for cosine, used in ((0.1 * eps, False), (100 * eps**0.5, True)):
        s = jnp.asarray([scale * cosine, scale], dtype)  # v = s, since H = 0
        assert bool(jnp.any(sr1(H, s, y) != H)) is used


@pytest.mark.parametrize("power", [-26, -1, 3, 26])
@each_update
def test_scaling_the_objective_scales_h(name, power, dtype):
    """f → c f: y → c y, H → H/c. Exact for a power of two: 2^±26 is about 1e±8."""
    update, _ = UPDATES[name]
    c = 2.0**power
    for case in cases(4):
        H, s, y = cast(dtype, *case)
        np.testing.assert_array_equal(update(H / c, s, c * y), update(H, s, y) / c)


@each_update
def test_change_of_variables(name):
    """x → T x: s → T s, y → T⁻ᵀ y, H → T H Tᵀ, and the update commutes with it."""
    update, _ = UPDATES[name]
    for seed, (H, s, y) in enumerate(cases(4)):
        T = np.eye(N) + 0.3 * np.random.default_rng(seed).normal(size=(N, N))
        mapped = update(T @ H @ T.T, T @ s, np.linalg.solve(T.T, y))
        assert_close(mapped, T @ np.asarray(update(H, s, y)) @ T.T, 1e-9)


def test_sr1_recovers_the_inverse_of_a_quadratic():
    """After n independent steps H = Q⁻¹ (N&W theorem 6.1), definite or not."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        Q = oracles.random_spd(rng, N, 50.0)
        Q = Q - 0.5 * np.eye(N) if seed % 2 else Q
        H = np.eye(N)
        for s in rng.normal(size=(N, N)):
            H = np.asarray(sr1(H, s, Q @ s))
        assert_close(H, np.linalg.inv(Q), 1e-10)


@pytest.mark.parametrize("name", ["bfgs", "dfp", "broyden(0.3)"])
def test_exact_steps_recover_the_inverse_of_a_quadratic(name):
    """With exact line searches the Broyden class ends in n steps (N&W theorem 6.4)."""
    update, _ = UPDATES[name]
    rng = np.random.default_rng(7)
    Q = oracles.random_spd(rng, N, 50.0)
    x, H = rng.normal(size=N), np.eye(N)
    for _ in range(N):
        g = Q @ x
        d = -H @ g
        s = -(g @ d) / (d @ Q @ d) * d
        H, x = np.asarray(update(H, s, Q @ s)), x + s
    assert_close(H, np.linalg.inv(Q), 1e-8)
    assert np.linalg.norm(Q @ x) < 1e-9


# A golden trajectory


@functools.cache
def rosenbrock_trajectory():
    """Steps and gradient changes along SciPy's own path on Rosenbrock's function."""
    points = [by_name("rosenbrock").x0]
    optimize.minimize(
        optimize.rosen, points[0], jac=optimize.rosen_der, method="BFGS", callback=points.append
    )
    gradients = [optimize.rosen_der(x) for x in points]
    return list(zip(np.diff(points, axis=0), np.diff(gradients, axis=0), strict=True))


def test_the_trajectory_is_long_enough():
    assert len(rosenbrock_trajectory()) >= 25


@pytest.mark.parametrize("name", ["bfgs", "sr1"])
def test_golden_trajectory_beside_scipy(name):
    """SciPy's own update classes, push by push, and B H = I all the way."""
    update, direct = {"bfgs": (bfgs, dfp), "sr1": (sr1, sr1)}[name]
    strategy = {"bfgs": optimize.BFGS, "sr1": optimize.SR1}[name](init_scale=1.0)
    strategy.initialize(2, "inv_hess")
    H, B = np.eye(2), np.eye(2)
    for s, y in rosenbrock_trajectory():
        H, B = update(H, s, y), direct(B, y, s)
        strategy.update(s, y)
        assert_close(H, strategy.get_matrix(), 1e-9)
        np.testing.assert_allclose(H @ B, np.eye(2), atol=1e-7)


# Transformations and cost


@pytest.mark.parametrize("name", FORMULAS)
def test_vmap_is_a_loop(name):
    update = FORMULAS[name]
    cases_ = list(cases(4))
    cases_[1] = (cases_[1][0], cases_[1][1], -cases_[1][2])  # one refused lane
    batch = [np.stack(column) for column in zip(*cases_, strict=True)]
    batched, single = jax.jit(jax.vmap(update))(*batch), jax.jit(update)
    for lane, case in zip(batched, cases_, strict=True):
        assert_close(lane, np.asarray(single(*case)), 1e-13)


@pytest.mark.parametrize("name", FORMULAS)
def test_compiling_changes_rounding_only(name):
    update = FORMULAS[name]
    H, s, y = next(cases())
    with jax.disable_jit():
        step_by_step = np.asarray(update(H, s, y))
    assert_close(update(H, s, y), step_by_step, 1e-13)


@pytest.mark.parametrize("name", [*CHEAP, "rank_one", "rank_two"])
def test_a_correction_is_one_program(name):
    """Called as it is, too: then it makes one pass over the matrix, not one per operation."""
    correct = {**CHEAP, "rank_one": rank_one, "rank_two": rank_two}[name]
    H, s = jnp.eye(7), jnp.ones(7)
    arguments = (H, s) if name == "rank_one" else (H, s, s)
    (equation,) = jax.make_jaxpr(correct)(*arguments).jaxpr.eqns
    assert "jaxpr" in equation.params


@pytest.mark.parametrize("name", CHEAP)
def test_no_matrix_product(name):
    """O(n²): every product in the program has a vector in it."""
    H, s = jnp.eye(7), jnp.ones(7)
    products = product_shapes(jax.make_jaxpr(CHEAP[name])(H, s, s).jaxpr)
    assert products
    assert ((7, 7), (7, 7)) not in products


# The small corrections


def test_rank_one_and_rank_two(dtype):
    rng = np.random.default_rng(0)
    H, u, v = rng.normal(size=(N, N)), rng.normal(size=N), rng.normal(size=N)
    one = rank_one(*cast(dtype, H, u), -0.7)
    two = rank_two(*cast(dtype, H, u, v))
    assert one.dtype == two.dtype == dtype
    assert_close(one, H - 0.7 * np.outer(u, u), tolerance(dtype))
    assert_close(two, H + np.outer(u, v) + np.outer(v, u), tolerance(dtype))
    default = np.asarray(rank_one(*cast(dtype, H, u)))
    assert_close(default, H + np.outer(u, u), tolerance(dtype))
    zero = jnp.zeros(N, dtype)
    np.testing.assert_array_equal(rank_one(jnp.asarray(H, dtype), zero), jnp.asarray(H, dtype))
    np.testing.assert_array_equal(rank_two(jnp.asarray(H, dtype), zero, zero), one.dtype.type(H))


_sherman_morrison = jax.jit(sherman_morrison)


def test_sherman_morrison_is_the_inverse(dtype):
    """For matrices that are not symmetric, too."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        A = np.eye(N) + 0.3 * rng.normal(size=(N, N))
        u, v = rng.normal(size=N), 0.1 * rng.normal(size=N)
        actual = _sherman_morrison(*cast(dtype, np.linalg.inv(A), u, v))
        expected = np.linalg.inv(A + np.outer(u, v))
        assert actual.dtype == dtype
        assert_close(actual, expected, tolerance(dtype, np.linalg.cond(A + np.outer(u, v))))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_sherman_morrison_refuses_a_singular_sum(scale, dtype):
    """A + u vᵀ without an inverse leaves A⁻¹ as it was, at any scale of u against v."""
    rng = np.random.default_rng(1)
    A_inv = jnp.asarray(oracles.random_spd(rng, N), dtype)
    u = jnp.asarray(rng.normal(size=N), dtype)
    v = -u / (u @ A_inv @ u)
    np.testing.assert_array_equal(_sherman_morrison(A_inv, scale * u, v / scale), A_inv)
    broken = u.at[0].set(jnp.nan)
    np.testing.assert_array_equal(_sherman_morrison(A_inv, broken, v), A_inv)


def test_sherman_morrison_tolerance_is_the_callers():
    e, A_inv = jnp.array([1.0, 0.0]), jnp.eye(2)
    nearly = -(1 - 1e-6) * e
    assert float(sherman_morrison(A_inv, e, nearly)[0, 0]) == pytest.approx(1e6)
    np.testing.assert_array_equal(sherman_morrison(A_inv, e, nearly, rtol=1e-5), A_inv)
