"""Derivatives of solutions: accuracy, products with the Hessian, time and memory.

Ten small models compare reverse mode with central differences of tight fits. One
gradient through a solution of n variables stands beside optimistix, jaxopt and a
banded solve; products with the Hessian are counted for conjugate gradients with and
without the inverse Hessian of the run. A batch of 1024 fits is differentiated in
lanes, and what XLA plans to allocate is compared for ten iterations and a thousand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg

import jaxqn

from . import timing

TIMES = np.linspace(0.1, 4.0, 25)


def decay(x, t, a):
    return x[0] * jnp.exp(-x[1] * t) + x[2] - 2 * jnp.exp(-a * t)


def logistic(x, t, a):
    return x[0] / (1 + jnp.exp(-x[1] * (t - x[2]))) - 3 / (1 + jnp.exp(-2 * a * (t - 1.5)))


def hill(x, t, a):
    return x[0] * t ** x[1] / (x[2] ** x[1] + t ** x[1]) - 2 * t**2 / (a + t**2)


def sine(x, t, a):
    return x[0] * jnp.sin(x[1] * t + x[2]) - jnp.sin((1 + 0.3 * a) * t + 0.2)


def rational(x, t, a):
    return (x[0] + x[1] * t) / (1 + x[2] * t) - jnp.log1p(a * t)


RESIDUALS = {
    "decay": (decay, [1.5, 0.5, 0.1]),
    "logistic growth": (logistic, [3.2, 1.6, 1.4]),
    "Hill": (hill, [2.0, 1.8, 0.9]),
    "sine": (sine, [1.0, 1.2, 0.2]),
    "rational": (rational, [0.1, 1.0, 0.4]),
}


def rosenbrock(x, a):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (a - x[:-1]) ** 2)


def poisson(x, a):
    eta = x[0] + x[1] * TIMES
    return jnp.sum(jnp.exp(eta) - (1 + a * TIMES) * eta)


def student(x, a):
    return jnp.sum(jnp.log1p((x[0] + x[1] * TIMES - jnp.sin(a * TIMES)) ** 2))


def softmax(x, a):
    logits = x.reshape(3, 2) @ jnp.stack([jnp.ones_like(TIMES), TIMES])
    target = jax.nn.softmax(jnp.stack([a * TIMES, TIMES, jnp.ones_like(TIMES)]), axis=0)
    return -jnp.sum(target * jax.nn.log_softmax(logits, axis=0)) + a * jnp.sum(x**2)


def spring(x, a):
    d = jnp.diff(jnp.concatenate([jnp.zeros(1), x, jnp.ones(1)]))
    return jnp.sum(d**2 + a * d**4) + 0.1 * jnp.sum(x)


SCALARS = {
    "Rosenbrock": (rosenbrock, [0.8, 0.7, 0.6]),
    "Poisson": (poisson, [0.1, 0.3]),
    "Student": (student, [0.5, -0.1]),
    "softmax": (softmax, [0.0] * 6),
    "springs": (spring, [0.2, 0.4, 0.6, 0.8]),
}


def measure_models() -> None:
    """One line per model: the largest error of an entry of dx/da over the largest entry."""
    print(f"\n{'model':18}{'status':>12}{'error beside differences':>26}")
    for name, (fun, start) in {**RESIDUALS, **SCALARS}.items():
        x0 = jnp.asarray(start)

        def solve(a, fun=fun, x0=x0, name=name):
            if name in RESIDUALS:
                return jaxqn.least_squares(fun, x0, (TIMES, a))
            return jaxqn.minimize(fun, x0, (a,), method="newton", gtol=1e-13)

        found = jax.jacrev(lambda a, solve=solve: solve(a).x)(0.7)
        steps = [(solve(0.7 + h).x - solve(0.7 - h).x) / (2 * h) for h in (1e-3, 5e-4)]
        measured = (4 * steps[1] - steps[0]) / 3  # Richardson
        error = jnp.max(jnp.abs(found - measured)) / jnp.max(jnp.abs(measured))
        print(f"{name:18}{jaxqn.Status(int(solve(0.7).status)).name:>12}{float(error):26.1e}")


def chain(x, a):
    """Weights over three decades, a quartic, and a coupling of neighbours."""
    w = jnp.logspace(0, 3, x.size, dtype=x.dtype)
    value = 0.5 * jnp.sum(w * (x - a) ** 2) + 0.25 * jnp.sum(x**4)
    return value + 5.0 * jnp.sum((x[1:] - x[:-1]) ** 2)


def chain_exact(x, seed) -> np.ndarray:
    """seedᵀ dx/da by a banded solve."""
    n = x.size
    w = np.logspace(0, 3, n)
    bands = np.zeros((2, n))
    bands[0] = w + 3 * np.asarray(x) ** 2 + 20.0
    bands[0, [0, -1]] -= 10.0
    bands[1, :-1] = -10.0
    return w * scipy.linalg.solveh_banded(bands, np.asarray(seed), lower=True)


def products(result, n: int, args, seed, *, preconditioned: bool) -> int:
    """Products with the Hessian that CG takes to a relative residual of 1e-10."""
    hvp = jax.jit(lambda v: jaxqn.derivatives.hvp(chain)(result.x, v, *args))
    taken = 0

    def product(v):
        nonlocal taken
        taken += 1
        return np.asarray(hvp(jnp.asarray(v)))

    A = scipy.sparse.linalg.LinearOperator((n, n), matvec=product, dtype=float)
    M = None
    if preconditioned:
        apply = jax.jit(result.hess_inv_product)
        M = scipy.sparse.linalg.LinearOperator(
            (n, n), matvec=lambda v: np.asarray(apply(jnp.asarray(v))), dtype=float
        )
    scipy.sparse.linalg.cg(A, np.asarray(seed), rtol=1e-10, M=M)
    return taken


def peers_of(x0) -> dict:
    """``a -> x`` by the peers that are installed."""
    found = {}
    try:
        import optimistix

        solver = optimistix.LBFGS(rtol=1e-10, atol=1e-10)
        found["optimistix"] = lambda a: (
            optimistix.minimise(chain, solver, x0, a, max_steps=2000, throw=False).value
        )
    except ImportError:
        pass
    try:
        import jaxopt

        found["jaxopt"] = lambda a: jaxopt.LBFGS(chain, tol=1e-8, maxiter=2000).run(x0, a).params
    except ImportError:
        pass
    return found


def measure_large(n: int, rounds: int) -> None:
    """Time of a gradient through the solution over that of the solution, and its error."""
    x0, a = jnp.zeros(n), jnp.cos(0.01 * jnp.arange(n))
    seed = jnp.sin(0.3 * jnp.arange(n))
    result = jaxqn.minimize(chain, x0, (a,), method="lbfgs")
    exact = chain_exact(result.x, seed)
    print(f"\nchain, n = {n}: status {jaxqn.Status(int(result.status)).name}, nit {result.nit}")
    for preconditioned in (False, True):
        taken = products(result, n, (a,), seed, preconditioned=preconditioned)
        print(f"  products with the Hessian, preconditioner {preconditioned!s:>5}: {taken}")
    solvers = {"jaxqn": lambda a: jaxqn.minimize(chain, x0, (a,), method="lbfgs").x}
    print(f"{'':14}{'solve ms':>10}{'gradient / solve':>18}{'error':>10}")
    for name, solve in {**solvers, **peers_of(x0)}.items():
        gradient = jax.grad(lambda a, solve=solve: jnp.vdot(seed, solve(a)))
        try:
            calls = {"solve": timing.compiled(solve, a), "gradient": timing.compiled(gradient, a)}
            times = timing.interleaved(calls, rounds)
            off = np.max(np.abs(np.asarray(calls["gradient"]()) - exact)) / np.max(np.abs(exact))
        except Exception as error:  # a peer may refuse
            print(f"{name:14}{type(error).__name__}: {str(error)[:60]}")
            continue
        ratio = times["gradient"] / times["solve"]
        print(f"{name:14}{1e3 * times['solve']:10.0f}{ratio:18.2f}{off:10.1e}")


def measure_batch(fits: int, rounds: int) -> None:
    """A batch differentiated: time over the fits alone, and the memory of the program."""
    a = jnp.linspace(0.5, 1.5, fits)
    x0, squares = jnp.asarray([1.5, 0.5, 0.1]), jaxqn.sum_of_squares(decay)

    def solve(a, maxiter=1000):
        result = jaxqn.minimize_batch(
            squares, x0, (TIMES, a), in_axes=(None, None, 0), maxiter=maxiter
        )
        return jnp.sum(result.x[:, 1])

    calls = {"fits": timing.compiled(solve, a), "gradient": timing.compiled(jax.grad(solve), a)}
    times = timing.interleaved(calls, rounds)
    slopes = calls["gradient"]()
    print(f"\n{fits} fits: gradient / fits {times['gradient'] / times['fits']:.2f}")
    print(f"  largest error of d rate/da beside 1: {float(jnp.max(jnp.abs(slopes - 1))):.1e}")
    for maxiter in (10, 1000):
        program = jax.jit(jax.grad(solve), static_argnums=1).lower(a, maxiter).compile()
        plan = program.memory_analysis()
        print(f"  bytes planned for maxiter {maxiter}: {plan.temp_size_in_bytes}")


def main(options) -> None:
    """Accuracy, then time at size, then batches."""
    measure_models()
    rounds = 2 if options.quick else 3
    for n in (10_000,) if options.quick else (10_000, 1_000_000):
        measure_large(n, rounds)
    measure_batch(64 if options.quick else 1024, rounds)
