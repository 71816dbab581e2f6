"""What the front door offers, and that each of it is documented with an example that runs."""

import importlib
import importlib.metadata
import importlib.resources
import inspect
import pickle
import pkgutil
import pydoc
import re
import subprocess
import sys
import typing
import warnings
from pathlib import Path

import jax
import pytest

import jaxqn
from jaxqn.loop import DEFAULTS, MinimizeOptions, problem

ROOT = Path(__file__).parents[2]
FUNCTIONS = [name for name in jaxqn.__all__ if inspect.isroutine(getattr(jaxqn, name))]
TUPLES = [
    name
    for name in jaxqn.__all__
    if isinstance(getattr(jaxqn, name), type) and issubclass(getattr(jaxqn, name), tuple)
]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(jaxqn.__path__, "jaxqn.")
    if name != "jaxqn.__main__"
]


def documented(name):
    """A public object behind its wrappers (a cached factory is its function)."""
    return inspect.unwrap(getattr(jaxqn, name))


SECTIONS = ("Args", "Attributes", "Cost", "Example", "Raises", "References", "Returns")


def section(text, title):
    """The text of one section of a docstring, up to the next; empty if there is none."""
    parts = re.split(rf"^ *({'|'.join(SECTIONS)}):", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(title, "")


def test_all_is_what_there_is():
    """Every public name is in `__all__`, and `__all__` holds nothing else; submodules aside."""
    public = {
        name
        for name, value in vars(jaxqn).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(jaxqn.__all__) == public | {"derivatives"}
    assert len(set(jaxqn.__all__)) == len(jaxqn.__all__)


def test_help_begins_with_the_front_doors():
    """Three programs and the names of the doors come before what `pydoc` sorts by itself."""
    page = pydoc.plain(pydoc.render_doc(jaxqn))
    first = page[: page.index("PACKAGE CONTENTS")]
    assert len(first.splitlines()) < 45
    doors = jaxqn.__all__[: jaxqn.__all__.index("derivatives") + 1]
    assert doors[0] == "minimize"
    assert [name for name in doors if f"``{name}``" not in first] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module):
    doc = pytest.importorskip(module).__doc__
    assert doc
    assert doc.splitlines()[0].endswith((".", "``."))


@pytest.mark.parametrize("module", [name for name in MODULES if "._" not in name])
def test_every_module_defines_what_it_exports(module):
    loaded = pytest.importorskip(module)
    assert [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_an_example(name):
    doc = inspect.getdoc(documented(name))
    assert ">>>" in section(doc, "Example")
    assert doc.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_documented(name):
    """Here, or at the function that the docstring refers to: nothing is documented twice."""
    function = documented(name)
    doc = inspect.getdoc(function)
    arguments = section(doc, "Args")
    if not arguments:
        assert ":func:" in doc
        return
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p for p in named if not re.search(rf"^ *\*{{0,2}}{p}\b.*:", arguments, re.M)]
    assert not missing, f"{name} does not document {missing}"


@pytest.mark.parametrize("name", TUPLES)
def test_every_field_is_documented(name):
    kind = getattr(jaxqn, name)
    attributes = section(inspect.getdoc(kind), "Attributes")
    missing = [field for field in kind._fields if not re.search(rf"^ *{field}\b", attributes, re.M)]
    assert not missing, f"{name} does not document {missing}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_annotated(name):
    function = documented(name)
    hints = typing.get_type_hints(function)
    assert "return" in hints
    assert set(inspect.signature(function).parameters) <= set(hints)


def test_options_are_keywords():
    """Of `minimize` only the objective, the point and the arguments may be given by position."""
    kinds = inspect.signature(jaxqn.minimize).parameters
    positional = [name for name, p in kinds.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["fun", "x0", "args"]


def test_every_driver_takes_the_options_of_minimize():
    """`MinimizeOptions` is what the batched doors take; `minimize` spells it out."""
    keywords = inspect.unwrap(jaxqn.minimize).__kwdefaults__
    known = set(typing.get_type_hints(MinimizeOptions))
    assert known == set(DEFAULTS)
    assert {name: keywords[name] for name in DEFAULTS} == DEFAULTS
    assert set(keywords) - known == {"state", "callback", "callback_every", "progress", "history"}


@pytest.mark.parametrize("door", ["minimize_batch", "multi_start", "minimize_stream"])
def test_an_unknown_option_is_answered_with_a_list(door):
    with pytest.raises(TypeError, match=rf"{door} has no argument 'x_tol'.*gtol, has_aux, hess_in"):
        getattr(jaxqn, door)(sum_of_squares, jax.numpy.ones((3, 2)), x_tol=1e-3)


@pytest.mark.parametrize("door", ["minimize", "minimize_batch", "least_squares"])
@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("tol", "gtol="),
        ("options", "gtol=1e-5, maxiter=99"),
        ("jac", "JAX"),
        ("max_iter", "max"),
    ],
)
def test_words_of_other_libraries_are_answered(door, word, answer):
    if (door, word) == ("least_squares", "jac"):
        pytest.skip("an argument there")
    with pytest.raises(TypeError, match=rf"{door} has no argument '{word}'.*{answer}"):
        getattr(jaxqn, door)(sum_of_squares, jax.numpy.ones((3, 2)), **{word: 1})


def test_a_slip_of_the_pen_is_answered():
    with pytest.raises(TypeError, match=r"'maxitr' \(did you mean 'maxiter'\?\)"):
        jaxqn.minimize(sum_of_squares, jax.numpy.ones(2), maxitr=3)
    with pytest.raises(ValueError, match=r"'bgfs' \(did you mean 'bfgs'\?\)"):
        jaxqn.minimize(sum_of_squares, jax.numpy.ones(2), method="bgfs")


@pytest.mark.parametrize(
    ("door", "word", "answer"),
    [
        ("bfgs", "lr", "learning_rate="),
        ("ssbroyden", "step_size", "learning_rate="),
        ("lbfgs", "memory_size", "memory="),
        ("bfgs", "line_search", "linesearch="),
        ("scale_by_bfgs", "lr", r"optax.scale_by_learning_rate\(0.1\)"),
        ("scale_by_kronecker", "learning_rate", r"optax.scale_by_learning_rate\(0.1\)"),
        ("scale_by_lbfgs", "history_size", "memory="),
        ("scale_by_linesearch", "momentum", "it takes bounds"),
    ],
)
def test_transformations_answer_words_of_other_libraries(door, word, answer):
    with pytest.raises(TypeError, match=rf"{door} has no argument '{word}'.*{answer}"):
        getattr(jaxqn, door)(**{word: 1})


@pytest.mark.parametrize("word", ["progress", "callback", "history", "state"])
def test_a_batch_says_who_has_what_it_lacks(word):
    with pytest.raises(TypeError, match=rf"minimize_batch has no argument '{word}': minimize and"):
        jaxqn.minimize_batch(sum_of_squares, jax.numpy.ones((3, 2)), **{word: 1})


def test_what_goes_by_name_only():
    with pytest.raises(TypeError, match=r"minimize takes fun, x0, args by position .* given 4"):
        jaxqn.minimize(sum_of_squares, jax.numpy.ones(2), (), "bfgs")
    with pytest.raises(TypeError, match="scale_by_bfgs takes nothing by position"):
        jaxqn.scale_by_bfgs(0.1)


def test_curve_fit_answers_by_its_own_name():
    data = jax.numpy.ones(3)
    with pytest.raises(TypeError, match="curve_fit has no argument 'maxfev': it is maxfun="):
        jaxqn.curve_fit(lambda x, a: a * x, data, data, [1.0], maxfev=5)
    with pytest.raises(TypeError, match="curve_fit has no argument 'x0'"):
        jaxqn.curve_fit(lambda x, a: a * x, data, data, [1.0], x0=[1.0])


@pytest.mark.parametrize(("name", "near"), [("trf", "structured"), ("CG", "lbfgs")])
def test_methods_of_other_libraries_are_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"'{name}' \(in its place take '{near}'\)"):
        jaxqn.minimize(sum_of_squares, jax.numpy.ones(2), method=name)


def test_public_modules():
    """Prose and users name these."""
    assert jaxqn.rules.bfgs_rule is jaxqn.formulas.bfgs_rule
    assert jaxqn.updates.bfgs_update is jaxqn.bfgs_update
    assert jaxqn.derivatives.hessian


def test_methods_are_named():
    assert {problem.DEFAULT_METHOD, "structured"} <= set(jaxqn.METHODS)
    assert {"bfgs", "dfp", "sr1", "broyden", "ssbfgs", "ssbroyden"} <= set(jaxqn.METHODS)
    listed = section(inspect.getdoc(jaxqn.minimize), "Args")
    assert all(f'"{name}"' in listed for name in jaxqn.METHODS)


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxqn.__version__)
    assert importlib.metadata.version("jaxqn") == jaxqn.__version__


def test_types_and_data_are_in_the_package():
    files = importlib.resources.files("jaxqn")
    assert files.joinpath("py.typed").is_file()
    assert files.joinpath("data/iris.csv").is_file()


def test_importing_imports_no_neighbour():
    """Adapters are asked for, one by one."""
    program = "import sys, jaxqn, jaxqn.adapters; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded = {name.split(".")[0] for name in out.split()}
    assert "jaxqn" in loaded
    assert {"equinox", "nemos", "numpyro", "optimistix", "pyhf", "scipy"} & loaded == set()


def test_importing_changes_no_setting_of_jax():
    """Least of all the precision: that is the user's to choose."""
    for path in (ROOT / "jaxqn").rglob("*.py"):
        if path.name not in ("__main__.py", "iris.py"):
            text = path.read_text("utf-8")
            assert "config.update" not in text, path
            assert "jax_enable_x64" not in text, path


def test_results_survive_pickling():
    result = jaxqn.minimize(sum_of_squares, jax.numpy.ones(2), maxiter=1)
    again = pickle.loads(pickle.dumps(result))
    assert again.message == result.message
    assert jax.tree.structure(again) == jax.tree.structure(result)
    more = jaxqn.minimize(sum_of_squares, jax.numpy.ones(2), state=again.state)
    assert bool(more.success)


def sum_of_squares(x):
    return x @ x


def test_the_same_code_again_and_again_is_noticed():
    """A new function object compiles anew; a word after the third, and only one."""

    def fit(a):
        return jaxqn.minimize(lambda x: (x - a) ** 2, 0.0, maxiter=0)

    fit(1.0), fit(2.0)
    with pytest.warns(UserWarning, match=r"3 new function objects.*through args"):
        fit(3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(4.0)
        jax.jit(fit)(5.0)
