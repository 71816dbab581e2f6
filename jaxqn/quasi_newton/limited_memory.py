"""Limited memory: the verbs of a quasi-Newton approximation over the newest m pairs.

The pairs are stacks, leaf by leaf like the parameters; a new pair overwrites the slot of the
oldest. No function ravels, rolls or concatenates a stack, so that every leaf keeps its sharding.
:mod:`jaxqn.quasi_newton.compact_form` turns m-by-m matrices of inner products into coefficients p
and w, and a product is

    H g = H₀ (g − Y p) + S w.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_like
from jaxqn.formulas import has_curvature
from jaxqn.linalg import eps, safe_divide, update_if
from jaxqn.linalg.stacks import combine, dots, empty_stack, is_exact, put_where, rounded
from jaxqn.linalg.vectors import (
    cast_like,
    over_diagonal,
    products,
    times_diagonal,
    tree_dtype,
    vdot,
)
from jaxqn.quasi_newton.compact_form import CompactForm, by_age
from jaxqn.quasi_newton.memory_state import MemoryState
from jaxqn.quasi_newton.protocol import Face, QuasiNewton

__all__ = ["limited_memory"]


def limited_memory(form: CompactForm, m: int, history_dtype: Any = None) -> QuasiNewton:
    """The limited-memory approximation of a compact form; its arguments are ``lbfgs_memory``'s."""
    if isinstance(m, bool) or not hasattr(m, "__index__"):
        raise TypeError(f"the memory m must be a whole number of pairs, but it is {m!r}")
    if m < 1:
        raise ValueError(f"the memory m must be at least 1 pair, but it is {m}")
    if history_dtype is not None and not jnp.issubdtype(history_dtype, jnp.floating):
        raise TypeError(
            "history_dtype must be a floating dtype such as jnp.bfloat16, but it is "
            f"{history_dtype!r}"
        )
    return _verbs(form, int(m), None if history_dtype is None else jnp.dtype(history_dtype))


@functools.cache
def _verbs(form: CompactForm, m: int, history_dtype: Any) -> QuasiNewton:
    advance = functools.partial(_advance, form)
    return QuasiNewton(
        init=functools.partial(_init, form, m, history_dtype),
        update=functools.partial(_update, form),
        apply=functools.partial(_apply, form),
        advance=advance,
        reset=_reset,
        dense=False,
        advance_on_face=advance,
    )


def _init(
    form: CompactForm, m: int, history_dtype: Any, x: ArrayTree, H0: ArrayTree | None = None
) -> MemoryState:
    if H0 is not None:
        check_like("H0", H0, x, "with limited memory, it is a diagonal")
        # A copy: no leaf may alias the caller's array.
        H0 = jax.tree.map(lambda d, v: jnp.array(d, v.dtype), H0, x)
    dtype = tree_dtype(x)
    return form.state(
        s=empty_stack(m, x, history_dtype),
        y=empty_stack(m, x, history_dtype),
        sy=jnp.zeros((m, m), dtype),
        yy=jnp.zeros((m, m), dtype),
        ss=jnp.zeros((m,), dtype),
        sg=jnp.zeros((2, m), dtype),
        gg=jnp.zeros((), dtype),
        gamma=jnp.ones((), dtype),
        start=H0,
        counts=jnp.zeros((3,), jnp.int32),
    )


def _update(form: CompactForm, state: MemoryState, s: ArrayTree, y: ArrayTree) -> MemoryState:
    s, y = rounded(s, state.s), rounded(y, state.y)
    squares = jnp.stack(products(*_squares(state, s, y)))
    state, accepted = _absorb(form, state, s, y, squares, _products(state, y))
    # No gradient is known here, so that ``advance`` must not take y for the change since the last.
    return state._replace(gg=jnp.where(accepted, jnp.nan, state.gg))


def _apply(form: CompactForm, state: MemoryState, g: ArrayTree, H0: Any = None) -> ArrayTree:
    gg = vdot(g, times_diagonal(state.start, g))
    return _product(form, state, g, _products(state, g), gg, H0)


def _advance(
    form: CompactForm,
    state: MemoryState,
    s: ArrayTree,
    y: ArrayTree,
    g: ArrayTree,
    Hg: ArrayTree,
    moved: Array,
    face: Face | None = None,
    H0: Any = None,
) -> tuple[MemoryState, ArrayTree]:
    s, y = rounded(s, state.s), rounded(y, state.y)
    if face is not None:  # Sᵀg is of other variables: no number is the square of that gradient
        state = state._replace(gg=jnp.where(face.changed, jnp.nan, state.gg))

    def measured() -> tuple[Array, ...]:
        Dg = times_diagonal(state.start, g)
        sg, yg, gg, *squares = products((s, g), (y, Dg), (g, Dg), *_squares(state, s, y))
        return _products(state, g), jnp.stack([sg, yg]), gg, jnp.stack(squares)

    def unmoved() -> tuple[Array, ...]:
        zeros = jnp.zeros((3,), state.gg.dtype)
        return state.sg, zeros[:2], state.gg, zeros

    # Unbatched, a refused trial reads nothing; under vmap these are selects between m-vectors.
    sg, own, gg, squares = jax.lax.cond(moved, measured, unmoved)
    known = jnp.zeros((), bool)
    if is_exact(state.y, y):
        known = _same_gradient(state.gg, gg, own[1], squares[2])
    # A loop of at most one trip, not a cond: under vmap the body runs only if some lane needs it.
    _, change = jax.lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(carry[0]), _products(state, y)),
        (moved & ~known, sg - state.sg),
    )
    new = jnp.arange(state.ss.size, dtype=jnp.int32) == state.slot
    state, accepted = _absorb(form, state, s, y, squares, change)
    sg = jnp.where((accepted & new)[None], own[:, None], sg)
    aimed = functools.partial(_product, form, state, g, sg, gg, H0)
    Hg = update_if(moved, Hg, lambda _: aimed(), branch=True)  # in place
    return state._replace(sg=sg, gg=gg), Hg


def _reset(state: MemoryState, when: Array) -> MemoryState:
    none_absorbed = state.counts * jnp.array([0, 1, 1], state.counts.dtype)
    return state._replace(
        gamma=jnp.where(when, jnp.ones_like(state.gamma), state.gamma),
        counts=jnp.where(when, none_absorbed, state.counts),
    )


def _same_gradient(old_gg: Array, gg: Array, yg: Array, yy: Array) -> Array:
    """Whether g − y is the last gradient, by its square and up to rounding."""
    drift = gg - 2 * yg + yy - old_gg
    return jnp.abs(drift) <= eps(gg.dtype) ** 0.5 * (gg + yy)


def _products(state: MemoryState, v: ArrayTree) -> Array:
    """Sᵀv and Yᵀ diag(start) v by slot, shape ``(2, m)``: one read of the history."""
    # Without the barrier XLA stores v m times to share it between the stacks.
    Dv = jax.lax.optimization_barrier(times_diagonal(state.start, v))
    return jnp.stack([dots(state.s, v, state.gg.dtype), dots(state.y, Dv, state.gg.dtype)])


def _squares(
    state: MemoryState, s: ArrayTree, y: ArrayTree
) -> tuple[tuple[ArrayTree, ArrayTree], ...]:
    """The factors of sᵀ diag(start)⁻¹ s, sᵀy and yᵀ diag(start) y of a pair."""
    return (s, over_diagonal(state.start, s)), (s, y), (y, times_diagonal(state.start, y))


def _absorb(
    form: CompactForm, state: MemoryState, s: ArrayTree, y: ArrayTree, squares: Array, change: Array
) -> tuple[MemoryState, Array]:
    """Store a pair, given Sᵀy and YᵀH₀y: masks on small arrays, and rows written in place."""
    slot, (ss, sy, yy) = state.slot, squares
    here = jnp.arange(state.ss.size, dtype=slot.dtype) == slot
    curved = has_curvature(ss, sy, yy)
    columns = jnp.where(here[None], jnp.stack([sy, yy])[:, None], change)
    trial = state._replace(
        sy=jnp.where(here[None], columns[0][:, None], state.sy),
        yy=jnp.where(here[None], columns[1][:, None], state.yy),
        ss=jnp.where(here, ss, state.ss),
        counts=jnp.stack([state.absorbed + 1, state.refused, (slot + 1) % here.size]),
    )
    if state.start is None:
        gamma = form.scale * safe_divide(sy, yy, curved)
        trial = trial._replace(gamma=jnp.where(curved, gamma, state.gamma))
    # Asking whether the columns are finite also orders the pass that made them before the rows are
    # written. XLA then writes in place and copies no history.
    accepted = form.accepts(by_age(trial), curved) & jnp.all(jnp.isfinite(columns))
    refused = (~accepted & (ss != 0)).astype(slot.dtype) * jnp.array([0, 1, 0], slot.dtype)
    state = state._replace(
        s=put_where(accepted, state.s, slot, s),
        y=put_where(accepted, state.y, slot, y),
        sy=jnp.where(accepted, trial.sy, state.sy),
        yy=jnp.where(accepted, trial.yy, state.yy),
        ss=jnp.where(accepted, trial.ss, state.ss),
        gamma=jnp.where(accepted, trial.gamma, state.gamma),
        counts=jnp.where(accepted, trial.counts, state.counts + refused),
    )
    return state, accepted


def _product(
    form: CompactForm, state: MemoryState, g: ArrayTree, sg: Array, gg: Array, H0: Any
) -> ArrayTree:
    """H g from Sᵀg and YᵀH₀g; an ``H0`` replaces the state's H₀."""
    grams, oldest = by_age(state), state.slot
    a, b = jnp.where(grams.valid, jnp.roll(sg, -oldest, 1), 0)

    def minus(v: ArrayTree, c: Array, stack: ArrayTree) -> ArrayTree:
        mixed = combine(jnp.roll(c, oldest), stack, g)
        return jax.tree.map(lambda v, u: v.astype(u.dtype) - u, v, mixed)

    if H0 is None:
        p, w = form.coefficients(grams, a, state.gamma * b, state.gamma * gg)
        z = times_diagonal(state.start, minus(g, p, state.y))
        z = jax.tree.map(lambda v: state.gamma.astype(v.dtype) * v, z)
    elif form.two_halves is None:
        raise TypeError("only L-BFGS takes an H0 for one product: give L-SR1 its H0 at init")
    else:
        first, second = form.two_halves
        p = _finite(first(grams, a))
        q = cast_like(minus(g, p, state.y), g)
        # A module of parameters, as Equinox has, may be callable too; a function is a leaf.
        is_function = callable(H0) and jax.tree_util.all_leaves([H0])
        z = H0(q) if is_function else times_diagonal(H0, q)
        b = jnp.where(grams.valid, jnp.roll(dots(state.y, z, b.dtype), -oldest), 0)
        w = _finite(second(grams, p, b))
    return cast_like(minus(z, -w, state.s), g)


def _finite(c: Array) -> Array:
    """The coefficients; zero where one of them is not finite."""
    return jnp.where(jnp.all(jnp.isfinite(c)), c, 0)
