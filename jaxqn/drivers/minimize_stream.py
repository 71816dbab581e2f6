"""Batches larger than memory: ``minimize_stream``."""

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack, cast

import jax
import numpy as np

from jaxqn._typing import ArrayTree, Objective
from jaxqn.checks import check_count, check_native, check_x0, is_traced
from jaxqn.drivers.batch_bounds import with_box
from jaxqn.drivers.batch_solve import solve_batch
from jaxqn.drivers.chunk_files import ChunkFiles, digest, is_key, without_addresses
from jaxqn.drivers.in_axes import Layout, axes_of, common_size, split
from jaxqn.drivers.result import MinimizeResult
from jaxqn.loop import MinimizeOptions, completed, default_method, problem_of

__all__ = ["minimize_stream"]


def minimize_stream(
    fun: Objective,
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    in_axes: Any = 0,
    chunk: int = 65536,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
    lanes: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **options: Unpack[MinimizeOptions],
) -> MinimizeResult:
    """Minimise for more problems than the device's memory holds, a chunk at a time.

    The chunks go through one compiled program of :func:`jaxqn.minimize_batch`; the next is put on
    the device, and the results of the last are fetched, while one is being worked on.

    Args:
      fun: objective ``fun(x, *args)`` of one problem; see :func:`jaxqn.minimize`.
      x0: first points, a pytree of NumPy arrays; ``np.memmap`` is read a chunk at a time.
      args: further arguments of ``fun``, pytrees of NumPy arrays likewise.
      in_axes: see :func:`jaxqn.minimize_batch`.
      chunk: problems on the device at once.
      folder: where to keep the results of every chunk, each in a file of its own. After a kill the
        same call goes on from the last of them, and gives the same results bit for bit.
      progress: show tqdm's bar if that is installed, else a line now and then; on standard error.
      lanes: see :func:`jaxqn.minimize_batch`.
      mesh: see :func:`jaxqn.minimize_batch`.
      **options: see :func:`jaxqn.minimize_batch`.

    Returns:
      A :class:`jaxqn.MinimizeResult` of NumPy arrays, a row per problem; ``state`` is ``None``.

    Raises:
      TypeError: see :func:`jaxqn.minimize_batch`; and when traced, under ``jit`` for instance.
      ValueError: see there; and when the folder holds results of other inputs or options.

    Cost: that of :func:`jaxqn.minimize_batch`; memory for two chunks there, all results here.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> def fun(x, target):
      ...     return jnp.sum((x - target) ** 2)
      >>> targets = np.arange(10.0, dtype=np.float32).reshape(5, 2)
      >>> result = minimize_stream(fun, np.zeros(2), (targets,), in_axes=(None, 0), chunk=2)
      >>> result.x[3].tolist(), bool(result.success.all())
      ([6.0, 7.0], True)
    """
    settings = completed("minimize_stream", options)
    starts = {name: settings[name] for name in ("hess_inv0", "x_scale")}
    in_axes, arguments = with_box(settings, in_axes, x0, args)
    if is_traced((arguments, _numbers(settings), starts)):
        raise TypeError(
            "minimize_stream runs on the host, but this call is being traced (jit, vmap or scan): "
            "call it eagerly, or take jaxqn.minimize_batch"
        )
    chunk = check_count("chunk", chunk)
    problem = problem_of(fun, args, settings)
    settings["method"] = settings["method"] or default_method(fun)
    mapped, shared, layout = _on_host(in_axes, arguments)
    total = len(mapped[0])
    chunk = min(chunk, total)

    def solve(some: list[Any], shared: list[Any], starts: dict[str, Any]) -> MinimizeResult:
        zeros: list[Any] = [0] * len(some)
        result = solve_batch(
            problem,
            cast(MinimizeOptions, settings | starts),
            layout.join(some, shared),
            in_axes=layout.join(zeros, [None] * len(shared)),
            lanes=lanes,
            mesh=mesh,
        )
        return result._replace(state=None)

    first, same, files = [a[:chunk] for a in mapped], (shared, starts), None
    shapes = jax.eval_shape(solve, first, *same)
    one = check_x0(layout.join([a[0] for a in mapped], shared)[0])[0]
    problem.starts(settings, one)  # outside of tracing, where numbers can be checked
    if any(is_key(leaf) for leaf in jax.tree.leaves(shapes)):
        raise TypeError("fun returns random keys: return jax.random.key_data(key), which NumPy has")
    whole = jax.tree.map(lambda a: np.empty((total, *a.shape[1:]), a.dtype), shapes)
    if folder is not None:
        call = {
            "problems": total,
            "chunk": chunk,
            "lanes": lanes if lanes is None else int(lanes),
            "devices": 1 if mesh is None else mesh.size,
            "program": digest([jax.jit(solve).lower(first, *same).as_text()]),
            **_description(settings, mapped, layout, same),
        }
        files = ChunkFiles(Path(folder), call)
    report = _reporter(total) if progress else lambda _: None
    _run(lambda some: solve(some, *same), mapped, chunk, jax.tree.leaves(whole), files, report)
    return whole


def _numbers(settings: MinimizeOptions) -> dict[str, Any]:
    """Tolerances and budgets by name."""
    return {name: settings[name] for name in ("gtol", "ftol", "xtol", "maxiter", "maxfun")}


def _description(
    settings: MinimizeOptions, mapped: list[np.ndarray], layout: Layout, same: Any
) -> dict[str, Any]:
    """What a manifest says of the inputs and options of a call."""
    method = settings["method"]
    return {
        "arrays": [
            without_addresses(layout.structure),
            *(f"{a.dtype}{a.shape[1:]}" for a in mapped),
        ],
        "digest of what all problems share": digest(jax.tree.leaves(same)),
        "method": method if isinstance(method, str) else "a QuasiNewton",
        **{k: v if v is None else float(v) for k, v in _numbers(settings).items()},
    }


def _on_host(in_axes: Any, arguments: Any) -> tuple[list[np.ndarray], list[Any], Layout]:
    """As ``split``, with mapped arrays left unread on the host and shared ones on the device."""
    for leaf in jax.tree.leaves(arguments[0]):
        check_native("x0", leaf)
    common_size(jax.eval_shape(lambda arguments: split(in_axes, arguments)[0], arguments))
    leaves, structure = jax.tree.flatten(arguments)
    pairs = list(zip(leaves, axes_of(in_axes, arguments), strict=True))
    if any(is_key(leaf) for leaf, axis in pairs if axis is not None):
        raise TypeError(
            "random keys cannot run over problems here, where arrays are NumPy's: hand over "
            "jax.random.key_data(keys), and take jax.random.wrap_key_data in fun"
        )
    mapped = [np.moveaxis(np.asarray(leaf), axis, 0) for leaf, axis in pairs if axis is not None]
    shared = [jax.device_put(leaf) for leaf, axis in pairs if axis is None]
    return mapped, shared, Layout(structure, tuple(axis is not None for _, axis in pairs))


def _run(
    solve: Callable[[list[np.ndarray]], MinimizeResult],
    mapped: list[np.ndarray],
    chunk: int,
    results: list[np.ndarray],
    files: ChunkFiles | None,
    report: Callable[[int], Any],
) -> None:
    """Fill in the results chunk by chunk. Those of one chunk are fetched while the next runs."""
    total = len(mapped[0])
    pending: list[tuple[str, str, list[np.ndarray], list[Any], int]] = []

    def fetch(name: str, inputs: str, rows: list[np.ndarray], found: list[Any], done: int) -> None:
        for here, there in zip(rows, found, strict=True):
            here[...] = np.asarray(there)[: len(here)]
        if files is not None:
            files.write(name, inputs, rows)
        report(done)

    for start in range(0, total, chunk):
        now, done = slice(start, start + chunk), min(start + chunk, total)
        name, inputs, rows = f"from-{start:09}.npz", "", [leaf[now] for leaf in results]
        spare = start + chunk - done  # the last chunk is filled up with its last problem
        some = [np.concatenate([a[now], np.repeat(a[-1:], spare, axis=0)]) for a in mapped]
        if files is not None:
            inputs = digest([files.call, *some])
            if files.read(name, inputs, rows):
                report(done)
                continue
        pending.append((name, inputs, rows, jax.tree.leaves(solve(some)), done))
        if len(pending) > 1:
            fetch(*pending.pop(0))
    for last in pending:
        fetch(*last)


def _reporter(total: int) -> Callable[[int], Any]:
    """Shows how many problems are done: on tqdm's bar, or in lines."""
    with contextlib.suppress(ImportError):
        bar = importlib.import_module("tqdm").tqdm(total=total, unit=" problems")
        return lambda done: bar.update(done - bar.n)
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        if done == total or time.monotonic() >= last + 1:
            last = time.monotonic()
            print(f"{done} of {total} problems", file=sys.stderr, flush=True)

    return report
