"""Every notebook runs from scratch, and its committed outputs are of the kinds that a run has."""

import os

import nbformat
import pytest
from render_notebooks import COMMAND, NOTEBOOKS, complaints, differences, kinds, run
from xla_flags import flags_of_documents

import jaxqn

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
@pytest.mark.filterwarnings("default")  # the machinery of kernels warns about itself
def test_notebook(path, monkeypatch):
    # One device, as a user has; the suite has eight.
    monkeypatch.setenv("XLA_FLAGS", flags_of_documents(os.environ.get("XLA_FLAGS", "")))
    notebook = nbformat.read(path, as_version=4)
    stale = differences(notebook, run(notebook))
    assert not stale, f"{path.name} is stale: {'; '.join(stale)}. Run: {COMMAND} {path.stem}"
    assert any("assert" in cell.source for cell in notebook.cells if cell.cell_type == "code")


@each_notebook
def test_committed_outputs_are_small_and_hold_nothing_of_a_machine(path):
    assert not (found := complaints(path)), f"{path.name}: {found}. Run: {COMMAND} {path.stem}"


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{k:02d}" for k in range(len(NOTEBOOKS))]


def outputs_of(text):
    return [nbformat.v4.new_output("stream", text=text)]


def test_what_makes_an_output_stale():
    """Other numbers do not, nor their widths; another word, picture or order does."""

    def notebook(*outputs, count=1):
        cell = nbformat.v4.new_code_cell("f()", outputs=list(outputs), execution_count=count)
        return nbformat.v4.new_notebook(cells=[cell])

    picture = nbformat.v4.new_output("display_data", {"image/png": "", "text/plain": "<1 Axes>"})
    old = notebook(*outputs_of("x = [ 1.   -2e-05]\n"), picture)
    ends = [outputs_of(f"{status.name} 1") for status in (jaxqn.Status.STALLED, jaxqn.Status.FTOL)]
    assert kinds(ends[0]) == kinds(ends[1])
    assert kinds(outputs_of("a 1\n") + outputs_of("b")) == kinds(outputs_of("a -2.5 b"))
    assert differences(old, notebook(*outputs_of("x = [-1.25  3.0]\n"), picture)) == []
    assert differences(old, notebook(*outputs_of("x = [nan  inf]\n"), picture)) == []
    for other in (
        notebook(*outputs_of("y = [ 1.   -2e-05]\n"), picture),
        notebook(*outputs_of("x = [ 1.   -2e-05  3.]\n"), picture),
        notebook(*outputs_of("x = [ 1.   -2e-05]\n")),
        notebook(picture, *outputs_of("x = [ 1.   -2e-05]\n")),
        notebook(*old.cells[0].outputs, count=2),
    ):
        (found,) = differences(old, other)
        assert found.startswith("cell 0 ")
