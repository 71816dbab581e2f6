"""The first call of a fresh process: an exponential with three parameters.

Every contestant runs in processes of its own, one after the other, round by
round. A process imports its library, makes 60 points and fits them. Given are
medians of processor seconds (those of a busy machine mean something) and of
wall-clock seconds: of the call alone, and of the whole process from its first
import on. Ratios are to optimistix' BFGS in the same run.
"""

import json
import os
import statistics
import subprocess
import sys

PRELUDE = """
import json, time
wall, processor = time.perf_counter(), time.process_time()
import jax, jax.numpy as jnp, numpy as np
{imports}
jax.config.update("jax_enable_x64", {x64})

def model(p, t):
    return p["amplitude"] * jnp.exp(-p["rate"] * t) + p["offset"]

def residuals(p, t, y):
    return model(p, t) - y

def loss(p, t, y):
    return jnp.sum(residuals(p, t, y) ** 2)

t = jnp.linspace(0.0, 4.0, 60)
noise = 0.02 * np.random.default_rng(0).normal(size=60)
y = 5 * jnp.exp(-1.3 * t) + 0.5 + jnp.asarray(noise, t.dtype)
p0 = {{"amplitude": jnp.array(1.0), "rate": jnp.array(1.0), "offset": jnp.array(0.0)}}
call_wall, call_processor = time.perf_counter(), time.process_time()
x = {call}
rate = float(x["rate"])
ended = time.perf_counter(), time.process_time()
print(json.dumps({{"rate": rate, "wall": ended[0] - wall, "processor": ended[1] - processor,
    "call wall": ended[0] - call_wall, "call processor": ended[1] - call_processor}}))
"""

BFGS = "optimistix BFGS"
CONTESTANTS = {
    BFGS: (
        "import optimistix",
        "optimistix.minimise(lambda p, d: loss(p, *d), optimistix.BFGS(1e-8, 1e-8), p0, (t, y))"
        ".value",
    ),
    "optimistix LM": (
        "import optimistix",
        "optimistix.least_squares(lambda p, d: residuals(p, *d), "
        "optimistix.LevenbergMarquardt(1e-8, 1e-8), p0, (t, y)).value",
    ),
    "jaxqn minimize": ("import jaxqn", "jaxqn.minimize(loss, p0, (t, y)).x"),
    "jaxqn lbfgs": ("import jaxqn", 'jaxqn.minimize(loss, p0, (t, y), method="lbfgs").x'),
    "jaxqn least_squares": ("import jaxqn", "jaxqn.least_squares(residuals, p0, (t, y)).x"),
    "jaxqn lm": ("import jaxqn", 'jaxqn.least_squares(residuals, p0, (t, y), method="lm").x'),
    "optax.lbfgs, 30 steps": (
        "import optax",
        "__import__('tests.benchmarks.first_call', fromlist=['x']).thirty_steps(loss, p0, t, y)",
    ),
}


def thirty_steps(loss, p, t, y):
    """optax.lbfgs as its documentation has it, for so many steps."""
    import jax
    import optax

    def fun(p):
        return loss(p, t, y)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(fun)

    @jax.jit
    def solve(p):
        def step(_, carry):
            p, state = carry
            value, grad = value_and_grad(p, state=state)
            updates, state = solver.update(grad, state, p, value=value, grad=grad, value_fn=fun)
            return optax.apply_updates(p, updates), state

        return jax.lax.fori_loop(0, 30, step, (p, solver.init(p)))[0]

    return solve(p)


def once(name: str, x64: bool) -> dict:
    """What one process measured of itself."""
    imports, call = CONTESTANTS[name]
    script = PRELUDE.format(imports=imports, call=call, x64=x64)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def main(options) -> dict:
    """A row per contestant."""
    rounds, taken = 3 if options.quick else 7, {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            taken[name].append(once(name, options.dtype == "float64"))
    rows = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in taken.items()
    }
    figures = ("processor", "call processor", "wall", "call wall")
    print(f"seconds of the first call, {options.dtype}, medians of {rounds} processes; over {BFGS}")
    print(f"{'':24}" + "".join(f"{figure:>22}" for figure in figures))
    for name, row in rows.items():
        cells = (f"{row[f]:>13.2f} {row[f] / rows[BFGS][f]:>7.2f}x" for f in figures)
        print(f"{name:24}" + "".join(cells))
    return rows
