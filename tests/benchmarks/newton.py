"""Newton's method with the spectral correction beside plain Newton: iteration tables."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxqn
from jaxqn import derivatives
from jaxqn.drivers import minimize

ITERATIONS = 40


def saddle(x):
    """A saddle at 0 and minima at (0, ±√½), of value −1/4."""
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4


def least_squares(w, A, b):
    return 0.5 * jnp.sum((A @ w - b) ** 2)


def logistic(w, X, labels):
    return jnp.mean(jnp.logaddexp(jnp.zeros_like(labels), -labels * (X @ w)))


def problems(dtype):
    """Name, objective, start, data: a saddle, a singular Hessian, and one that vanishes."""
    rng = np.random.default_rng(0)
    tall = rng.normal(size=(30, 3))
    repeated = np.column_stack([tall, tall[:, 0]])
    targets = rng.normal(size=30)
    X = rng.normal(size=(40, 3))
    labels = np.sign(X[:, 0] + 0.2 * X[:, 1])
    cases = [
        ("saddle, from (1, 0.001)", saddle, [1.0, 1e-3], ()),
        ("rank-deficient least squares, from ones", least_squares, np.ones(4), (repeated, targets)),
        ("separable logistic regression, from -ones", logistic, -np.ones(3), (X, labels)),
    ]
    for name, fun, x0, data in cases:
        yield name, fun, jnp.asarray(x0, dtype), tuple(jnp.asarray(a, dtype) for a in data)


def plain(fun, x, data):
    """f and the largest gradient entry of x − B⁻¹g, iterate by iterate, until either is NaN."""
    value_and_grad = jax.jit(jax.value_and_grad(fun))
    hessian = jax.jit(derivatives.hessian(fun))
    rows = []
    for _ in range(ITERATIONS):
        f, g = value_and_grad(x, *data)
        B = hessian(x, *data)
        rows.append((float(f), float(jnp.max(jnp.abs(g))), float(jnp.linalg.eigvalsh(B)[0])))
        if not np.isfinite(rows[-1][0]) or rows[-1][1] == 0:
            break
        x = x - jnp.linalg.solve(B, g)
    return rows, x


def corrected(fun, x, data, mode):
    """The same of ``minimize(method="newton")``, with its own ending."""
    rows = []

    def watch(result):
        corrections = int(result.state.approx.refused)
        g_norm = float(max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(result.jac)))
        rows.append((float(result.fun), g_norm, corrections))

    method = jaxqn.corrected_newton(mode=mode)
    watch(minimize(fun, x, data, method=method, maxfun=1))
    result = minimize(fun, x, data, method=method, callback=watch)
    return rows, result


def main(options) -> dict:
    """A table per problem: plain Newton beside the corrected one, iteration by iteration."""
    outcomes = {}
    for name, fun, x0, data in problems(options.dtype):
        ours, result = corrected(fun, x0, data, "reflect")
        theirs, last = plain(fun, x0, data)
        print(f"\n{name}, {options.dtype}")
        print(f"{'':4}{'plain Newton':^40}{'corrected (reflect)':^40}")
        head = f"{'f':>14}{'max|g|':>11}"
        print(f"{'k':>4}{head}{'smallest eig':>15}{head}{'corrected':>15}")
        longest = max(len(ours), min(len(theirs), 12))
        for k in range(longest):
            left = right = " " * 40
            if k < len(theirs):
                left = "{:14.6e}{:11.1e}{:15.1e}".format(*theirs[k])
            if k < len(ours):
                right = "{:14.6e}{:11.1e}{:15d}".format(*ours[k])
            print(f"{k:4}{left}{right}".rstrip())
        print(
            f"ends: plain after {len(theirs) - 1} steps at {np.asarray(last)}; corrected with "
            f"{jaxqn.Status(int(result.status)).name} after {int(result.nit)} iterations, "
            f"{int(result.nfev)} evaluations, at {np.asarray(result.x)}"
        )
        outcomes[name] = {"plain": theirs[-1], "status": int(result.status), "corrected": ours[-1]}
        for mode in ("clip", "drop"):
            end = minimize(fun, x0, data, method=jaxqn.corrected_newton(mode=mode))
            print(
                f"      {mode}: {jaxqn.Status(int(end.status)).name} after {int(end.nit)} "
                f"iterations, {int(end.nfev)} evaluations, f = {float(end.fun):.6e}"
            )
    return outcomes
