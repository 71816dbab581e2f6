"""A physics-informed network for the 3-D Poisson equation on the unit cube.

laplacian(u) = -3 pi^2 u*, u = 0 on the boundary, with u* = prod sin(pi x_i).
The network is an MLP 3-32-32-1 with tanh (1217 parameters); 1000 interior and
200 boundary points are drawn uniformly; the loss is half the mean square
residual of each. The score is the relative L2 error on 20 000 fresh points of
the best iterate after 500, 1000 and 2000 evaluations. float64 is meant.

Time is that of a whole compiled run over as many value_and_grad calls in a
compiled loop. Solvers that cannot be told a number of evaluations are timed by
the clock of their recorded run instead, marked with ~. optimistix takes no
gradient at a rejected trial, so that its ratio can be below one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from . import objectives, peers, recording, timing
from .solver import Options, Outcome, Solver, says

SIZES = (3, 32, 32, 1)
AT = (500, 1000, 2000)
ADAM_EVALUATIONS, ADAM_RATE = 5000, 1e-3
# Told a number of evaluations, these run that many (optax's: up to a search).
OBEY = ("jaxqn", "optax", "optimistix", peers.PORT)
# A quarter of a second per evaluation at this size: only when named.
SLOW = ("scipy-bfgs", "jax.scipy-bfgs", "jaxopt-bfgs")


def add_arguments(parser):
    group = parser.add_argument_group("pinn")
    group.add_argument("--seeds", default="0", help="comma-separated (0)")


def exact(x):
    """The solution u*, the product of sin(pi x_i) over the last axis."""
    return jnp.prod(jnp.sin(jnp.pi * x), axis=-1)


def laplacian(u, x):
    """Sum of the second derivatives of ``u: (3,) -> ()`` at one point.

    Forward over forward mode along each axis: no Hessian is formed.
    """

    def along(e):
        def slope(y):
            return jax.jvp(u, (y,), (e,))[1]

        return jax.jvp(slope, (x,), (e,))[1]

    return sum(along(e) for e in jnp.eye(x.size, dtype=x.dtype))


def draw_boundary(key, count: int):
    """Points uniform on the six faces of the cube."""
    inside, face = jax.random.split(key)
    points = jax.random.uniform(inside, (count, 3))
    face = jax.random.randint(face, (count,), 0, 6)
    on_face = jnp.arange(3) == face[:, None] // 2
    return jnp.where(on_face, (face[:, None] % 2).astype(points.dtype), points)


def problem(seed: int):
    """The training problem of one seed.

    Returns:
      ``(fun, x0, args, error)`` on flat parameters; ``error(x)`` is the
      relative L2 error on fresh points.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    params = objectives.mlp_init(SIZES, keys[0])
    x0, unravel = ravel_pytree(params)
    interior = jax.random.uniform(keys[1], (1000, 3))
    boundary = draw_boundary(keys[2], 200)
    fresh = jax.random.uniform(keys[3], (20_000, 3))

    def fun(x, interior, boundary):
        params = unravel(x)

        def u(point):
            return objectives.mlp(params, point[None])[0, 0]

        inside = jax.vmap(lambda point: laplacian(u, point))(interior)
        residual = inside + 3.0 * jnp.pi**2 * exact(interior)
        on_boundary = objectives.mlp(params, boundary)[:, 0]
        return 0.5 * jnp.mean(residual**2) + 0.5 * jnp.mean(on_boundary**2)

    @jax.jit
    def error(x):
        u = objectives.mlp(unravel(x), fresh)[:, 0]
        truth = exact(fresh)
        return jnp.linalg.norm(u - truth) / jnp.linalg.norm(truth)

    return fun, x0, (interior, boundary), error


def _adam(fun, options: Options):
    """Adam with a constant rate, the usual first stage of such training."""
    import optax

    optimizer = optax.adam(ADAM_RATE)

    def solve(x0, *args):
        def body(_, carry):
            x, state = carry
            _, grad = jax.value_and_grad(fun)(x, *args)
            updates, state = optimizer.update(grad, state, x)
            return optax.apply_updates(x, updates), state

        count = options.maxfun
        x, _ = jax.lax.fori_loop(0, count, body, (x0, optimizer.init(x0)))
        return Outcome(x, fun(x, *args), count, count, False)

    return solve


ADAM = Solver("optax-adam", "optax", True, _adam)


def errors_of(solver, seed: int, at) -> dict:
    """Runs one solver once, recorded, and scores its best iterates."""
    fun, x0, args, error = problem(seed)
    recorder = recording.Recorder(at[-1], at=at)
    # A little more than the budget: the recorder ends the run.
    options = Options(gtol=0.0, maxfun=at[-1] + 100)
    solve = solver.make(recording.watched(fun, recorder), options)
    solve = jax.jit(solve) if solver.compiled else solve
    outcome = recording.run_recorded(solve, recorder, x0, *args)
    best = {k: recorder.snapshots.get(k, recorder.best_x) for k in at}
    ended = recorder.spent or ("?" if outcome is None else says(solver, outcome))
    return {
        "errors": {str(k): float(error(x)) for k, x in best.items()},
        "loss": recorder.improvements[-1][1],
        "evaluations": recorder.evaluations,
        "seconds at 1000": recorder.times.get(1000),
        "ended": ended,
    }


def times_of(solvers, evaluations: int, rounds: int) -> dict:
    """Seconds per evaluation of compiled whole runs, and of the objective."""
    fun, x0, args, _ = problem(0)
    alone = timing.value_and_grad_loop(fun, evaluations)
    calls = {"value_and_grad": timing.compiled(alone, x0, *args)}
    for solver in solvers:
        if solver.needs in OBEY and solver.compiled:
            solve = solver.make(fun, Options(gtol=0.0, maxfun=evaluations))
            calls[solver.name] = timing.compiled(solve, x0, *args)
    times = timing.interleaved(calls, rounds)
    each = {"value_and_grad": times.pop("value_and_grad") / evaluations}
    for name, taken in times.items():
        each[name] = taken / int(calls[name]().nfev)
    return each


def print_seed(seed: int, rows: dict, each: dict) -> None:
    """The table of one seed."""
    alone = each["value_and_grad"]
    print(f"\nseed {seed}: relative L2 error after k evaluations")
    columns = "".join(f"{k:>10}" for k in AT)
    print(f"{'solver':22}{columns}{'loss':>10}{'time':>8}  ended")
    for name, row in rows.items():
        errors = "".join(
            f"{row['errors'][str(k)]:10.2e}" if str(k) in row["errors"] else f"{'':10}" for k in AT
        )
        time = ""
        if name in each:
            time = f"{each[name] / alone:.2f}"
        elif row["seconds at 1000"]:
            time = f"~{row['seconds at 1000'] / 999 / alone:.2f}"
        print(f"{name:22}{errors}{row['loss']:10.2e}{time:>8}  {row['ended']}")


def main(options) -> dict:
    """A table per seed, and geometric means over the seeds."""
    if options.dtype != "float64":
        print("(this workload is meant for float64)")
    names = options.solvers
    if names is not None:  # Adam is known only here
        names = [name for name in names if name != ADAM.name]
    solvers = []
    for solver in peers.available(names) if names != [] else ():
        if solver.name in SLOW and solver.name not in (options.solvers or ()):
            print(f"skipped: {solver.name} (too slow at n = 1217; name it to run it)")
        else:
            solvers.append(solver)
    at = AT[:1] if options.quick else AT
    evaluations = 200 if options.quick else 1000
    each = times_of(solvers, evaluations, 3)
    print(f"value_and_grad alone {1e3 * each['value_and_grad']:.2f} ms")
    seeds = [int(s) for s in options.seeds.split(",")]
    results: dict = {"each": each, "seeds": {}}
    for seed in seeds:
        rows = {s.name: errors_of(s, seed, at) for s in solvers}
        if options.solvers is None or ADAM.name in options.solvers:
            count = 1000 if options.quick else ADAM_EVALUATIONS
            rows[f"{ADAM.name} ({count})"] = errors_of(ADAM, seed, (count,))
        print_seed(seed, rows, each)
        results["seeds"][seed] = rows
    if len(seeds) > 1:
        print(f"\ngeometric mean over seeds {options.seeds}")
        for solver in solvers:
            logs = {
                k: [np.log(results["seeds"][s][solver.name]["errors"][str(k)]) for s in seeds]
                for k in at
            }
            means = "".join(f"{np.exp(np.mean(v)):10.2e}" for v in logs.values())
            print(f"{solver.name:22}{means}")
    return results
