"""Stochastic training of three small networks: jaxqn's mini-batch methods beside the usual ones.

scikit-learn's digits (see `networks`), a fixed 80/20 split, batches of 128, float32; a CNN, an RNN
that reads row by row, a small transformer with the rows as tokens. A seed draws the initial
parameters and the order of the batches; every method sees the same of both, and the same schedule:
a linear warm-up over 5 % of its steps, then a cosine to zero.

The loss is cross-entropy against labels smoothed by 0.1, less its least value: plain cross-entropy
of a separable set falls for ever as the logits grow, so that it would rank methods by how far they
let them. It is exact, over the training split and over the test split, after the last step.

A method's peak rate is tuned by the mean training loss over seeds that are not reported: three
rates a quarter of a decade apart, more to the side of the best until it is inside. Then two tables:

  equal evaluations  every method gets the same number of gradient evaluations; one that evaluates
                     more than one gradient per step takes fewer steps
  equal time         every method gets the time of Adam's run, as measured by interleaved repeats
                     within this process, at the same rate

optax 0.2.8 has no SOAP, so the one here is written from its paper (arXiv:2409.11321, algorithm 3),
with eigenvectors renewed every 5 steps, and Nesterov's momentum, which helped it.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import digits, networks

BUDGET = 300
TUNING_SEEDS = (101, 102)
MOST_RATES = 11
NETWORKS = {**networks.NETWORKS, "transformer": networks.TRANSFORMER}


def add_arguments(parser):
    group = parser.add_argument_group("training")
    group.add_argument("--training-seeds", default="0,1,2,3,4", help="comma-separated (0,1,2,3,4)")
    group.add_argument("--training-budget", type=int, help=f"gradient evaluations ({BUDGET})")
    group.add_argument("--training-networks", default=",".join(NETWORKS), help="comma-separated")
    group.add_argument("--training-smoothing", type=float, default=0.1, help="of labels (0.1)")


class Method(NamedTuple):
    """An optimiser under test.

    Attributes:
      make: ``learning_rate or schedule -> optax transformation``.
      rate: centre of the grid of peak rates.
      gradients: evaluated per step, on average.
      needs: the name in jaxqn that must exist, None for a peer.
    """

    make: Callable[[Any], optax.GradientTransformation]
    rate: float
    gradients: float = 1.0
    needs: str | None = None


class SoapState(NamedTuple):
    """State of :func:`scale_by_soap`: Adam's means, and per matrix its moments and eigenbases."""

    count: Any
    mu: Any
    nu: Any
    factors: Any


def scale_by_soap(b1=0.9, b2=0.99, eps=1e-8, decay=0.95, every=5):
    """Adam in the eigenbases of E[G Gᵀ] and E[GᵀG]; plain Adam for what is no matrix."""

    def is_matrix(p) -> bool:
        return p.ndim == 2 and min(p.shape) > 1

    def bases(p):
        if not is_matrix(p):
            return ()
        return [(jnp.zeros((n, n), p.dtype), jnp.eye(n, dtype=p.dtype)) for n in p.shape]

    def init(params):
        zeros = functools.partial(jax.tree.map, jnp.zeros_like)
        factors = [bases(p) for p in jax.tree.leaves(params)]
        return SoapState(jnp.zeros((), jnp.int32), zeros(params), zeros(params), factors)

    def one(g, mu, nu, factors, count):
        k = (count + 1).astype(g.dtype)
        mu = b1 * mu + (1 - b1) * g
        mean = b1 * mu / (1 - b1**k) + (1 - b1) * g
        turn, back = (lambda v: v), (lambda v: v)
        if factors:
            renewed = []
            for (moment, basis), sample in zip(factors, (g @ g.T, g.T @ g), strict=True):
                moment = decay * moment + (1 - decay) * sample
                basis = jax.lax.cond(
                    count % every == 0,
                    lambda a, _: jnp.linalg.eigh(a)[1],
                    lambda _, b: b,
                    moment,
                    basis,
                )
                renewed.append((moment, basis))
            factors = renewed
            (_, left), (_, right) = factors
            turn, back = (lambda v: left.T @ v @ right), (lambda v: left @ v @ right.T)
        nu = b2 * nu + (1 - b2) * turn(g) ** 2
        step = turn(mean) / (jnp.sqrt(nu / (1 - b2**k)) + eps)
        return back(step), mu, nu, factors

    def update(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates)
        parts = zip(
            leaves, jax.tree.leaves(state.mu), jax.tree.leaves(state.nu), state.factors, strict=True
        )
        out = [one(*part, state.count) for part in parts]
        step, mu, nu = (structure.unflatten([o[i] for o in out]) for i in range(3))
        return step, SoapState(state.count + 1, mu, nu, [o[3] for o in out])

    return optax.GradientTransformation(init, update)


def _ours(name: str, **options):
    """A transformation of jaxqn, followed by the rate."""

    def make(learning_rate):
        import jaxqn.transforms.kronecker
        import jaxqn.transforms.stochastic

        room = jaxqn.transforms.kronecker
        if not hasattr(room, name):
            room = jaxqn.transforms.stochastic
        scale = getattr(room, name)(**options)
        return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))

    return make


KRONECKER, STOCHASTIC = "scale_by_kronecker", "scale_by_stochastic_lbfgs"
METHODS = {
    "momentum": Method(functools.partial(optax.sgd, momentum=0.9), 0.18),
    "adam": Method(functools.partial(optax.adam, b2=0.99), 0.03),
    "muon": Method(functools.partial(optax.contrib.muon, beta=0.9), 0.05),
    "soap": Method(
        lambda rate: optax.chain(scale_by_soap(), optax.scale_by_learning_rate(rate)), 0.03
    ),
    "kronecker": Method(_ours(KRONECKER), 0.06, needs=KRONECKER),
    "kronecker, rank one": Method(_ours(KRONECKER, correction="rank_one"), 0.04, needs=KRONECKER),
    "stochastic lbfgs": Method(_ours(STOCHASTIC, b2=0.99), 0.03, 1.2, STOCHASTIC),
}


class Run(NamedTuple):
    """What a training run came to; losses over the training and the test split."""

    loss: Any
    test_loss: Any
    accuracy: Any


def loss_of(network, smoothing: float):
    """``(params, images, labels) ->`` divergence from the smoothed labels, mean over the batch."""
    share = smoothing / networks.CLASSES
    masses = np.array([1 - smoothing + share] + [share] * (networks.CLASSES - 1))
    least = -float(sum(m * np.log(m) for m in masses if m > 0))

    def loss(params, images, labels):
        logits = network.apply(params, images)
        others = jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1))
        chosen = networks.cross_entropy(logits, labels)
        return (1 - smoothing) * chosen + smoothing * others - least

    return loss


def schedule(peak, steps):
    """A linear warm-up over 5 % of the steps, then a cosine to zero; all may be traced."""

    def at(count):
        count, total = jnp.asarray(count, networks.DTYPE), jnp.asarray(steps, networks.DTYPE)
        warm = jnp.maximum(jnp.floor(0.05 * total), 1.0)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * (count - warm) / jnp.maximum(total - warm, 1.0)))
        return peak * jnp.where(count < warm, (count + 1) / warm, fall)

    return at


def program(method: Method, network, data: networks.Digits, smoothing: float, longest: int):
    """``(peak, seed, steps) -> Run``, compiled once."""
    loss = loss_of(network, smoothing)

    @jax.jit
    def run(peak, steps, data, params, order):
        optimizer = optax.with_extra_args_support(method.make(schedule(peak, steps)))

        def body(step, carry):
            params, state = carry
            at = order[step % order.shape[0]]
            batch_loss = functools.partial(loss, images=data.images[at], labels=data.labels[at])
            grads = jax.grad(batch_loss)(params)
            updates, state = optimizer.update(grads, state, params, value_fn=batch_loss)
            return optax.apply_updates(params, updates), state

        params, _ = jax.lax.fori_loop(0, steps, body, (params, optimizer.init(params)))
        right = jnp.argmax(network.apply(params, data.test_images), -1) == data.test_labels
        return Run(
            loss(params, data.images, data.labels),
            loss(params, data.test_images, data.test_labels),
            jnp.mean(right.astype(networks.DTYPE)),
        )

    def call(peak: float, seed: int, steps: int) -> Run:
        start = digits.prepare(seed, network, data.labels.size, longest, digits.BATCH)
        peak, steps = jnp.asarray(peak, networks.DTYPE), jnp.asarray(steps, jnp.int32)
        return jax.tree.map(float, jax.device_get(run(peak, steps, data, *start)))

    return call


def tune(run: Callable, centre: float, steps: int) -> tuple[float, dict]:
    """The best peak rate, and the mean loss at every rate tried."""
    scores: dict[int, float] = {}

    def score(quarter: int) -> float:
        if quarter not in scores:
            rate = centre * 10 ** (quarter / 4)
            losses = [run(rate, seed, steps).loss for seed in TUNING_SEEDS]
            scores[quarter] = float(np.mean([x if np.isfinite(x) else np.inf for x in losses]))
        return scores[quarter]

    for quarter in (0, -1, 1):
        score(quarter)
    best = min(scores, key=scores.__getitem__)
    while len(scores) < MOST_RATES and best in (min(scores), max(scores)):
        score(best - 1 if best == min(scores) else best + 1)
        best = min(scores, key=scores.__getitem__)
    rates = {f"{centre * 10 ** (q / 4):.3g}": scores[q] for q in sorted(scores)}
    return centre * 10 ** (best / 4), rates


def time_ratio(run: Callable, base: Callable, rate: float, rounds: int, steps: int = 120) -> float:
    """Time per step over that of the base: median of the ratios of interleaved repeats."""

    def seconds(call: Callable, peak: float, steps: int) -> float:
        started = time.perf_counter()
        call(peak, TUNING_SEEDS[0], steps)
        return time.perf_counter() - started

    ratios = []
    for _ in range(rounds):
        taken = [
            seconds(call, peak, steps) - seconds(call, peak, 0)  # less the losses at the end
            for call, peak in ((run, rate), (base, METHODS["adam"].rate))
        ]
        ratios.append(taken[0] / taken[1])
    return float(np.median(ratios))


def summary(runs: list[Run]) -> dict:
    """Every field of every run."""
    return {field: [getattr(r, field) for r in runs] for field in Run._fields}


def print_table(title: str, rows: dict, part: str) -> None:
    """Mean and standard deviation over the seeds, a row per method."""
    print(f"{title}\n{'method':22}{'rate':>8}{'steps':>7}{'time/step':>11}", end="")
    print("".join(f"{column:>22}" for column in ("training loss", "test loss", "test %")))
    for name, row in rows.items():
        found = row[part]
        cells = ""
        for field, unit in (("loss", 1), ("test_loss", 1), ("accuracy", 100)):
            values = unit * np.array(found[field])
            mean, spread = values.mean(), digits.spread_of(values)
            cells += f"{f'{mean:.4g} ± {spread:.2g}':>22}"
        print(f"{name:22}{row['rate']:8.3g}{found['steps']:7}{row['time']:11.2f}{cells}")


def main(options) -> dict:
    """Two tables per network."""
    try:
        data = networks.load_digits()
    except ImportError:
        print("skipped: scikit-learn is not available")
        return {}
    seeds = [int(seed) for seed in options.training_seeds.split(",")]
    budget, rounds = options.training_budget or BUDGET, 5
    if options.quick:
        seeds, rounds = seeds[:2], 3
        budget = options.training_budget or 100
    names = [n for n in METHODS if not options.solvers or n in options.solvers]
    results: dict = {"budget": budget, "seeds": seeds, "smoothing": options.training_smoothing}
    for name in options.training_networks.split(","):
        network = NETWORKS[name]
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        count = sum(a.size for a in jax.tree.leaves(shapes))
        print(f"\n{name}, {count} parameters, {budget} gradient evaluations, {len(seeds)} seeds")
        programs = {
            n: program(METHODS[n], network, data, options.training_smoothing, budget)
            for n in dict.fromkeys(("adam", *names))
        }
        programs["adam"](METHODS["adam"].rate, TUNING_SEEDS[0], 1)  # compiled
        rows = {}
        for label in names:
            run, method = programs[label], METHODS[label]
            steps = int(budget / method.gradients)
            rate, tuning = tune(run, method.rate, steps)
            ratio = 1.0 if label == "adam" else time_ratio(run, programs["adam"], rate, rounds)
            within = int(budget / ratio)
            equal = summary([run(rate, seed, steps) for seed in seeds])
            timed = summary([run(rate, seed, within) for seed in seeds])
            rows[label] = {
                "rate": rate,
                "tuning": tuning,
                "time": ratio,
                "evaluations": {**equal, "steps": steps},
                "timed": {**timed, "steps": within},
            }
            tried = "  ".join(f"{rate}: {score:.3g}" for rate, score in tuning.items())
            print(f"  {label}: {tried}", flush=True)
        print_table("equal gradient evaluations", rows, "evaluations")
        print_table("equal time", rows, "timed")
        results[name] = rows
    return results
