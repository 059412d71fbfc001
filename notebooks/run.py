"""Executes notebooks and writes their outputs: `python notebooks/run.py`, or with names for some of them.

Each notebook is a Python file with cells. Next to it, an .ipynb file has the same cells with outputs. In a live
notebook a picture is a page in a frame, which GitHub does not show. So the outputs that are written hold pictures as
images.
"""

import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
CELL_SECONDS = 600


def notebooks() -> list[Path]:
    """The Python files of all notebooks, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook of a Python file, with the outputs of its cells.

    Raises:
        CellExecutionError: A cell raised an error, such as that of a failed assertion.
    """
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext draws random ones, which would change the file every time
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    prepares = "import run; run.prepare(get_ipython())"
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, record_timing=False, resources={"metadata": {"path": str(FOLDER)}},
        kernel_name="python3", extra_arguments=[f"--IPKernelApp.exec_lines={prepares}", "--log-level=ERROR"],
    )  # fmt: skip
    return client.execute()


def prepare(shell) -> None:
    """Makes a kernel display the pictures of `jaxlens.plot` as PNG images. It runs in the kernel, before the cells."""
    warnings.filterwarnings("ignore", "IProgress not found")  # transformers imports tqdm, which asks for ipywidgets
    picture = ("jaxlens.plot.picture", "Picture")
    formatters = shell.display_formatter.formatters
    formatters["text/html"].for_type_by_name(*picture, lambda picture: None)
    formatters["image/png"].for_type_by_name(*picture, image)


def image(picture) -> bytes:
    """A picture as a PNG image with 256 colors, which is a small file."""
    with tempfile.TemporaryDirectory() as folder:
        path = picture.save(Path(folder) / "picture.png")
        Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
        return path.read_bytes()


def main(names: list[str]) -> None:
    """Executes the notebooks whose names begin with one of these, or all."""
    for source in notebooks():
        if names and not source.name.startswith(tuple(names)):
            continue
        start, used = time.perf_counter(), _processor_seconds()
        nbformat.write(execute(source), source.with_suffix(".ipynb"))
        seconds, used = time.perf_counter() - start, _processor_seconds() - used
        print(f"{source.stem}: {seconds:.0f} s, {used:.0f} s of processor time", flush=True)


def _processor_seconds() -> float:
    """The processor time of all kernels that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
