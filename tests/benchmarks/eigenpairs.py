"""Extremal eigenpairs of a network's Hessian from Hessian-vector products.

An MLP 64-256-256-64-10 with tanh (99 530 parameters) classifies 300 noisy points of ten clusters by
cross entropy, after 50 steps of Adam; its Hessian has n^2 = 1e10 entries and is not formed. Two
eigenpairs of each kind are sought. Peers: SciPy's `eigsh` (ARPACK) on the same compiled product,
its calls counted, with as large a basis; `lobpcg_standard` of jax.experimental for the largest.

All are asked for residuals of TOL times the largest |lambda|, within the same budget of products;
reported are residuals recomputed from the vectors. ARPACK's tolerance is relative to each
eigenvalue instead: it is given TOL |lambda_1| / |lambda|, at most 1, with what jaxqn found, and it
returns converged pairs only. Memory is what XLA reports as temporary, in vectors; for `eigsh`, the
`ncv` vectors of its basis and the temporaries of the product. Warm starts are from the vectors at
the point a few steps of Adam earlier.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree

from jaxqn.derivatives import hvp
from jaxqn.linalg.eigenpairs import hessian_eigenpairs

from . import objectives, timing

SIZES, ROWS, STEPS = (64, 256, 256, 64, 10), 300, 50
K, TOL, BUDGET, LOOP = 2, 3e-4, 800, 20
ARPACK = {"largest": "LA", "smallest": "SA", "smallest_magnitude": "SM"}


def loss(params, images, labels):
    """Mean cross entropy."""
    log_p = jax.nn.log_softmax(objectives.mlp(params, images))
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))


def adam(params, data, steps: int):
    """The parameters after some full-batch steps."""
    import optax

    optimizer = optax.adam(1e-3)

    def body(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *data), state)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda p: jax.lax.fori_loop(0, steps, body, (p, optimizer.init(p)))[0])
    return run(params)


def problem(sizes):
    """``(params, data)``: a network on ten Gaussian clusters, somewhat trained."""
    keys = jax.random.split(jax.random.key(0), 4)
    centres = jax.random.normal(keys[0], (10, sizes[0]))
    labels = jax.random.randint(keys[1], (ROWS,), 0, 10)
    images = centres[labels] + jax.random.normal(keys[2], (ROWS, sizes[0]))
    data = (images, labels)
    return adam(objectives.mlp_init(sizes, keys[3]), data, STEPS), data


class Counted:
    """The product as NumPy sees it: flat vectors, calls counted."""

    def __init__(self, product, x):
        self.product, self.x, self.calls = product, x, 0

    def __call__(self, v):
        self.calls += 1
        return np.asarray(self.product(self.x, jnp.asarray(v.ravel(), self.x.dtype)))


def eigsh(product, x, which: str, tol: float, ncv: int):
    """``(values, rows, calls)`` of the pairs that ARPACK calls converged."""
    counted = Counted(product, x)
    A = scipy.sparse.linalg.LinearOperator((x.size, x.size), matvec=counted, dtype=x.dtype)
    v0 = np.random.default_rng(0).normal(size=x.size).astype(x.dtype)
    # a restart of ARPACK takes at most ncv - K products
    restarts = max(1, BUDGET // (ncv - K))
    try:
        values, vectors = scipy.sparse.linalg.eigsh(
            A, K, which=ARPACK[which], ncv=ncv, tol=tol, v0=v0, maxiter=restarts
        )
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    return values, vectors.T, counted.calls


def lobpcg(product, x, iterations: int = 100):
    """A compiled call of `lobpcg_standard`, which stops by a test of its own."""

    def run(x, start):
        def block(V):
            return jax.vmap(lambda v: product(x, v), 1, 1)(V)

        # its residual test is tol * 10 n (lambda + |A v|)
        return lobpcg_standard(block, start, iterations, TOL / (20 * x.size))

    start = jax.random.normal(jax.random.key(1), (x.size, K), x.dtype)
    return jax.jit(run).lower(x, start).compile(), start


def residuals(product, x, values, rows) -> list:
    """|A v - lambda v|, recomputed."""
    errors = []
    for value, row in zip(values, rows, strict=True):
        v = jnp.asarray(row, x.dtype)
        errors.append(float(jnp.linalg.norm(product(x, v) - float(value) * v)))
    return errors


def temporaries(compiled, x) -> float:
    """What a program needs beside its arguments and results, in vectors."""
    return compiled.memory_analysis().temp_size_in_bytes / (x.size * x.dtype.itemsize)


def row_of(product, x, values, vectors, products, memory, scale: float) -> dict:
    """What a table says of a solver."""
    errors = residuals(product, x, values, vectors)
    return {
        "values": [float(v) for v in values],
        "residual": max(errors, default=float("nan")) / scale,
        "pairs": len(errors),
        "products": int(products),
        "vectors": memory,
    }


def measure(which: str, basis: int, params, data, product, flat, rounds: int) -> dict:
    """One kind of pairs: a row per solver, then warm starts."""
    options = {"k": K, "which": which, "tol": TOL, "basis": basis, "max_products": BUDGET}
    ours = functools.partial(hessian_eigenpairs, loss, **options)
    program = jax.jit(lambda p, data: ours(p, data)).lower(params, data).compile()
    pairs = program(params, data)
    scale = float(pairs.scale)
    of = functools.partial(row_of, product, flat, scale=scale)
    stack = jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors)
    name = f"jaxqn m={basis}"
    rows = {name: of(pairs.values, stack, pairs.products, temporaries(program, flat))}
    calls = {name: lambda: program(params, data)}

    smallest = float(jnp.min(jnp.abs(pairs.values)))
    peer = functools.partial(eigsh, product, flat, which, TOL * scale / max(smallest, TOL * scale))
    values, vectors, used = peer(basis)
    own = temporaries(jax.jit(product).lower(flat, flat).compile(), flat)
    rows["scipy eigsh"] = of(values, vectors, used, basis + own)
    calls["scipy eigsh"] = lambda: peer(basis)[0]
    if which == "largest":
        compiled, start = lobpcg(product, flat)
        values, vectors, iterations = compiled(flat, start)
        # X, P and R, then X again, in every iteration; X once before
        used = 4 * K * int(iterations) + K
        rows["jax lobpcg"] = of(values, vectors.T, used, temporaries(compiled, flat))
        calls["jax lobpcg"] = lambda: compiled(flat, start)

    alone = timing.loop_of(lambda v, x: product(x, v), LOOP)
    calls = {"product": timing.compiled(alone, flat, flat), **calls}
    times = timing.interleaved(calls, rounds)
    times["product"] /= LOOP
    report(which, rows, times, scale)
    again = jax.jit(lambda p, start, data: ours(p, data, start=start))
    results = {"rows": rows, "times": times, "warm": {}}
    for steps in (1, 5):
        moved = adam(params, data, steps)
        cold, warm = program(moved, data), again(moved, pairs.vectors, data)
        results["warm"][steps] = {"cold": int(cold.products), "warm": int(warm.products)}
        errors = ", ".join(f"{float(jnp.max(p.residuals) / p.scale):.1e}" for p in (warm, cold))
        print(
            f"{steps} steps later: {int(warm.products)} products from these vectors, "
            f"{int(cold.products)} from none; residuals {errors}"
        )
    return results


def report(which: str, rows: dict, times: dict, scale: float) -> None:
    """The table of one kind."""
    print(f"\n{which.replace('_', ' ')}, |lambda_1| = {scale:.3g}, tol = {TOL:.0e}")
    print(
        f"{'solver':14}{'pairs':>6}{'residual':>10}{'products':>10}{'vectors':>9}"
        f"{'seconds':>9}{'over ours':>11}{'over products':>15}  values"
    )
    ours = times[next(iter(rows))]
    for name, r in rows.items():
        bare = r["products"] * times["product"]
        values = ", ".join(f"{v:.3e}" for v in r["values"])
        print(
            f"{name:14}{r['pairs']:6}{r['residual']:10.1e}{r['products']:10}{r['vectors']:9.1f}"
            f"{times[name]:9.2f}{times[name] / ours:11.2f}{times[name] / bare:15.2f}  {values}",
            flush=True,
        )


def main(options) -> dict:
    """A table for each end of the spectrum."""
    sizes = (64, 64, 10) if options.quick else SIZES
    params, data = problem(sizes)
    flat, unravel = ravel_pytree(params)
    along = hvp(lambda x, *data: loss(unravel(x), *data))
    product = jax.jit(lambda x, v: along(x, v, *data))
    print(f"n = {flat.size}, {flat.dtype}, loss {float(loss(params, *data)):.3f}")
    rounds = 1 if options.quick else 3
    bases = {"largest": 20, "smallest": 20, "smallest_magnitude": 40}
    return {
        which: measure(which, basis, params, data, product, flat, rounds)
        for which, basis in bases.items()
    }
