"""Every benchmark runs to its end. What it measures is not checked here."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(
    path.stem for path in ROOT.glob("benchmarks/*.py")
    if all(part in path.read_text() for part in ("def main(", "--quick"))
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_ends(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "tests"}, **output)
    assert run.returncode == 0, run.stdout
