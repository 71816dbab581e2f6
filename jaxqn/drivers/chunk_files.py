"""Results of a stream in files: a folder with a manifest and a file per chunk."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

__all__ = ["ChunkFiles", "digest", "is_key", "without_addresses"]


class ChunkFiles:
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


def without_addresses(structure: Any) -> str:
    """A structure in words, without the addresses of functions, which last for one process."""
    return re.sub(r" at 0x\w+", "", str(structure))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys, a type that NumPy lacks."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def digest(arrays: list[Any]) -> str:
    """A digest of the types, shapes and numbers of arrays, or of text."""
    found = hashlib.blake2b(digest_size=16)
    for leaf in arrays:
        leaf = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(leaf.tobytes())
    return found.hexdigest()
