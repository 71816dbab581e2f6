"""Imports point downwards, formulas know nothing of optax, and the package stays light."""

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
    "_arguments",
    "_numerics",
    "_branches",
    "_packing",
    "_stacks",
    "_scaling",
    "derivatives",
    "curvature",
    "rules",
    "updates",
    "spectral",
    "_lanczos",
    "eigenpairs",
    "quasi_newton",
    "_history",
    "_ring",
    "memory",
    "memory_sr1",
    "pairs",
    "damping",
    "stochastic",
    "kronecker",
    "newton",
    "methods",
    "linesearch",
    "termination",
    "_checks",
    "loop",
    "_problem",
    "minimize",
    "_axes",
    "_lanes",
    "_batch",
    "batch",
    "stream",
    "transforms",
    "aliases",
    "__init__",
    "_demo",
    "__main__",
]
FORMULAS = [
    "curvature",
    "rules",
    "updates",
    "spectral",
    "eigenpairs",
    "stochastic",
    "kronecker",
    "linesearch",
]
DEPENDENCIES = {"jax", "jaxlib", "optax", "chex", "numpy"}  # numpy comes with jax
DEMO_ONLY = {"matplotlib", "scipy"}
MAX_LINES = 360


def room_of(path):
    """The room a file belongs to: its first name below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path):
    """Dotted names of everything that a file imports, at any depth; no import is relative."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(path):
    """Rooms of this package that a file imports; a name of the package itself is `__init__`."""
    for name in imported_names(path):
        package, *rest = name.split(".")
        if package == "jaxqn":
            is_room = len(rest) > 1 or (rest and (PACKAGE / f"{rest[0]}.py").is_file())
            yield rest[0] if is_room else "__init__"


def test_every_room_has_its_place():
    assert {room_of(path) for path in MODULES} == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    rank = ROOMS.index(room_of(path))
    assert [room for room in imported_rooms(path) if ROOMS.index(room) > rank] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies(path):
    outside = {name.split(".")[0] for name in imported_names(path)} - {"jaxqn"}
    allowed = DEPENDENCIES | (DEMO_ONLY if room_of(path) in ("_demo", "__main__") else set())
    assert outside - set(sys.stdlib_module_names) - allowed == set()
    if room_of(path) in FORMULAS:
        assert "optax" not in outside


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_room(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


def test_no_library_code_touches_global_configuration():
    application = {PACKAGE / "__main__.py", PACKAGE / "_demo.py"}
    for path in set(MODULES) - application:
        assert "config.update" not in path.read_text("utf-8"), path
