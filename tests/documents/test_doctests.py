"""The examples of docstrings run, under the settings of JAX that a user has."""

import doctest
import importlib
import json
import pkgutil
from pathlib import Path

import jaxqn


def is_adapter(name):
    return name.startswith("jaxqn.adapters.")


MODULES = sorted(
    {"jaxqn", *(name for _, name, _ in pkgutil.walk_packages(jaxqn.__path__, "jaxqn."))}
    - {"jaxqn.__main__"},
    key=lambda name: (is_adapter(name), name),  # pyhf turns float64 on, for everything after it
)
FLAGS = doctest.NORMALIZE_WHITESPACE


def examples(module):
    """The doctests of a module; a cached factory's are its function's."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(module, module.__name__)
    known = {test.name for test in found}
    for name, value in vars(module).items():
        inner = getattr(value, "__wrapped__", None)
        if getattr(inner, "__module__", None) == module.__name__:
            tests = finder.find(inner, f"{module.__name__}.{name}", module=module)
            found += [test for test in tests if test.name not in known]
    return [test for test in found if test.examples]


def loaded(name):
    """The module; of an adapter whose library is not installed, the package of adapters."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if not is_adapter(name):
            raise
        return importlib.import_module("jaxqn.adapters")


WITH_EXAMPLES = [name for name in MODULES if examples(loaded(name))]


def run(tests):
    """Fails with doctest's own report."""
    report = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
    return runner.tries


def test_docstrings(run_as_shipped):
    """Of all modules in one process, which says how many examples it ran."""
    ran = json.loads(run_as_shipped(Path(__file__)))
    assert list(ran) == WITH_EXAMPLES
    assert min(ran.values()) > 0


def test_the_factories_examples_are_found():
    """`functools.cache` hides a docstring from doctest; ours are run all the same."""
    names = {test.name for test in examples(importlib.import_module("jaxqn.quasi_newton.dense"))}
    assert "jaxqn.quasi_newton.dense.dense" in names
    names = {test.name for test in examples(importlib.import_module("jaxqn.linesearch.wolfe"))}
    assert "jaxqn.linesearch.wolfe.wolfe" in names


if __name__ == "__main__":
    print(
        json.dumps({name: run(examples(importlib.import_module(name))) for name in WITH_EXAMPLES})
    )
