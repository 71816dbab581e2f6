"""Classical test functions and small fits, as one numbered objective.

Formulas and starts are those of Moré, Garbow & Hillstrom, ACM Trans. Math. Softw. 7 (1981), where a
function has a name there. All take a flat vector in any floating dtype. `numbered` pads them to one
length, so that one compiled program of a solver runs them all.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.problems import beale, powell_singular, rosenbrock, wood


class Function(NamedTuple):
    """An objective with its standard start.

    Attributes:
      name: as printed.
      fun: objective of a flat vector.
      x0: standard start, float64.
    """

    name: str
    fun: Callable
    x0: np.ndarray


def helical_valley(x):
    theta = jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)
    r = jnp.sqrt(x[0] ** 2 + x[1] ** 2)
    return 100 * ((x[2] - 10 * theta) ** 2 + (r - 1) ** 2) + x[2] ** 2


def freudenstein_roth(x):
    a, b = x
    first = -13 + a + ((5 - b) * b - 2) * b
    second = -29 + a + ((b + 1) * b - 14) * b
    return first**2 + second**2


def brown_dennis(x):
    t = jnp.arange(1, 21, dtype=x.dtype) / 5
    parts = (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2
    return jnp.sum(parts**2)


def box3d(x):
    t = jnp.arange(1, 11, dtype=x.dtype) / 10
    model = jnp.exp(-t * x[0]) - jnp.exp(-t * x[1])
    return jnp.sum((model - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))) ** 2)


def penalty(x):
    return 1e-5 * jnp.sum((x - 1) ** 2) + (jnp.sum(x**2) - 0.25) ** 2


def variably_dimensioned(x):
    i = jnp.arange(1, x.size + 1, dtype=x.dtype)
    inner = jnp.sum(i * (x - 1))
    return jnp.sum((x - 1) ** 2) + inner**2 + inner**4


def trigonometric(x):
    n, i = x.size, jnp.arange(1, x.size + 1, dtype=x.dtype)
    parts = n - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)
    return jnp.sum(parts**2)


def kowalik_osborne(x):
    y = [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
    u = jnp.asarray([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625], x.dtype)
    model = x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])
    return jnp.sum((jnp.asarray(y, x.dtype) - model) ** 2)


def jennrich_sampson(x):
    i = jnp.arange(1, 11, dtype=x.dtype)
    return jnp.sum((2 + 2 * i - jnp.exp(i * x[0]) - jnp.exp(i * x[1])) ** 2)


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def dixon_price(x):
    i = jnp.arange(2, x.size + 1, dtype=x.dtype)
    return (x[0] - 1) ** 2 + jnp.sum(i * (2 * x[1:] ** 2 - x[:-1]) ** 2)


def ill_conditioned(x):
    d = jnp.logspace(0, 6, x.size, dtype=x.dtype)
    return jnp.sum(d * (x - 1) ** 2) / 2 + 3


def smooth_absolute(x):
    return jnp.sum(jnp.sqrt(1 + (x - 2) ** 2))


def shifted_rosenbrock(x):
    return rosenbrock(x) + 1e4


_random = np.random.default_rng(0)
_X = np.c_[np.ones(80), _random.normal(size=(80, 4)) * [1, 30, 0.1, 5]]
_labels = np.where(_random.random(80) < 1 / (1 + np.exp(-_X @ [0.3, 1, 0.03, -5, 0.1])), 1.0, -1.0)
_counts = _random.poisson(np.exp(_X[:, [0, 1, 3]] @ [1.0, 0.4, 2.0])).astype(float)
_t = np.linspace(0, 4, 40)
_decay = 3 * np.exp(-1.2 * _t) + 0.5 + 0.05 * _random.normal(size=40)
_line = _X @ [2.0, -1.0, 0.05, 3.0, 0.2] + 0.3 * _random.normal(size=80)


def logistic(w):
    margins = jnp.asarray(_labels, w.dtype) * (jnp.asarray(_X, w.dtype) @ w)
    return jnp.sum(jnp.logaddexp(jnp.zeros_like(margins), -margins)) + 0.5 * w @ w


def poisson(w):
    eta = jnp.asarray(_X[:, [0, 1, 3]], w.dtype) @ w
    return jnp.sum(jnp.exp(eta) - jnp.asarray(_counts, w.dtype) * eta)


def decay(p):
    model = p[0] * jnp.exp(-p[1] * jnp.asarray(_t, p.dtype)) + p[2]
    return jnp.sum((model - jnp.asarray(_decay, p.dtype)) ** 2)


def softplus_decay(u):
    return decay(jnp.stack([jax.nn.softplus(u[0]), jax.nn.softplus(u[1]), u[2]]))


def line(w):
    return jnp.sum((jnp.asarray(_X, w.dtype) @ w - jnp.asarray(_line, w.dtype)) ** 2)


FUNCTIONS = (
    Function("rosenbrock 2", rosenbrock, np.array([-1.2, 1.0])),
    Function("rosenbrock 6", rosenbrock, np.tile([-1.2, 1.0], 3)),
    Function("rosenbrock 10", rosenbrock, np.tile([-1.2, 1.0], 5)),
    Function("rosenbrock + 1e4", shifted_rosenbrock, np.array([-1.2, 1.0])),
    Function("beale", beale, np.ones(2)),
    Function("wood", wood, np.array([-3.0, -1.0, -3.0, -1.0])),
    Function("powell singular", powell_singular, np.array([3.0, -1.0, 0.0, 1.0])),
    Function("helical valley", helical_valley, np.array([-1.0, 0.0, 0.0])),
    Function("freudenstein roth", freudenstein_roth, np.array([0.5, -2.0])),
    Function("brown dennis", brown_dennis, np.array([25.0, 5.0, -5.0, -1.0])),
    Function("box 3d", box3d, np.array([0.0, 10.0, 20.0])),
    Function("penalty", penalty, np.arange(1.0, 5.0)),
    Function("variably dimensioned", variably_dimensioned, 1 - np.arange(1.0, 9.0) / 8),
    Function("trigonometric", trigonometric, np.full(6, 1 / 6)),
    Function("kowalik osborne", kowalik_osborne, np.array([0.25, 0.39, 0.415, 0.39])),
    Function("jennrich sampson", jennrich_sampson, np.array([0.3, 0.4])),
    Function("himmelblau", himmelblau, np.array([1.0, 1.0])),
    Function("dixon price", dixon_price, np.ones(6)),
    Function("ill-conditioned", ill_conditioned, np.zeros(8) + 0.5),
    Function("smooth absolute", smooth_absolute, np.array([5.0, -3.0])),
    Function("logistic", logistic, np.full(5, 0.1)),
    Function("poisson", poisson, np.full(3, 0.1)),
    Function("decay", decay, np.array([1.0, 1.0, 0.1])),
    Function("softplus decay", softplus_decay, np.array([1.0, 0.5, 0.1])),
    Function("line", line, np.full(5, 0.1)),
)
SIZE = max(function.x0.size for function in FUNCTIONS)


def numbered(x, index):
    """The function of that number at the first entries of x."""
    branches = [lambda x, f=f: f.fun(x[: f.x0.size]) for f in FUNCTIONS]
    return jax.lax.switch(index, branches, x)


def starts(scales, per_scale: int, seed: int = 0):
    """Starts of all functions: vectors ``(k, SIZE)``, numbers ``(k,)`` and scales ``(k,)``.

    ``per_scale`` times each scale times the standard start, every entry off by up to 30 %, but the
    first at scale 1, which is the standard start itself.
    """
    random = np.random.default_rng(seed)
    rows, numbers, sizes = [], [], []
    for number, function in enumerate(FUNCTIONS):
        for scale in scales:
            for repeat in range(per_scale):
                jitter = 1 + 0.3 * random.uniform(-1, 1, function.x0.size)
                exact = scale == 1 and repeat == 0
                row = np.zeros(SIZE)
                row[: function.x0.size] = scale * function.x0 * (1 if exact else jitter)
                rows.append(row)
                numbers.append(number)
                sizes.append(scale)
    return np.array(rows), np.array(numbers, np.int32), np.array(sizes)
