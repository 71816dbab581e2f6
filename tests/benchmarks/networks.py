"""Small classifiers of small images, in pure JAX, and scikit-learn's digits to train them on.

Every network is a `Network`: ``init(key) -> params``, a dict of dicts of arrays, and
``apply(params, images) -> logits`` with images of shape ``(batch, 8, 8)``. All is float32, and
activations are smooth, so that Hessians exist.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HEIGHT = WIDTH = 8
CLASSES = 10
DTYPE = jnp.float32


class Network(NamedTuple):
    """A classifier as two functions.

    Attributes:
      init: ``key -> params``, a dict of dicts of arrays.
      apply: ``(params, images) -> logits``, shape ``(batch, 10)``.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]


def _layer(key, shape: tuple[int, ...], initial) -> dict:
    """Weights of `shape` and zero biases, one per output, the last axis."""
    return {"w": initial(key, shape, DTYPE), "b": jnp.zeros(shape[-1:], DTYPE)}


def _affine(layer: dict, x):
    out = x @ layer["w"]
    return out + jnp.broadcast_to(layer["b"], out.shape)


def patches(images, stride: int):
    """The 3-by-3 patches of zero-padded images, for convolutions that are matrix products.

    Args:
      images: shape ``(batch, height, width, channels)``.
      stride: of the patches' centres.

    Returns:
      Shape ``(batch, height / stride, width / stride, 9 channels)``, rows of the patch first.
    """
    _, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


def cnn_init(key) -> dict:
    """He-normal convolutions and a Glorot-normal dense layer: 3818 parameters."""
    keys = jax.random.split(key, 3)
    he, glorot = jax.nn.initializers.he_normal(), jax.nn.initializers.glorot_normal()
    flat = (HEIGHT // 2) * (WIDTH // 2) * 16
    return {
        "conv1": _layer(keys[0], (9, 8), he),
        "conv2": _layer(keys[1], (72, 16), he),
        "dense": _layer(keys[2], (flat, CLASSES), glorot),
    }


def cnn(params: dict, images):
    """Two 3-by-3 convolutions (8 maps, then 16 with stride 2), each with a GELU; a dense layer."""
    x = jax.nn.gelu(_affine(params["conv1"], patches(images[..., None], 1)))
    x = jax.nn.gelu(_affine(params["conv2"], patches(x, 2)))
    return _affine(params["dense"], x.reshape(x.shape[0], -1))


def rnn_init(key) -> dict:
    """Glorot-normal input and output, an orthogonal recurrence: 1642 parameters."""
    keys = jax.random.split(key, 3)
    glorot, orthogonal = jax.nn.initializers.glorot_normal(), jax.nn.initializers.orthogonal()
    hidden = 32
    return {
        "input": _layer(keys[0], (WIDTH, hidden), glorot),
        "recurrence": {"w": orthogonal(keys[1], (hidden, hidden), DTYPE)},
        "dense": _layer(keys[2], (hidden, CLASSES), glorot),
    }


def rnn(params: dict, images):
    """An Elman network, tanh, 32 units, that reads an image row by row from the top."""
    inputs = jnp.moveaxis(_affine(params["input"], images), 1, 0)
    start = jnp.zeros(inputs.shape[1:], inputs.dtype)

    def read(state, row):
        return jnp.tanh(row + state @ params["recurrence"]["w"]), None

    state, _ = jax.lax.scan(read, start, inputs, unroll=True)
    return _affine(params["dense"], state)


WIDTH_OF_TOKENS, HEADS, BLOCKS = 24, 2, 2


def transformer_init(key, blocks: int = BLOCKS) -> dict:
    """Glorot-normal matrices, learned positions, norms at one: 10450 parameters in two blocks."""
    keys = iter(jax.random.split(key, 4 * blocks + 3))
    glorot, width = jax.nn.initializers.glorot_normal(), WIDTH_OF_TOKENS
    small = jax.nn.initializers.normal(0.02)

    def norm() -> dict:
        return {"w": jnp.ones((width,), DTYPE), "b": jnp.zeros((width,), DTYPE)}

    def block() -> dict:
        return {
            "norm1": norm(),
            "attention": _layer(next(keys), (width, 3 * width), glorot),
            "mix": _layer(next(keys), (width, width), glorot),
            "norm2": norm(),
            "up": _layer(next(keys), (width, 2 * width), glorot),
            "down": _layer(next(keys), (2 * width, width), glorot),
        }

    return {
        "input": _layer(next(keys), (WIDTH, width), glorot),
        "position": {"w": small(next(keys), (HEIGHT, width), DTYPE)},
        **{f"block{i + 1}": block() for i in range(blocks)},
        "norm": norm(),
        "dense": _layer(next(keys), (width, CLASSES), glorot),
    }


def _norm(layer: dict, x):
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return x * jnp.broadcast_to(layer["w"], x.shape) + jnp.broadcast_to(layer["b"], x.shape)


def _attend(block: dict, x):
    """Self-attention of all tokens with all, shape ``(batch, tokens, width)``."""
    split = (*x.shape[:2], 3, HEADS, x.shape[-1] // HEADS)
    q, k, v = jnp.unstack(_affine(block["attention"], x).reshape(split), axis=2)
    scores = jnp.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    mixed = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores, axis=-1), v)
    return _affine(block["mix"], mixed.reshape(x.shape))


def transformer(params: dict, images):
    """Pre-norm blocks of attention and a GELU layer; the eight rows are the tokens."""
    x = _affine(params["input"], images)
    x = x + jnp.broadcast_to(params["position"]["w"], x.shape)
    for name in sorted(name for name in params if name.startswith("block")):
        block = params[name]
        x = x + _attend(block, _norm(block["norm1"], x))
        hidden = jax.nn.gelu(_affine(block["up"], _norm(block["norm2"], x)))
        x = x + _affine(block["down"], hidden)
    return _affine(params["dense"], jnp.mean(_norm(params["norm"], x), axis=1))


def cross_entropy(logits, labels):
    """Mean cross-entropy of softmax `logits`, shape ``(batch, classes)``, integer `labels`."""
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


NETWORKS = {"cnn": Network(cnn_init, cnn), "rnn": Network(rnn_init, rnn)}
TRANSFORMER = Network(transformer_init, transformer)


def loss_of(network: Network):
    """The objective ``(params, images, labels) -> mean cross-entropy``."""

    def loss(params, images, labels):
        return cross_entropy(network.apply(params, images), labels)

    return loss


class Digits(NamedTuple):
    """Images, shape ``(count, 8, 8)``, values in [0, 1], and labels, split once and for all."""

    images: jax.Array
    labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def load_digits() -> Digits:
    """The digits in float32, four fifths to train on."""
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(digits.target.size)
    images = jnp.asarray(digits.images[order] / 16.0, DTYPE)
    labels = jnp.asarray(digits.target[order], jnp.int32)
    split = order.size * 4 // 5
    return Digits(images[:split], labels[:split], images[split:], labels[split:])


@functools.partial(jax.jit, static_argnums=0)
def evaluate(network: Network, params, data: Digits):
    """Training losses of several sets of parameters, and the last one's accuracy on the test."""
    loss = jax.vmap(loss_of(network), (0, None, None))
    logits = network.apply(jax.tree.map(lambda a: a[-1], params), data.test_images)
    accuracy = jnp.mean((jnp.argmax(logits, -1) == data.test_labels).astype(logits.dtype))
    return loss(params, data.images, data.labels), accuracy
