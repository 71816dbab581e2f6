"""Training a CNN and an RNN on scikit-learn's digits, at equal budgets of gradient evaluations.

1797 images of 8 by 8, a fixed 80/20 split, batches of 128, float32, softmax cross-entropy; the
networks are those of `networks`. A seed draws the initial parameters and the order of the batches;
every method sees the same of both. A step costs 1 (value and gradient of one batch), a
Hessian-vector product on a batch costs 2, and a step that would exceed the budget is not taken.
The number of products is the ``products`` of the optimiser's state, cumulative. The ratio of times
behind the 2 is printed.

Each method runs at its own learning rate, found by one protocol: seven rates half a decade apart,
more while the best is at an end, then a quarter of a decade to either side of the best; the score
is the mean final training loss over five seeds that are not reported, or over the first of them
where these rule a rate out.

Losses are exact ones over the training split, at the last step within 25, 50 and 100 % of the
budget: mean and standard deviation over the seeds, and the median at the end, because a constant
rate near the edge of stability now and then spoils a single seed. Beside them, for a method built
on another, the median over the seeds of the final loss over that of its base, and in how many
seeds it is lower.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import networks, timing

BATCH = 128
BUDGET = 500
FRACTIONS = (0.25, 0.5, 1.0)
TUNING_SEEDS = (101, 102, 103, 104, 105)
PRICES = {"products": 2}  # in gradient evaluations, by the name of the counter in the state
GRID = range(-6, 7, 2)  # quarters of a decade from a method's usual rate
MOST_RATES = 13


def add_arguments(parser):
    group = parser.add_argument_group("digits")
    group.add_argument("--digits-seeds", default="0,1,2,3,4", help="comma-separated (0,1,2,3,4)")
    group.add_argument("--digits-budget", type=int, help=f"gradient evaluations ({BUDGET})")


class Method(NamedTuple):
    """An optimiser under test.

    Attributes:
      make: ``learning_rate -> optax transformation``; the rate may be traced.
      rate: centre of the grid of learning rates.
      base: the method it is compared with, itself for a baseline.
      needs: the name in jaxqn that must exist, None for a baseline.
    """

    make: Callable[[Any], optax.GradientTransformation]
    rate: float
    base: str
    needs: str | None = None


def _corrected(*before: optax.GradientTransformation):
    """The spectral correction of whatever the transformations `before` make of the gradient."""

    def make(learning_rate):
        import jaxqn

        correction = jaxqn.scale_by_spectral_correction()
        return optax.chain(*before, correction, optax.scale_by_learning_rate(learning_rate))

    return make


CORRECTION = "scale_by_spectral_correction"
METHODS = {
    "sgd": Method(optax.sgd, 0.3, "sgd"),
    "sgd+correction": Method(_corrected(), 0.3, "sgd", CORRECTION),
    "momentum": Method(functools.partial(optax.sgd, momentum=0.9), 0.1, "momentum"),
    "momentum+correction": Method(_corrected(optax.trace(0.9)), 0.1, "momentum", CORRECTION),
    "adam": Method(optax.adam, 0.01, "adam"),
    "adam+correction": Method(_corrected(optax.scale_by_adam()), 0.01, "adam", CORRECTION),
}


class Run(NamedTuple):
    """What a training run came to, at each mark of its budget.

    Attributes:
      losses: over the training split, shape ``(3,)``.
      accuracy: on the test split at the end, shape ``()``.
      steps: taken, shape ``(3,)``.
      spent: gradient evaluations, at most the mark, shape ``(3,)``.
    """

    losses: Any
    accuracy: Any
    steps: Any
    spent: Any


def batches(key, examples: int, budget: int, batch: int):
    """Indices of shape ``(at least budget, batch)``: epochs without replacement, one by one."""
    each = examples // batch
    keys = jax.random.split(key, -(-budget // each))
    epochs = jax.vmap(lambda k: jax.random.permutation(k, examples)[: each * batch])(keys)
    return epochs.reshape(-1, batch)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def prepare(seed, network, examples: int, budget: int, batch: int):
    """Initial parameters and the indices of the batches of one seed."""
    keys = jax.random.split(jax.random.key(seed))
    return network.init(keys[0]), batches(keys[1], examples, budget, batch)


def spent_by(step, state):
    """Gradient evaluations of `step` steps with an optimiser that is now in `state`."""
    return step + sum(price * optax.tree.get(state, name, 0) for name, price in PRICES.items())


def train(transformation, network, data: networks.Digits, params, order, budget: int):
    """One training run as one loop, traceable.

    Args:
      transformation: an optax transformation; its update gets ``value``, ``grad`` and ``value_fn``,
        the loss on the batch at hand.
      network: a `networks.Network`.
      data: to train on.
      params: where to start.
      order: indices of the batch of every step.
      budget: in gradient evaluations.

    Returns:
      ``(params, steps, spent)`` at the last step within each mark, stacked.
    """
    transformation = optax.with_extra_args_support(transformation)
    marks = jnp.array([int(fraction * budget) for fraction in FRACTIONS], jnp.int32)
    loss = networks.loss_of(network)

    def body(carry):
        params, state, step, spent, kept = carry
        images, labels = data.images[order[step]], data.labels[order[step]]

        def value_fn(p):
            return loss(p, images, labels)

        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = transformation.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        params, step = optax.apply_updates(params, updates), step + 1
        spent = spent_by(step, state)

        def keep(old, new):
            within = (spent <= marks).reshape(-1, *(1,) * jnp.ndim(new))
            return jnp.where(within, new, old)

        return params, state, step, spent, jax.tree.map(keep, kept, (params, step, spent))

    zero = jnp.zeros((), jnp.int32)
    kept = jax.tree.map(lambda a: jnp.stack([a] * len(FRACTIONS)), (params, zero, zero))
    start = (params, transformation.init(params), zero, zero, kept)
    return jax.lax.while_loop(lambda carry: carry[3] < budget, body, start)[-1]


def program(make: Callable, network, data: networks.Digits, budget: int, batch: int = BATCH):
    """``(learning_rate, seed) -> Run`` in NumPy arrays, compiled once for all rates and seeds."""

    @jax.jit
    def run(learning_rate, data, params, order):
        return train(make(learning_rate), network, data, params, order, budget)

    def call(learning_rate: float, seed: int) -> Run:
        rate = jnp.asarray(learning_rate, networks.DTYPE)
        start = prepare(seed, network, data.labels.size, budget, batch)
        params, steps, spent = run(rate, data, *start)
        return jax.tree.map(
            np.asarray, Run(*networks.evaluate(network, params, data), steps, spent)
        )

    return call


def final_loss(run: Run) -> float:
    """The loss at the end, infinite where it is not finite."""
    value = float(run.losses[-1])
    return value if np.isfinite(value) else np.inf


def mean_loss(run: Callable, seeds, rate: float, limit: float) -> float:
    """Mean final loss over `seeds`; over the first few where these put it beyond `limit`."""
    losses: list[float] = []
    for seed in seeds:
        losses.append(final_loss(run(rate, seed)))
        if sum(losses) / len(seeds) > limit:  # whatever the others are
            break
    return float(np.mean(losses))


def tune(score: Callable[[float, float], float], centre: float) -> tuple[float, dict]:
    """The best learning rate by the protocol above, and the score of every rate tried.

    Args:
      score: ``(rate, limit) -> loss``, which need be exact only up to `limit`.
      centre: of the grid.
    """
    scores: dict[int, float] = {}

    def rate(quarter: int) -> float:
        return centre * 10 ** (quarter / 4)

    def add(quarter: int) -> None:
        scores[quarter] = score(rate(quarter), min(scores.values(), default=np.inf))

    def best() -> int:
        return min(scores, key=scores.__getitem__)

    for quarter in sorted(GRID, key=abs):
        add(quarter)
    while len(scores) < MOST_RATES and best() in (min(scores), max(scores)):
        add(best() - 2 if best() == min(scores) else best() + 2)
    middle = best()
    for quarter in (middle - 1, middle + 1):
        add(quarter)
    return rate(best()), {rate(quarter): scores[quarter] for quarter in sorted(scores)}


def measure(
    method: Method, network, data: networks.Digits, seeds, tuning_seeds, budget: int
) -> dict:
    """Tunes a method and runs it on the reported seeds."""
    run = program(method.make, network, data, budget)
    rate, scores = tune(functools.partial(mean_loss, run, tuning_seeds), method.rate)
    started = time.perf_counter()
    runs = [run(rate, seed) for seed in seeds]
    return {
        "rate": rate,
        "tuning": {f"{rate:.3g}": score for rate, score in scores.items()},
        "losses": [[float(x) for x in r.losses] for r in runs],
        "accuracies": [float(r.accuracy) for r in runs],
        "steps": [int(r.steps[-1]) for r in runs],
        "spent": [int(r.spent[-1]) for r in runs],
        "seconds": (time.perf_counter() - started) / len(runs),
    }


def price_of_product(network, data: networks.Digits, rounds: int) -> float:
    """Time of a Hessian-vector product over that of a value and gradient, on one batch."""
    params, loss, times = network.init(jax.random.key(0)), networks.loss_of(network), 50

    def step(pair, images, labels):
        p, v = pair
        gradient = functools.partial(jax.grad(loss), images=images, labels=labels)
        product = jax.jvp(gradient, (p,), (v,))[1]
        # moved imperceptibly, as in `timing.value_and_grad_loop`
        return jax.tree.map(lambda a, b: a + 1e-20 * b, pair, (product, product))

    args = (data.images[:BATCH], data.labels[:BATCH])
    calls = {
        "gradient": timing.compiled(timing.value_and_grad_loop(loss, times), params, *args),
        "product": timing.compiled(timing.loop_of(step, times), (params, params), *args),
    }
    taken = timing.interleaved(calls, rounds)
    return taken["product"] / taken["gradient"]


def compare(row: dict, base: dict) -> tuple[float, int]:
    """Median of the final losses over the base's, seed by seed, and the number of seeds below."""
    ours, theirs = (np.array(r["losses"])[:, -1] for r in (row, base))
    return float(np.median(ours / theirs)), int(np.sum(ours < theirs))


def print_tuning(name: str, row: dict) -> None:
    """The scores of all rates of one method."""
    tried = "  ".join(f"{rate}: {score:.3g}" for rate, score in row["tuning"].items())
    print(f"  {name}: {tried}", flush=True)


def spread_of(samples):
    """Standard deviation over the first axis, of a sample where there is more than one."""
    with np.errstate(invalid="ignore"):  # a run that diverged: the spread is NaN
        return samples.std(0, ddof=1 if len(samples) > 1 else 0)


def print_table(rows: dict) -> None:
    """A row per method."""
    columns = "".join(f"{f'loss at {100 * f:.0f} %':>20}" for f in FRACTIONS)
    columns += f"{'median':>10}{'test %':>14}{'s/run':>7}  over base"
    print(f"{'method':22}{'rate':>9}{'steps':>7}{columns}")
    for name, row in rows.items():
        losses, accuracies = np.array(row["losses"]), 100 * np.array(row["accuracies"])
        cells = "".join(
            f"{f'{mean:.2e} ± {spread:.1e}':>20}"
            for mean, spread in zip(losses.mean(0), spread_of(losses), strict=True)
        )
        accuracy = f"{accuracies.mean():.2f} ± {spread_of(accuracies):.2f}"
        beside = ""
        if row["base"] != name and row["base"] in rows:
            ratio, lower = compare(row, rows[row["base"]])
            beside = f"{ratio:.3f}, lower in {lower} of {len(losses)}"
        print(
            f"{name:22}{row['rate']:9.3g}{np.mean(row['steps']):7.0f}{cells}"
            f"{np.median(losses[:, -1]):10.2e}{accuracy:>14}"
            f"{row['seconds']:7.2f}  {beside}"
        )


def exists(needs: str | None) -> bool:
    """Whether jaxqn has what a method needs."""
    if needs is None:
        return True
    try:
        import jaxqn
    except ImportError:
        return False
    return hasattr(jaxqn, needs)


def available(names) -> dict[str, Method]:
    """The methods asked for that exist; the others are printed."""
    groups = {
        "peers": [name for name, method in METHODS.items() if method.needs is None],
        "jaxqn": [name for name, method in METHODS.items() if method.needs is not None],
    }
    wanted = [name for group in names or groups for name in groups.get(group, [group])]
    methods = {}
    for name in dict.fromkeys((*METHODS, *wanted)):
        if name not in wanted:
            continue
        if name not in METHODS:
            print(f"skipped: {name} (unknown; known: {', '.join(METHODS)})")
        elif not exists(METHODS[name].needs):
            print(f"skipped: {name} (jaxqn.{METHODS[name].needs} is not there)")
        else:
            methods[name] = METHODS[name]
    return methods


def main(options) -> dict:
    """A table per network."""
    try:
        data = networks.load_digits()
    except ImportError:
        print("skipped: scikit-learn is not available")
        return {}
    seeds = [int(seed) for seed in options.digits_seeds.split(",")]
    tuning_seeds, budget, rounds = TUNING_SEEDS, options.digits_budget or BUDGET, 15
    if options.quick:
        seeds, tuning_seeds, rounds = seeds[:2], TUNING_SEEDS[:2], 5
        budget = options.digits_budget or 200
    methods = available(options.solvers)
    results: dict = {"budget": budget, "seeds": seeds}
    for name, network in networks.NETWORKS.items():
        count = sum(
            a.size for a in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
        )
        price = price_of_product(network, data, rounds)
        print(
            f"\n{name}, {count} parameters, {budget} gradient evaluations, {len(seeds)} seeds; a"
            f" Hessian-vector product counts 2 and takes the time of {price:.2f}"
        )
        print(f"rates and their mean loss over seeds {', '.join(map(str, tuning_seeds))}")
        rows = {}
        for label, method in methods.items():
            rows[label] = measure(method, network, data, seeds, tuning_seeds, budget)
            rows[label]["base"] = method.base
            print_tuning(label, rows[label])
        print_table(rows)
        results[name] = {"parameters": count, "price": price, "methods": rows}
    return results
