"""Fingerprints of traced programs: proof that a rearrangement changes nothing.

Every configuration is traced to its jaxpr, which is hashed without the names and places of Python
functions. ``--base REV`` traces the same configurations with the package as it is at that commit,
and lists those whose programs differ; ``--show NAME`` prints where one of them does. Equal hashes
are equal programs, and so equal results, times and compile times. Jaxprs differ between versions
of jax: compare within one.
"""

import difflib
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]

PRIVATE = [
    (re.compile(r"0x[0-9a-f]+"), "0x"),
    (re.compile(r" at [^\s]*\.py:\d+"), " at"),
    (re.compile(r"\b(name|fun_name|jvp_jaxpr_fun|jvp|fwd|bwd|rule)=[^\s\]]*"), r"\1="),
    (re.compile(r"<(function|bound method) [^>]*>"), r"<\1>"),
]
"""What a jaxpr prints of Python functions, and what stands for it in a fingerprint."""


def add_arguments(parser) -> None:
    """The options of this workload."""
    parser.add_argument("--base", metavar="REV", help="fingerprint: compare with this commit")
    parser.add_argument("--show", metavar="NAME", help="fingerprint: print one difference")


def rosenbrock(x):
    """Chained Rosenbrock."""
    import jax.numpy as jnp

    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rosenbrock_aux(x):
    """The same with auxiliary data."""
    return rosenbrock(x), {"first": x[0]}


def decay(p, t):
    """An exponential decay over a dictionary."""
    import jax.numpy as jnp

    return jnp.mean((p["a"] * jnp.exp(-p["b"] * t) - t) ** 2)


def network(p, t):
    """Leaves of mixed shapes."""
    import jax.numpy as jnp

    return jnp.mean((jnp.tanh(t[:, None] @ p["w"] + p["b"]) @ p["v"]) ** 2)


def driver_cases():
    """``(name, function, operands)`` for :func:`jaxqn.minimize` and what a state continues."""
    import jax
    import jax.numpy as jnp

    import jaxqn

    minimize = jaxqn.minimize
    for dtype in (jnp.float32, jnp.float64):
        for method in jaxqn.METHODS:
            for n in (7, 400):
                if method != "newton" or n == 7:
                    solve = functools.partial(minimize, rosenbrock, method=method)
                    yield f"{method} {n} {jnp.dtype(dtype).name}", solve, (jnp.zeros(n, dtype),)
    x, one, t = jnp.zeros(7), jnp.ones(()), jnp.ones(5)
    layers = {"w": jnp.ones((1, 3)), "b": jnp.zeros(3), "v": jnp.ones(3)}
    short, sr1 = jaxqn.lbfgs_memory(3), jaxqn.lsr1_memory(3)
    narrow = jaxqn.lbfgs_memory(3, history_dtype=jnp.bfloat16)
    tolerances = {"gtol": 1e-3, "ftol": 1e-3, "xtol": 1e-3, "maxiter": 5, "maxfun": 9}
    panel, backtracking = jaxqn.dense(panel=4), jaxqn.backtracking()

    def at(x, **options):
        return minimize(rosenbrock, x, **options)

    def of_decay(a, **options):
        return minimize(decay, {"a": a, "b": a}, (t,), **options)

    def of_network(p, **options):
        return minimize(network, p, (t,), **options)

    yield "aux", functools.partial(minimize, rosenbrock_aux, has_aux=True), (x,)
    yield "aux lbfgs", functools.partial(minimize, rosenbrock_aux, has_aux=True, method=short), (x,)
    yield "backtracking", functools.partial(at, linesearch=backtracking), (x,)
    yield "H0", lambda x, H: at(x, hess_inv0=H), (x, jnp.eye(7))
    yield "H0 diagonal", lambda x, d: at(x, hess_inv0=d, method="lbfgs"), (x, jnp.ones(7))
    yield "H0 and x_scale", lambda x, H: at(x, hess_inv0=H, x_scale=2.0), (x, jnp.eye(7))
    yield "x_scale", functools.partial(at, x_scale=2.0), (x,)
    yield "x_scale lbfgs", functools.partial(at, x_scale=2.0, method="lbfgs"), (x,)
    yield "x_scale newton", functools.partial(at, x_scale=2.0, method="newton"), (x,)
    yield "tolerances", functools.partial(at, **tolerances), (x,)
    yield "tree", of_decay, (one,)
    yield "tree lbfgs", functools.partial(of_decay, method="lbfgs"), (one,)
    yield "tree damped", functools.partial(of_decay, method=jaxqn.damped(short)), (one,)
    yield "tree x_scale", functools.partial(of_decay, x_scale={"a": 1.0, "b": one}), (one,)
    yield "leaves", of_network, (layers,)
    yield "leaves lbfgs", functools.partial(of_network, method="lbfgs"), (layers,)
    yield "damped dense", functools.partial(at, method=jaxqn.damped(jaxqn.dense())), (x,)
    yield "lsr1", functools.partial(at, method=sr1), (x,)
    yield "lbfgs narrow", functools.partial(at, method=narrow), (x,)
    yield "panel", functools.partial(at, method=panel), (x,)
    yield "newton clip", functools.partial(at, method=jaxqn.corrected_newton(mode="clip")), (x,)
    yield "long dense", at, (jnp.zeros(1200),)
    for name, length in (("long", 20_000), ("longer", 50_000)):
        v = jnp.zeros(length)
        yield f"{name} lbfgs", functools.partial(at, method="lbfgs"), (v,)
        yield f"{name} lbfgs x_scale", functools.partial(at, method="lbfgs", x_scale=3.0), (v,)
        yield f"{name} lsr1", functools.partial(at, method=sr1), (v,)
        yield f"{name} tolerances", functools.partial(at, method="lbfgs", **tolerances), (v,)
    yield "vmap", jax.vmap(at), (jnp.zeros((5, 7)),)
    yield "vmap lbfgs", jax.vmap(functools.partial(at, method="lbfgs")), (jnp.zeros((5, 7)),)
    yield "vmap panel", jax.vmap(functools.partial(at, method=panel)), (jnp.zeros((5, 7)),)
    yield "vmap of vmap", jax.vmap(jax.vmap(at)), (jnp.zeros((2, 3, 7)),)
    for name, method in (("", "osbfgs"), (" lbfgs", "lbfgs")):
        state = at(x, maxiter=2, method=method, x_scale=2.0).state
        go_on = functools.partial(at, x, method=method)
        yield f"continued{name}", lambda s, go_on=go_on: go_on(state=s), (state,)
    result = at(x, maxiter=2)
    yield "hess_inv", lambda r: r.hess_inv, (result,)
    yield "product", lambda r, v: r.hess_inv_product(v), (result, x)
    limited = at(x, maxiter=2, method="lbfgs")
    yield "product lbfgs", lambda r, v: r.hess_inv_product(v), (limited, x)
    yield "pairs lbfgs", lambda r: r.pairs, (limited,)


def batch_cases():
    """The same for batches."""
    import jax.numpy as jnp

    import jaxqn

    many, few = jnp.zeros((300, 7)), jnp.zeros((40, 7))
    t = jnp.ones((40, 5))
    batch, multi = jaxqn.minimize_batch, jaxqn.multi_start
    yield "batch", functools.partial(batch, rosenbrock), (many,)
    yield "batch aux", functools.partial(batch, rosenbrock_aux, has_aux=True), (few,)
    yield "batch wide", functools.partial(batch, rosenbrock, lanes=128), (many,)
    yield "batch lbfgs", functools.partial(batch, rosenbrock, method="lbfgs"), (few,)
    yield "batch newton", functools.partial(batch, rosenbrock, method="newton"), (few,)
    yield "batch x_scale", functools.partial(batch, rosenbrock, x_scale=2.0), (few,)
    yield "batch H0", lambda x, H: batch(rosenbrock, x, hess_inv0=H), (few, jnp.eye(7))
    shared = {"a": jnp.ones(()), "b": jnp.ones(())}
    yield "batch data", lambda p, t: batch(decay, p, (t,), in_axes=(None, 0)), (shared, t)
    yield "multi_start", functools.partial(multi, rosenbrock), (few,)
    yield "multi_start target", functools.partial(multi, rosenbrock, target=1e-3), (few,)


def transformation_cases():
    """Two updates of every transformation, and their eager sizes: a pair needs two."""
    import jax
    import jax.numpy as jnp
    import optax

    import jaxqn

    leaves = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
    x = {"one vector": jnp.ones(7), "leaves": leaves}

    def value_fn(p):
        return sum(jnp.sum(jnp.cos(v) ** 2) for v in jax.tree.leaves(p))

    def steps(solver, p):
        state = solver.init(p)
        for _ in range(2):
            value, grads = jax.value_and_grad(value_fn)(p)
            updates, state = solver.update(
                grads, state, p, value=value, grad=grads, value_fn=value_fn
            )
            p = optax.apply_updates(p, updates)
        return p, state

    needs_options = {
        "scale_by_broyden": {"phi": 0.5},
        "scale_by_quasi_newton": {"qn": jaxqn.damped(jaxqn.lbfgs_memory(3))},
    }
    searched = {"scale_by_linesearch"}  # it scales the updates of another
    aliases = {*jaxqn.METHODS, "lsr1"}
    for name in sorted({n for n in jaxqn.__all__ if n.startswith("scale_by_")} | aliases):
        make = functools.partial(getattr(jaxqn, name), **needs_options.get(name, {}))
        if name in searched:
            make = functools.partial(_after_sign, make)
        for size, params in x.items():
            yield f"{name} {size}", functools.partial(_steps, steps, make), (params,)


def _after_sign(make):
    import optax

    return optax.chain(optax.scale(-1.0), make())


def _steps(steps, make, params):
    return steps(make(), params)


def programs() -> dict[str, str]:
    """The text of every configuration's jaxpr, without the names of Python functions."""
    import jax

    jax.config.update("jax_enable_x64", True)
    texts = {}
    for cases in (driver_cases, batch_cases, transformation_cases):
        for name, function, operands in cases():
            text = str(jax.make_jaxpr(function)(*operands))
            for pattern, instead in PRIVATE:
                text = pattern.sub(instead, text)
            texts[name] = text
    return texts


def taken_with(package: pathlib.Path) -> dict[str, str]:
    """The programs as the package in that folder makes them, in a process of its own."""
    environment = {**os.environ, "FINGERPRINT_PACKAGE": str(package)}
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "programs.json")
        command = [sys.executable, "-W", "ignore", __file__, str(out)]
        subprocess.run(command, env=environment, check=True)
        return json.loads(out.read_text("utf-8"))


def short_hash(text: str) -> str:
    """Twelve digits of a text's digest."""
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def main(options) -> dict:
    """Prints a hash per configuration, or what has changed since ``--base``."""
    now = taken_with(ROOT)
    if not options.base:
        for name, text in now.items():
            print(f"{short_hash(text)} {len(text.splitlines()):6} lines  {name}")
        whole = short_hash("".join(now.values()))
        print(f"{len(now)} configurations, in all {whole}")
        return {"all": whole, **{name: short_hash(text) for name, text in now.items()}}
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder, "base")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), options.base], check=True)
        try:
            before = taken_with(tree)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    changed = [name for name in now if now[name] != before.get(name)]
    for name in changed:
        print(f"{short_hash(before.get(name, ''))} -> {short_hash(now[name])}  {name}")
    if options.show in changed:
        lines = difflib.unified_diff(
            before[options.show].splitlines(), now[options.show].splitlines(), lineterm="", n=2
        )
        print("\n".join(lines))
    print(f"{len(now) - len(changed)} of {len(now)} configurations equal those of {options.base}")
    return {"equal": len(now) - len(changed), "changed": changed}


if __name__ == "__main__":
    sys.path[0] = os.environ["FINGERPRINT_PACKAGE"]
    pathlib.Path(sys.argv[1]).write_text(json.dumps(programs()), "utf-8")
