"""A physics-informed network for the 3-D Poisson equation on the unit cube.

laplacian(u) = -3 pi^2 u*, u = 0 on the boundary, with u* = prod sin(pi x_i).
The network is an MLP 3-32-32-1 with tanh (1217 parameters); 1000 interior and
200 boundary points are drawn uniformly; the loss is half the mean square
residual of each. The score is the relative L2 error on 20 000 fresh points of
the best iterate after 500, 1000, 2000 and 5000 evaluations. float64 is meant.

Time is that of a whole compiled run over as many value_and_grad calls in a
compiled loop. Solvers that cannot be told a number of evaluations are timed by
the clock of their recorded run instead, marked with ~. optimistix takes no
gradient at a rejected trial, so that its ratio can be below one.

The whole table takes long; it can be taken in pieces that share a file:

  python -m tests.benchmarks pinn --runs pinn.json --solvers jaxqn-ssbroyden
  python -m tests.benchmarks pinn --runs pinn.json --solvers scipy-bfgs --evaluations 1000
  python -m tests.benchmarks pinn --runs pinn.json --solvers jaxqn-ssbroyden,scipy-bfgs
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from . import objectives, peers, recording, timing
from .solver import Options, Outcome, Solver, says

SIZES = (3, 32, 32, 1)
AT = (500, 1000, 2000, 5000)
ADAM_RATE = 1e-3
# Told a number of evaluations, these run that many (optax's: up to a search).
OBEY = ("jaxqn", "optax", "optimistix", peers.PORT)
# A quarter of a second per evaluation at this size: only when named.
SLOW = ("scipy-bfgs", "jax.scipy-bfgs", "jaxopt-bfgs")


def add_arguments(parser):
    group = parser.add_argument_group("pinn")
    group.add_argument("--seeds", default="0", help="comma-separated (0)")
    group.add_argument("--evaluations", type=int, default=AT[-1], help=f"budget ({AT[-1]})")
    group.add_argument(
        "--runs",
        metavar="FILE",
        help="finished runs: one found there is not repeated, whatever its budget was, "
        "and a new one is added as soon as it ends",
    )


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


class Runs:
    """Finished runs by name and seed, kept in a file from one call to the next.

    Attributes:
      rows: what `errors_of` returned, by ``"solver seed"``.
      ratios: time per evaluation over value_and_grad alone, by solver.
    """

    def __init__(self, path: str | None, dtype: str):
        self.path = pathlib.Path(path) if path else None
        kept = {}
        if self.path and self.path.exists():
            kept = json.loads(self.path.read_text())
            if kept["dtype"] != dtype:
                raise ValueError(f"{path} holds runs in {kept['dtype']}, these are in {dtype}")
        self.dtype = dtype
        self.rows: dict = kept.get("rows", {})
        self.ratios: dict = kept.get("ratios", {})

    def save(self) -> None:
        if self.path:
            content = {"dtype": self.dtype, "rows": self.rows, "ratios": self.ratios}
            self.path.write_text(json.dumps(content, indent=1))


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
    first = at[0]  # by the clock, compilation left out
    clock = recorder.times[first] / (first - 1) if first in recorder.times else None
    return {
        "errors": {str(k): float(error(x)) for k, x in best.items()},
        "loss": recorder.improvements[-1][1],
        "evaluations": recorder.evaluations,
        "seconds by the clock": clock,
        "ended": ended,
    }


def tells_count(solver) -> bool:
    """Whether the solver runs as many evaluations as it is told, compiled."""
    return solver.compiled and solver.needs in OBEY


def times_of(solvers, evaluations: int, rounds: int) -> dict:
    """Seconds per evaluation of compiled whole runs, and of the objective."""
    fun, x0, args, _ = problem(0)
    alone = timing.value_and_grad_loop(fun, evaluations)
    calls = {"value_and_grad": timing.compiled(alone, x0, *args)}
    for solver in filter(tells_count, solvers):
        solve = solver.make(fun, Options(gtol=0.0, maxfun=evaluations))
        calls[solver.name] = timing.compiled(solve, x0, *args)
    times = timing.interleaved(calls, rounds)
    each = {"value_and_grad": times.pop("value_and_grad") / evaluations}
    for name, taken in times.items():
        each[name] = taken / int(calls[name]().nfev)
    return each


def ahead(errors: dict[str, dict[str, float]]) -> None:
    """Says, at each budget, how the best of jaxqn compares with the best peer.

    Args:
      errors: error by budget, by solver.
    """
    for k in map(str, AT):
        reached = {name: row[k] for name, row in errors.items() if k in row}
        ours = {name: e for name, e in reached.items() if name.startswith("jaxqn")}
        peers_ = {name: e for name, e in reached.items() if name not in ours}
        if ours and peers_:
            us, peer = min(ours, key=ours.get), min(peers_, key=peers_.get)
            word = "ahead of" if ours[us] < peers_[peer] else "BEHIND"
            print(f"{k:>5}: {us} {ours[us]:.2e} {word} {peer} {peers_[peer]:.2e}")


def print_errors(title: str, errors: dict, extra) -> None:
    """One table; `extra` gives the columns after the errors, by solver."""
    columns = "".join(f"{k:>10}" for k in AT)
    print(f"\n{title}\n{'solver':22}{columns}{extra(None)}")
    for name, row in errors.items():
        cells = "".join(f"{row[str(k)]:10.2e}" if str(k) in row else f"{'':10}" for k in AT)
        print(f"{name:22}{cells}{extra(name)}")
    ahead(errors)


def print_seed(seed: int, rows: dict, ratios: dict) -> None:
    """The table of one seed."""

    def extra(name):
        if name is None:
            return f"{'loss':>10}{'evals':>7}{'time':>8}  ended"
        row, time = rows[name], ratios.get(name, "")
        return f"{row['loss']:10.2e}{row['evaluations']:7d}{time:>8}  {row['ended']}"

    errors = {name: row["errors"] for name, row in rows.items()}
    print_errors(f"seed {seed}: relative L2 error after k evaluations", errors, extra)


def chosen(names) -> list:
    """The solvers to run, Adam, known only here, at the end."""
    others = names if names is None else [name for name in names if name != ADAM.name]
    solvers = []
    for solver in peers.available(others) if others != [] else ():
        if solver.name in SLOW and solver.name not in (names or ()):
            print(f"skipped: {solver.name} (too slow at n = 1217; name it to run it)")
        else:
            solvers.append(solver)
    if names is None or "peers" in names or ADAM.name in names:
        solvers.append(ADAM)
    return solvers


def main(options) -> dict:
    """A table per seed, and geometric means over the seeds."""
    if options.dtype != "float64":
        print("(this workload is meant for float64)")
    solvers = chosen(options.solvers)
    at = AT[:1] if options.quick else tuple(k for k in AT if k <= options.evaluations)
    if not at:
        raise ValueError(f"--evaluations must be at least {AT[0]}, got {options.evaluations}")
    seeds = [int(s) for s in options.seeds.split(",")]
    runs = Runs(options.runs, options.dtype)
    untimed = [s for s in solvers if s.name not in runs.ratios]
    if untimed:
        each = times_of(untimed, 200 if options.quick else 500, 3)
        alone = each.pop("value_and_grad")
        print(f"value_and_grad alone {1e3 * alone:.2f} ms", flush=True)
        runs.ratios |= {name: f"{taken / alone:.2f}" for name, taken in each.items()}
        runs.save()
    for seed in seeds:
        for solver in solvers:
            if f"{solver.name} {seed}" in runs.rows:
                continue
            row = runs.rows[f"{solver.name} {seed}"] = errors_of(solver, seed, at)
            clock = row["seconds by the clock"]
            if solver.name not in runs.ratios and clock:
                runs.ratios[solver.name] = f"~{clock / alone:.2f}"
            runs.save()
        rows = {s.name: runs.rows[f"{s.name} {seed}"] for s in solvers}
        print_seed(seed, rows, runs.ratios)
    if len(seeds) > 1:
        means = {}
        for solver in solvers:
            each_seed = [runs.rows[f"{solver.name} {seed}"]["errors"] for seed in seeds]
            shared = set.intersection(*map(set, each_seed))
            means[solver.name] = {
                k: float(np.exp(np.mean([np.log(errors[k]) for errors in each_seed])))
                for k in shared
            }
        print_errors(f"geometric mean over seeds {options.seeds}", means, lambda _: "")
    return {"rows": runs.rows, "ratios": runs.ratios}
