"""Runs notebooks and writes them with their outputs, but for what changes from run to run.

    python -m tests.documents.render_notebooks [NAME...]

A name is the beginning of a file's name, such as ``03``; without one all are rendered. What the
test of the notebooks asks of a committed output is here as well: how it is compared with a fresh
one, and what it must not contain.
"""

import base64
import copy
import io
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

import jaxqn

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMAND = "python -m tests.documents.render_notebooks"

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MAX_PICTURE, MAX_FILE = 40_000, 200_000
"""Bytes of a picture, and of a notebook."""

NUMBER = re.compile(r"[-+−]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?\b(nan|inf)\b", re.IGNORECASE)
ENDINGS = [*jaxqn.MESSAGES.values(), *jaxqn.Status.__members__]
ENDING = re.compile("|".join(map(re.escape, ENDINGS)))
"""How a run ended: rounding decides it where a run is at the limits of its precision."""
FORBIDDEN = {
    "a time": re.compile(r"\d *(ns|µs|us|ms|s|seconds|minutes|min)\b"),
    "a path": re.compile(re.escape(str(ROOT)) + "|" + re.escape(str(Path.home())) + "/|/tmp/"),
    "an address": re.compile(r"\b0x[0-9a-f]{6,}"),
    "a progress bar": re.compile(r"\r|it/s\b"),
}


def run(notebook):
    """The notebook executed from top to bottom, on one device as a user has, in one process."""
    fresh = copy.deepcopy(notebook)
    NotebookClient(fresh, timeout=300, kernel_name="python3", record_timing=False).execute()
    return fresh


def tidy(notebook):
    """The same without versions and other metadata, and with pictures of 256 colours or fewer."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
            for output in cell.outputs:
                output.pop("metadata", None)
                if "data" in output:
                    output.metadata = nbformat.from_dict({})
                    if "image/png" in output.data:
                        output.data["image/png"] = in_few_colours(output.data["image/png"])
    return notebook


def merged(outputs):
    """Pieces of one stream that follow each other, as one."""
    whole = []
    for output in outputs:
        previous = whole[-1] if whole else {}
        if output.output_type == "stream" and previous.get("name") == output.name:
            previous.text += output.text
        else:
            whole.append(output)
    return whole


def in_few_colours(png):
    """A picture with a palette, which takes a third of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    out = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode() + "\n"


def skeleton(text):
    """What a text says apart from numbers, how a run ended, and the spaces that depend on these."""
    return re.sub(r"\s+", "", NUMBER.sub("#", ENDING.sub("STATUS", text)))


def kinds(outputs):
    """Of every output its type, and its texts without numbers; of a picture that it is one."""
    found = []
    for output in merged(copy.deepcopy(outputs)):
        data = output.get("data", {})
        texts = {kind: skeleton(text) for kind, text in data.items() if kind.startswith("text/")}
        stream = {output.name: skeleton(output.text)} if "name" in output else {}
        found.append((output.output_type, sorted(data), texts | stream))
    return found


def differences(committed, fresh):
    """Which cells of a committed notebook have outputs of another kind than a fresh run's."""
    found = []
    for number, (old, new) in enumerate(zip(committed.cells, fresh.cells, strict=True)):
        if old.cell_type != "code":
            continue
        if old.execution_count != new.execution_count:
            found.append(f"cell {number} was not run in its turn: In [{old.execution_count}]")
        elif (was := kinds(old.outputs)) != (is_now := kinds(new.outputs)):
            found.append(f"cell {number} has {was}, where a run has {is_now}")
    return found


def complaints(path):
    """What a committed notebook should not have."""
    found, notebook = [], nbformat.read(path, as_version=4)
    if path.stat().st_size > MAX_FILE:
        found.append(f"{path.stat().st_size} bytes")
    if notebook.metadata != METADATA or any(cell.metadata for cell in notebook.cells):
        found.append("metadata")
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {number}: an error or a warning")
            data = output.get("data", {})
            size = len(base64.b64decode(data.get("image/png", "")))
            if size > MAX_PICTURE:
                found.append(f"cell {number}: a picture of {size} bytes")
            text = "\n".join([output.get("text", ""), data.get("text/plain", "")])
            found += [
                f"cell {number}: {what}" for what, how in FORBIDDEN.items() if how.search(text)
            ]
    return found


def main(names):
    os.environ.pop("XLA_FLAGS", None)
    for path in NOTEBOOKS:
        if not names or any(path.name.startswith(name) for name in names):
            notebook = tidy(run(nbformat.read(path, as_version=4)))
            nbformat.write(notebook, path)
            print(path.name, path.stat().st_size, "bytes", *complaints(path), sep="  ")


if __name__ == "__main__":
    main(sys.argv[1:])
