"""Imports point downwards, formulas know nothing of optax, and the package stays dependency-light."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxqn"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up: a room may import from the rooms before it, and from itself.
ROOMS = [
    "_typing",
    "_numerics",
    "derivatives",
    "curvature",
    "rules",
    "updates",
    "spectral",
    "memory",
    "quasi_newton",
    "linesearch",
    "termination",
    "_checks",
    "loop",
    "minimize",
    "batch",
    "transforms",
    "aliases",
    "__init__",
    "_demo",
    "__main__",
]
FORMULAS = ["curvature", "updates", "spectral", "linesearch"]
DEPENDENCIES = {"jax", "jaxlib", "optax", "chex", "numpy"}
DEMO_ONLY = {"matplotlib", "scipy"}
MAX_LINES = 300


def room_of(path):
    """The room a file belongs to: its first name below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path):
    """Dotted names of everything a file imports, at any depth, relative imports resolved."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(path.relative_to(ROOT).parent.parts)[: -node.level + 1 or None]
            prefix = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def imported_rooms(path):
    """Rooms of this package that a file imports; a name of the package itself is `__init__`."""
    for name in imported_names(path):
        package, *rest = name.split(".")
        if package == "jaxqn":
            is_room = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file())
            yield from _rooms_meant(rest[0] if rest else None, is_room)


def _rooms_meant(name, is_room):
    # `from jaxqn import minimize` means the function that the front door exports, not the module.
    return [name] if is_room else ["__init__"]


def test_every_room_has_its_place():
    assert {room_of(path) for path in MODULES} <= set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    rank = ROOMS.index(room_of(path))
    upwards = [room for room in imported_rooms(path) if ROOMS.index(room) > rank]
    assert upwards == []
