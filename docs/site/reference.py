"""Adds the API reference to the site: a page for each public module, with every public name and its docstring."""

import importlib
import inspect
from types import ModuleType

TITLES = {
    "jaxlens": "Models, hooks and caches.",
    "jaxlens.analysis": "Patching, ablation, attribution, heads and circuits.",
    "jaxlens.batch": "Runs over data sets.",
    "jaxlens.sharding": "Models on several devices.",
    "jaxlens.plot": "Pictures.",
    "jaxlens.model.cache.logit_lens": "The logit lens, which is the method `cache.logit_lens`.",
    "jaxlens.config": "The description of a model.",
    "jaxlens.checkpoints": "Reading and writing checkpoints.",
    "jaxlens.hooks": "Hooks and their names.",
    "jaxlens.weights": "Weight processing.",
    "jaxlens.training.train": "The training loop.",
    "jaxlens.training.data": "Data for training.",
    "jaxlens.training.evals": "Evaluations.",
    "jaxlens.patching": "The patching functions of TransformerLens.",
    "jaxlens.utils": "The helper functions of TransformerLens.",
}
"""The public modules, and what is in each."""


def public_names(module: ModuleType) -> list[str]:
    """The names in `__all__`, or those of the classes and functions that the module defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    return sorted(
        (name for name, value in vars(module).items()
         if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__),
        key=str.lower,
    )  # fmt: skip


def entry(module: ModuleType, name: str) -> str:
    """What stands under the heading of a name: a line that mkdocstrings replaces by signature and docstring.

    It needs the place where the name is defined. Constants do not tell, but are imported by their package. A function
    that another function made has no such place, so its docstring is written out. Of a module,
    only its own docstring: the functions of those in `jaxlens.plot` are on the same page.
    """
    value = getattr(module, name)
    if isinstance(value, ModuleType):
        names = ", ".join(f"`{each}`" for each in public_names(value))
        return f"::: {value.__name__}\n    options:\n      members: false\n\nA module with {names}."
    if not hasattr(value, "__qualname__"):
        return f"::: {module.__name__}.{name}"
    if "<locals>" in value.__qualname__:
        return f"```python\n{name}{inspect.signature(value)}\n```\n\n{inspect.getdoc(value)}"
    return f"::: {value.__module__}.{value.__qualname__}"


def page(module_name: str) -> str:
    """The page of a module."""
    module = importlib.import_module(module_name)
    lines = [f"# {module_name}", "", TITLES[module_name]]
    for name in public_names(module):
        lines += ["", f"## {name}", "", entry(module, name)]
    return "\n".join([*lines, ""])


def pages() -> dict[str, str]:
    """The text of every page, by its address in the site."""
    return {f"reference/{name}.md": page(name) for name in TITLES}


def on_config(config):
    config.nav.append({"API reference": list(pages())})
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    for address, text in pages().items():
        files.append(File.generated(config, address, content=text))
    return files
