"""Every Python block of the README and of the guides runs, in order, as a user would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted(ROOT.glob("notebooks/*.md")), ROOT / "tests/benchmarks/README.md"]


def blocks_of(document):
    return re.findall(
        r"^```python\n(.*?)^```", document.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


OPTIONAL = {"nemos", "numpyro", "optimistix", "pyhf"}
"""Libraries without which a block that imports them is skipped."""


def test_the_readme_runs(run_as_shipped):
    assert len(blocks_of(README)) >= 7
    run_as_shipped(Path(__file__))


def run_the_blocks():
    for document in DOCUMENTS:
        namespace = {"__name__": "readme"}
        for number, block in enumerate(blocks_of(document)):
            name = f"{document.name}, Python block {number}"
            try:
                exec(compile(block, name, "exec"), namespace)
            except ModuleNotFoundError as error:
                if error.name not in OPTIONAL:
                    raise


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.read_text("utf-8").splitlines()) <= 280
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_readme_names_every_method_and_status():
    import jaxqn

    text = README.read_text("utf-8")
    assert [name for name in jaxqn.METHODS if f'"{name}"' not in text] == []
    assert [status.name for status in jaxqn.Status if f"`{status.name}`" not in text] == []


def test_a_program_is_kept_for_the_next_process(tmp_path):
    """The two variables that the README names: the second process finds what the first compiled."""
    text, cache = README.read_text("utf-8"), tmp_path / "cache"
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert [name for name in settings if name not in text] == []
    program = tmp_path / "fit.py"
    program.write_text(f"{blocks_of(README)[0]}\nprint(result.x, result.nfev)\n", "utf-8")

    def run():
        command = [sys.executable, str(program)]
        out = subprocess.run(command, env=os.environ | settings, capture_output=True, check=True)
        return out.stdout, {path.name for path in cache.glob("*-cache")}

    out, kept = run()
    assert any(name.startswith("jit__run-") for name in kept)
    assert run() == (out, kept)


if __name__ == "__main__":
    run_the_blocks()
