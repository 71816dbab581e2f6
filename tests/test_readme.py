"""Every Python block of the README runs, in order, as a user would run it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("jax_as_shipped")
def test_the_readme_runs():
    assert len(BLOCKS) >= 7
    namespace = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)


def test_the_readme_names_every_method_and_status():
    import jaxqn

    text = README.read_text("utf-8")
    assert [name for name in jaxqn.METHODS if f'"{name}"' not in text] == []
    assert [status.name for status in jaxqn.Status if f"`{status.name}`" not in text] == []
