"""The states of limited memory: the newest m pairs, and inner products between them."""

from typing import NamedTuple

from jaxqn._typing import Array, ArrayTree

__all__ = ["MemoryState", "SR1MemoryState"]


class MemoryState(NamedTuple):
    """The newest m pairs of L-BFGS, and what is known of them. H₀ = gamma · diag(start).

    Attributes:
      s: steps, a stack ``(m, *leaf.shape)``; a new pair overwrites the slot of the oldest.
      y: gradient changes, likewise.
      sy: sᵢᵀyⱼ by slot, shape ``(m, m)``; kept where pair i is no newer than pair j.
      yy: yᵢᵀ diag(start) yⱼ, likewise.
      ss: sᵢᵀ diag(start)⁻¹ sᵢ, shape ``(m,)``.
      sg: sᵢᵀg and yᵢᵀ diag(start) g for the newest gradient g, shape ``(2, m)``: with them, Sᵀy and
        YᵀH₀y are differences that need no pass of their own.
      gg: gᵀ diag(start) g, shape ``()``; tells whether ``sg`` is of the gradient before y.
      gamma: scale of H₀, shape ``()``; 1 where a ``start`` was given.
      start: a diagonal like the parameters, or ``None`` for ones.
      counts: ``absorbed``, ``refused`` and ``slot``, int32, shape ``(3,)``.
    """

    s: ArrayTree
    y: ArrayTree
    sy: Array
    yy: Array
    ss: Array
    sg: Array
    gg: Array
    gamma: Array
    start: ArrayTree | None
    counts: Array

    @property
    def size(self) -> int:
        """How many pairs there is room for."""
        return self.ss.shape[-1]

    @property
    def absorbed(self) -> Array:
        """Pairs absorbed since the start or the last reset, int32, shape ``(...)``."""
        return self.counts[..., 0]

    @property
    def refused(self) -> Array:
        """Pairs refused since the start, int32, shape ``(...)``."""
        return self.counts[..., 1]

    @property
    def slot(self) -> Array:
        """The slot to write next, int32, shape ``(...)``."""
        return self.counts[..., 2]


class SR1MemoryState(MemoryState):
    """The same fields, of L-SR1.

    The class adds and overrides nothing; it is a tag that says which matrix the pairs stand for. A
    pytree keeps the class of its nodes under ``jit``, under ``vmap`` and in pickles, so that a
    state needs neither a leaf for the tag, which every checkpoint would have to store, nor a static
    field, which libraries that save fields one by one could not.
    """
