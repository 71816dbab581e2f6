"""A deep-equilibrium layer of dimension 1e4: its fixed point, and the derivative of a loss of it.

z = tanh(z Wᵀ + b + 0.3 mean(z)) for 20 tokens of 500 features, W Gaussian with a spectral radius of
about ``gain``, and a linear loss of z, differentiated by W and b through the implicit function
theorem. Every solver is to reach max|g(z) − z| <= 1e-8. The gradient is compared with that at the
fixed point next to the solver's own, by Newton's method and GMRES of SciPy to 1e-13.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.products import Counts
from tests.benchmarks.timing import compiled, interleaved

TOL = 1e-8
MEMORY = 10
ROUNDS = 7


def layer(z, W, b):
    """g(z)."""
    return jnp.tanh(z @ W.T + b + 0.3 * jnp.mean(z, axis=0, keepdims=True))


def parameters(tokens=20, features=500, gain=1.5, seed=0):
    """z0, W, b, and the weights of the loss."""
    rng = np.random.default_rng(seed)
    W = jnp.asarray(gain * rng.normal(size=(features, features)) / features**0.5)
    b, weights = (jnp.asarray(rng.normal(size=(tokens, features))) for _ in range(2))
    return jnp.zeros((tokens, features)), W, b, weights


def jaxqn_layer(method):
    """``jaxqn.fixed_point``, as ``g -> ((z0, W, b) -> z)``."""
    from jaxqn import fixed_point

    def of(g):
        def solve(z0, W, b):
            return fixed_point(g, z0, (W, b), method=method, memory=MEMORY, tol=TOL).x

        return solve

    return of


def jaxopt_layer(name, **options):
    """The same of jaxopt, whose test is ‖F‖, here about four times sqrt(n) max|F|."""
    import jaxopt

    def of(g):
        def fun(z, W, b):
            return z - g(z, W, b) if name == "Broyden" else g(z, W, b)

        def solve(z0, W, b):
            tol = TOL * z0.size**0.5 / 4
            kind = getattr(jaxopt, name)
            return kind(fun, history_size=MEMORY, maxiter=500, tol=tol, **options).run(z0, W, b)[0]

        return solve

    return of


def contestants():
    """Every solver by name, those that are installed."""
    names = ("lbroyden", "anderson", "newton-krylov")
    found = {f"jaxqn {name}": jaxqn_layer(name) for name in names}
    if importlib.util.find_spec("jaxopt"):
        from jaxopt.linear_solve import solve_gmres

        tight = functools.partial(solve_gmres, tol=1e-10, restart=50)
        for short, name in (("Broyden", "Broyden"), ("Anderson", "AndersonAcceleration")):
            found[f"jaxopt {short}"] = jaxopt_layer(name)
            found[f"jaxopt {short} + gmres"] = jaxopt_layer(name, implicit_diff_solve=tight)
    return found


def loss_of(solve, z0, weights):
    """``(W, b) -> loss`` and z beside it."""

    def loss(W, b):
        z = solve(z0, W, b)
        return jnp.vdot(weights, z), z

    return loss


def reference(z, W, b, weights):
    """The fixed point next to z, and the gradient of the loss there."""
    import scipy.sparse.linalg as sp

    z, shape, n = np.asarray(z), z.shape, z.size
    push = jax.jit(lambda z, v: jax.jvp(lambda z: layer(z, W, b), (z,), (v,))[1] - v)
    pull = jax.jit(lambda z, w: jax.vjp(lambda z: layer(z, W, b), z)[1](w)[0] - w)

    def solved(product, right, rtol):
        def of_vector(v):
            return np.array(product(z, v.reshape(shape))).ravel()

        A = sp.LinearOperator((n, n), of_vector, dtype=z.dtype)
        return sp.gmres(A, np.ravel(right), rtol=rtol, restart=200, maxiter=20)[0].reshape(shape)

    for _ in range(4):
        z = z - solved(push, layer(z, W, b) - z, 1e-8)
    adjoint = solved(pull, weights, 1e-13)
    return z, jax.vjp(lambda W, b: layer(z, W, b), W, b)[1](-adjoint)


def far_apart(found, exact):
    """‖found − exact‖/‖exact‖ of two trees."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    over = sum(float(jnp.sum(b**2)) for _, b in pairs)
    return (sum(float(jnp.sum((a - b) ** 2)) for a, b in pairs) / over) ** 0.5


def counted(kind, z0, W, b, weights):
    """Evaluations of a solve; of its derivative evaluations, products J v and products w J."""
    counts = Counts(TOL)
    solve = kind(counts.of(layer, lambda value, z: value - z))
    jax.block_until_ready(jax.jit(solve)(z0, W, b))
    jax.effects_barrier()
    forward = counts.until_small, counts.evaluations, counts.products + counts.transposed
    counts.clear()
    slope = jax.jit(jax.grad(loss_of(solve, z0, weights), (0, 1), has_aux=True))
    jax.block_until_ready(slope(W, b))
    jax.effects_barrier()
    products = counts.products + counts.transposed - forward[2]
    return forward[0], forward[2], counts.evaluations - forward[1], products


def equilibrium(gains=(0.6, 0.9, 1.5)) -> dict:
    """Counts, errors and times of all, per gain."""
    found = {}
    for gain in gains:
        z0, W, b, weights = parameters(gain=gain)
        kinds, rows, solves, slopes = contestants(), {}, {}, {}
        for name, kind in kinds.items():
            solve = kind(layer)
            slope = jax.grad(loss_of(solve, z0, weights), (0, 1), has_aux=True)
            solves[name], slopes[name] = compiled(solve, z0, W, b), compiled(slope, W, b)
            gradient, z = slopes[name]()
            end = float(jnp.max(jnp.abs(layer(z, W, b) - z)))
            _, exact = reference(z, W, b, weights)
            rows[name] = [*counted(kind, z0, W, b, weights), end, far_apart(gradient, exact)]
        times = interleaved(solves, ROUNDS), interleaved(slopes, ROUNDS)
        first = next(iter(kinds))
        print(f"\nfixed point of dimension {z0.size}, gain {gain}, and its derivative")
        print(
            f"{'':24s}   evaluations  products   max|F|  | evaluations  products  error of gradient"
            "  | time  with derivative"
        )
        for name, row in rows.items():
            ratios = [taken[name] / taken[first] for taken in times]
            found[f"{name}, gain {gain}"] = [*row, *ratios]
            print(
                f"{name:24s} {row[0]:13d} {row[1]:9d} {row[4]:9.1e}  | {row[2]:10d} {row[3]:9d} "
                f"{row[5]:18.1e}  | {ratios[0]:5.2f} {ratios[1]:8.2f}",
                flush=True,
            )
    return found
