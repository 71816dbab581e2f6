"""Batches larger than memory: ``minimize_stream``."""

import contextlib
import hashlib
import importlib
import json
import os
import re
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxqn._arguments import check_count
from jaxqn._axes import Layout, axes_of, common_size, split
from jaxqn._batch import solve_batch
from jaxqn._checks import check_native, check_x0, check_x_scale, is_traced
from jaxqn._problem import problem_of
from jaxqn._typing import ArrayTree, Objective
from jaxqn.linesearch import LineSearch
from jaxqn.minimize import DEFAULT_METHOD, MinimizeResult
from jaxqn.quasi_newton import QuasiNewton

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
    method: str | QuasiNewton = DEFAULT_METHOD,
    linesearch: LineSearch | None = None,
    gtol: Any = None,
    ftol: Any = 0.0,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    hess_inv0: Any = None,
    x_scale: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> MinimizeResult:
    """Minimise for more problems than the device's memory holds, a chunk at a time.

    The chunks go through one compiled program of :func:`jaxqn.minimize_batch`; the next is put on
    the device, and the results of the last are fetched, while one is being worked on.

    Args:
      fun: objective ``fun(x, *args)`` of one problem; see :func:`jaxqn.minimize`.
      x0: first points, a pytree of NumPy arrays; ``np.memmap`` is read a chunk at a time.
      args: further arguments of ``fun``, pytrees of NumPy arrays likewise.
      in_axes: see :func:`jaxqn.minimize_batch`, as for ``lanes`` and all the options after it.
      chunk: problems on the device at once.
      folder: where to keep the results of every chunk, each in a file of its own. After a kill the
        same call goes on from the last of them, and gives the same results bit for bit.
      progress: show tqdm's bar if that is installed, else a line now and then; on standard error.
      lanes: see there.
      method: see there.
      linesearch: see there.
      gtol: see there.
      ftol: see there.
      xtol: see there.
      maxiter: see there.
      maxfun: see there.
      has_aux: see there.
      hess_inv0: see there.
      x_scale: see there.
      mesh: see there.

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
    options = dict(gtol=gtol, ftol=ftol, xtol=xtol, maxiter=maxiter, maxfun=maxfun)
    if is_traced((x0, args, options, hess_inv0, x_scale)):
        raise TypeError(
            "minimize_stream runs on the host, but this call is being traced (jit, vmap or scan): "
            "call it eagerly, or take jaxqn.minimize_batch"
        )
    chunk = check_count("chunk", chunk)
    problem = problem_of(fun, method, linesearch, has_aux, args)
    mapped, shared, layout = _on_host(in_axes, (x0, *args))
    total = len(mapped[0])
    chunk = min(chunk, total)

    def solve(some: list[Any], shared: list[Any], starts: dict[str, Any]) -> MinimizeResult:
        x0, *args = layout.join(some, shared)
        zeros: list[Any] = [0] * len(some)
        axes = layout.join(zeros, [None] * len(shared))
        result = solve_batch(problem, x0, tuple(args), axes, lanes, options, **starts, mesh=mesh)
        return result._replace(state=None)

    starts = dict(hess_inv0=hess_inv0, x_scale=x_scale)
    first, same, files = [a[:chunk] for a in mapped], (shared, starts), None
    shapes = jax.eval_shape(solve, first, *same)
    one = check_x0(layout.join([a[0] for a in mapped], shared)[0])[0]
    problem.initial(hess_inv0, one), check_x_scale(x_scale, one)  # their numbers can be seen now
    if any(_is_key(leaf) for leaf in jax.tree.leaves(shapes)):
        raise TypeError("fun returns random keys: return jax.random.key_data(key), which NumPy has")
    whole = jax.tree.map(lambda a: np.empty((total, *a.shape[1:]), a.dtype), shapes)
    if folder is not None:
        call = {
            "problems": total,
            "chunk": chunk,
            "arrays": [_lasting(layout.structure), *(f"{a.dtype}{a.shape[1:]}" for a in mapped)],
            "digest of what all problems share": _digest(jax.tree.leaves(same)),
            "method": method if isinstance(method, str) else "a QuasiNewton",
            "lanes": lanes if lanes is None else int(lanes),
            "devices": 1 if mesh is None else mesh.size,
            **{k: v if v is None else float(v) for k, v in options.items()},
            "program": _digest([jax.jit(solve).lower(first, *same).as_text()]),
        }
        files = _Files(Path(folder), call)
    report = _reporter(total) if progress else lambda _: None
    _run(lambda some: solve(some, *same), mapped, chunk, jax.tree.leaves(whole), files, report)
    return whole


def _on_host(in_axes: Any, arguments: Any) -> tuple[list[np.ndarray], list[Any], Layout]:
    """As ``split``, but what runs over problems is not read, and the others are on the device."""
    for leaf in jax.tree.leaves(arguments[0]):
        check_native("x0", leaf)
    common_size(jax.eval_shape(lambda arguments: split(in_axes, arguments)[0], arguments))
    leaves, structure = jax.tree.flatten(arguments)
    pairs = list(zip(leaves, axes_of(in_axes, arguments), strict=True))
    if any(_is_key(leaf) for leaf, axis in pairs if axis is not None):
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
    files: "_Files | None",
    report: Callable[[int], Any],
) -> None:
    """Fill in the results, chunk by chunk; those of one are fetched when the next is under way."""
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
            inputs = _digest([files.call, *some])
            if files.read(name, inputs, rows):
                report(done)
                continue
        pending.append((name, inputs, rows, jax.tree.leaves(solve(some)), done))
        if len(pending) > 1:
            fetch(*pending.pop(0))
    for last in pending:
        fetch(*last)


class _Files:
    """A folder with a description of the call, and a file of results for every chunk."""

    def __init__(self, folder: Path, call: dict[str, Any]):
        self.folder, self.call = folder, json.dumps(call, indent=2)
        path = folder / "manifest.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, lambda file: file.write(self.call.encode()))
        try:
            there = json.loads(path.read_text("utf-8"))
        except ValueError:
            there = None
        if not isinstance(there, dict):
            self.refuse("its manifest.json cannot be read")
        differ = {k: v for k, v in json.loads(self.call).items() if there.get(k) != v}
        if differ.pop("program", None) and not differ:
            self.refuse("another objective, method or line search, or version of jax or jaxqn")
        if differ:
            self.refuse("; ".join(f"{k}: {there.get(k)} there, {differ[k]} here" for k in differ))

    def refuse(self, why: str) -> NoReturn:
        """A folder that cannot be continued."""
        what = f"{self.folder} holds the results of another call ({why})"
        raise ValueError(f"{what}: give another folder, or delete that one to begin again")

    def write(self, name: str, inputs: str, rows: list[np.ndarray]) -> None:
        """Keep results, and a digest of what they were computed from."""
        named: dict[str, Any] = {f"leaf{k}": leaf for k, leaf in enumerate(rows)}
        _replace(self.folder / name, lambda file: np.savez(file, inputs=inputs, **named))

    def read(self, name: str, inputs: str, rows: list[np.ndarray]) -> bool:
        """Put kept results in place; false if they are missing, cut short or damaged."""
        try:
            with (self.folder / name).open("rb") as file, np.load(file) as kept:
                same = str(kept["inputs"]) == inputs
                for k, leaf in enumerate(rows if same else []):
                    leaf[...] = kept[f"leaf{k}"].view(leaf.dtype)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return False
        if not same:
            self.refuse(f"the inputs of {name} have changed")
        return True


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        write(file)
    os.replace(unfinished, path)


def _lasting(structure: Any) -> str:
    """A structure in words, without the addresses of its functions: they last for a process."""
    return re.sub(r" at 0x\w+", "", str(structure))


def _is_key(leaf: Any) -> bool:
    """Whether it is an array of random keys, which NumPy does not have."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _digest(arrays: list[Any]) -> str:
    """Of types, shapes and numbers, or of text."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in arrays:
        leaf = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


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
