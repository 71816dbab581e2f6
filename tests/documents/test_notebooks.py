"""Every notebook runs from scratch, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # the machinery of kernels warns about itself
def test_notebook(path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as a user has; the suite has eight
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert any("assert" in cell.source for cell in cells)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2
