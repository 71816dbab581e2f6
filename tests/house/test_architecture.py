"""The house: folders in an order, no circles, and rooms small enough to read at one sitting."""

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxqn"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up: a folder, or a module beside the folders, may import from those before it.
ORDER = [
    "_typing",
    "derivatives",
    "linalg",
    "formulas",
    "checks",
    "quasi_newton",
    "linesearch",
    "loop",
    "drivers",
    "transforms",
    "adapters",
    "__init__",
    "demo",
    "__main__",
]
OPTAX_ONLY_IN = {"transforms"}
CHEX_ONLY_IN = {"formulas"}
DEPENDENCIES = {"jax", "jaxlib", "optax", "chex", "numpy"}  # numpy comes with jax
DEMO_ONLY = {"matplotlib", "scipy"}
NEIGHBOURS = {  # what an adapter may import, too; a test that loads it is skipped without them
    "optimistix": {"equinox", "optimistix"},
    "numpyro": {"numpyro"},
    "pyhf": {"pyhf", "scipy"},
    "nemos": {"nemos"},
}
MAX_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_FIELDS = 10

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))


def place_of(path):
    """The folder of a file, or the file's own name where it lies beside the folders."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """``(module, name)`` of everything that a file imports, at any depth; no import is relative."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def inner_imports(path):
    """The same of this package: ``(place, rest of the dotted module, name)``."""
    for module, name in imports(path):
        package, *rest = module.split(".")
        if package != "jaxqn":
            continue
        if not rest and name in ORDER:
            yield name, "", None
        elif not rest:
            yield "__init__", "", name
        else:
            yield rest[0], ".".join(rest[1:]), name


def test_every_module_has_its_place():
    assert {place_of(path) for path in MODULES} == set(ORDER)


@each_module
def test_imports_point_downwards(path):
    rank = ORDER.index(place_of(path))
    assert [place for place, *_ in inner_imports(path) if ORDER.index(place) > rank] == []


@each_module
def test_a_folder_says_what_others_may_import(path):
    """A name that its ``__init__`` lists, or a name of a module that it lists."""
    for place, module, name in inner_imports(path):
        if place == place_of(path) or not (PACKAGE / place).is_dir():
            continue
        listed = importlib.import_module(f"jaxqn.{place}").__all__
        assert (module or name) in listed, f"jaxqn.{place} does not offer {module or name}"
        if module:
            assert name in importlib.import_module(f"jaxqn.{place}.{module}").__all__


@pytest.mark.parametrize("folder", [name for name in ORDER if (PACKAGE / name).is_dir()])
def test_no_circle_inside_a_folder(folder):
    """Files can be put in an order, too."""
    files = {path.stem: path for path in (PACKAGE / folder).glob("*.py")}
    needs = {
        stem: {(module or name) for place, module, name in inner_imports(path) if place == folder}
        & files.keys()
        for stem, path in files.items()
        if stem != "__init__"
    }
    while needs:
        free = [stem for stem, needed in needs.items() if not needed & needs.keys()]
        assert free, f"a circle among {sorted(needs)}"
        for stem in free:
            del needs[stem]


@each_module
def test_dependencies(path):
    place = place_of(path)
    outside = {module.split(".")[0] for module, _ in imports(path)} - {"jaxqn"}
    allowed = DEPENDENCIES | (DEMO_ONLY if place in ("demo", "__main__") else set())
    allowed |= NEIGHBOURS.get(path.stem, set()) if place == "adapters" else set()
    assert outside - set(sys.stdlib_module_names) - allowed == set()
    assert "optax" not in outside or place in OPTAX_ONLY_IN
    assert "chex" not in outside or place in CHEX_ONLY_IN


@each_module
def test_a_module_is_one_room(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


def lines_of_code(function, lines):
    """How many lines a function has, without docstrings, comments and blank lines."""
    docs = set()
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            docs |= set(range(body[0].lineno, body[0].end_lineno + 1))
    numbers = set(range(function.lineno, function.end_lineno + 1)) - docs
    code = [lines[number - 1].strip() for number in numbers]
    return sum(bool(line) and not line.startswith("#") for line in code)


@each_module
def test_functions_fit_on_a_screen(path):
    text = path.read_text("utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {f.name: lines_of_code(f, lines) for f in functions}
    assert {name: size for name, size in long.items() if size > MAX_FUNCTION_LINES} == {}


@each_module
def test_states_are_small(path):
    """At most ten fields; an array with named views counts once."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module == "jaxqn.__main__":
        return
    for name, kind in inspect.getmembers(pytest.importorskip(module), inspect.isclass):
        if kind.__module__ == module and hasattr(kind, "_fields"):
            result = name.endswith("Result")  # what a user reads, all at one level
            assert len(kind._fields) <= MAX_FIELDS + result, name


def test_no_library_code_touches_global_configuration():
    application = {PACKAGE / "__main__.py", PACKAGE / "demo" / "iris.py"}
    for path in set(MODULES) - application:
        assert "config.update" not in path.read_text("utf-8"), path
