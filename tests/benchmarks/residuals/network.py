"""The network of the workload ``pinn``, as 1200 residuals of 1217 parameters.

Half of the sum of the squared residuals is the loss there. Relative L2 errors
after 25, 50, 75 and 100 Jacobians of ``method="residual"``, and of ssbroyden
after as many evaluations as its table has, both with seconds. A step's time is
given over that of Jacobian, Gram matrix and Cholesky factor in a compiled loop.

On a busy machine the threads of LAPACK wait for each other; there
``OPENBLAS_NUM_THREADS=1`` makes the factor tens of times faster.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import objectives, pinn, timing
from . import solvers

JACOBIANS = (25, 50, 75, 100)
EVALUATIONS = (500, 1000, 2000)
STEPS = 20


def by_points(*functions):
    """Each function ``(x, point)`` at its own set of points, all in one array."""

    def at(x, *points):
        pairs = zip(functions, points, strict=True)
        return jnp.concatenate([jax.vmap(f, (None, 0))(x, p) for f, p in pairs])

    return at


def problem(seed: int):
    """The problem of ``pinn.problem``, as residuals.

    Returns:
      ``(fun, residual, jacobian, x0, args, error)``: the scalar loss, the residuals,
      their Jacobian, a gradient per point, and what ``pinn.problem`` returns.
    """
    fun, x0, args, error = pinn.problem(seed)
    params = objectives.mlp_init(pinn.SIZES, jax.random.split(jax.random.key(seed), 4)[0])
    unravel = ravel_pytree(params)[1]
    weights = [1.0 / np.sqrt(len(points)) for points in args]

    def at(x, point):
        return objectives.mlp(unravel(x), point[None])[0, 0]

    def inside(x, point):
        source = 3.0 * jnp.pi**2 * pinn.exact(point)
        return weights[0] * (pinn.laplacian(lambda p: at(x, p), point) + source)

    def on_boundary(x, point):
        return weights[1] * at(x, point)

    residual = by_points(inside, on_boundary)
    jacobian = by_points(jax.grad(inside), jax.grad(on_boundary))
    return fun, residual, jacobian, x0, args, error


def linear_algebra(residual, jacobian):
    """One step's floor: the Jacobian J, J J', its Cholesky factor, a solve."""

    def step(x, *args):
        r, J = residual(x, *args), jacobian(x, *args)
        gram = J @ J.T + 1e-3 * jnp.eye(r.size, dtype=r.dtype)
        factor = jnp.linalg.cholesky(gram)
        return x - 1e-20 * (J.T @ jax.scipy.linalg.cho_solve((factor, True), r))

    return step


def errors_after(run, counts, x0, args, error) -> list[dict]:
    """Runs of growing length from the same start, each timed on its own."""
    jax.block_until_ready(run(counts[0], x0, *args))
    rows = []
    for count in counts:
        kept = {}

        def call(count=count, kept=kept):
            kept["x"], kept["nfev"] = run(count, x0, *args)
            return kept["x"]

        taken = timing.seconds(call)
        row = {"count": count, "evaluations": int(kept["nfev"]), "seconds": taken}
        rows.append(row | {"error": float(error(kept["x"]))})
        print(f"{count:8}{row['evaluations']:13}{taken:10.2f}{rows[-1]['error']:12.2e}", flush=True)
    return rows


def main(options) -> dict:
    """Errors of both, then the time of a step."""
    if not solvers.available([solvers.ours("residual")], options):
        return {}
    import jaxqn

    fun, residual, jacobian, x0, args, error = problem(0)

    @jax.jit
    def fit(jacobians, x0, *args):
        # The first point has a Jacobian, and so has each accepted one.
        r = jaxqn.least_squares(
            residual, x0, args, jac=jacobian, method="residual", gtol=0.0, maxiter=jacobians - 1
        )
        return r.x, r.nfev

    @jax.jit
    def minimize(evaluations, x0, *args):
        r = jaxqn.minimize(fun, x0, args, method="ssbroyden", gtol=0.0, maxfun=evaluations)
        return r.x, r.nfev

    counts = JACOBIANS[:1] if options.quick else JACOBIANS
    print(f"{'Jacobians':>9}{'evaluations':>12}{'seconds':>10}{'error':>12}")
    results = {"residual": errors_after(fit, counts, x0, args, error)}
    counts = EVALUATIONS[:1] if options.quick else EVALUATIONS
    print("ssbroyden, by evaluations")
    results["ssbroyden"] = errors_after(minimize, counts, x0, args, error)
    floor = timing.loop_of(linear_algebra(residual, jacobian), STEPS)
    calls = {
        "alone": timing.compiled(floor, x0, *args),
        "residual": lambda: fit(STEPS + 1, x0, *args),
    }
    times = timing.interleaved(calls, 3)
    results["ratio"] = times["residual"] / times["alone"]
    print(f"{1e3 * times['residual'] / STEPS:.0f} ms per step, {results['ratio']:.2f} times the")
    print(f"{1e3 * times['alone'] / STEPS:.0f} ms of Jacobian, Gram matrix and Cholesky alone")
    return results
