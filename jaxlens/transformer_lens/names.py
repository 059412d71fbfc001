"""TransformerLens's module paths: code that imports from `transformer_lens` runs with `jaxlens` in its place.

`MODULES` maps each of these paths to the module that answers for it. The import system consults the table through a
finder, so that `import jaxlens.utils`, `from jaxlens.utils import get_act_name` and `jaxlens.utils` give the module
`jaxlens.transformer_lens.utils` itself.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

from jaxlens.transformer_lens.absent import reason

MODULES = {
    # the modules of TransformerLens
    "ActivationCache": "model.cache.activation_cache",
    "FactoredMatrix": "weights.factored_matrix",
    "cache": "transformer_lens.cache",
    "cache.key_value_cache": "transformer_lens.cache",
    "cache.key_value_cache_entry": "transformer_lens.cache",
    "utilities.cache": "transformer_lens.cache",
    "HookedRootModule": "transformer_lens.hook_points",
    "HookedTransformer": "transformer_lens.hooked_transformer",
    "HookedTransformerConfig": "transformer_lens.config",
    "SVDInterpreter": "analysis.svd",
    "evals": "training.evals",
    "config.hooked_transformer_config": "transformer_lens.config",
    "config.transformer_lens_config": "transformer_lens.config",
    "head_detector": "transformer_lens.head_detector",
    "hook_points": "transformer_lens.hook_points",
    "loading": "transformer_lens.loading_from_pretrained",
    "loading_from_pretrained": "transformer_lens.loading_from_pretrained",
    "past_key_value_caching": "transformer_lens.cache",
    "patching": "transformer_lens.patching",
    "supported_models": "transformer_lens.loading_from_pretrained",
    "train": "training.train",
    "tools": "transformer_lens.tools",
    "tools.analysis": "transformer_lens.tools",
    "tools.analysis.direct_logit_attribution": "transformer_lens.tools",
    "tools.analysis.direct_path_patching": "transformer_lens.tools",
    "utils": "transformer_lens.utils",
    "utilities": "transformer_lens.utilities",
    "weight_processing": "transformer_lens.weight_processing",
    **dict.fromkeys(
        (
            f"utilities.{module}"
            for module in (
                "activation_functions", "addmm", "attention", "attribute_utils", "components_utils", "defaults_utils",
                "devices", "exploratory_utils", "gpu_utils", "hf_utils", "initialization_utils", "library_utils",
                "lm_utils", "logits_utils", "matrix", "slice", "tensors", "tokenize_utils",
            )
        ),
        "transformer_lens.utils",
    ),
    # earlier paths of jaxlens
    "analysis.patching": "transformer_lens.patching",
    "checkpoint": "checkpoints.converter",
    "convert": "checkpoints",
    "data": "training.data",
    "loss": "model.loss",
    "tokenizer": "text.tokenizer",
}  # fmt: skip
"""Module paths under `jaxlens`, and the module under `jaxlens` that each stands for."""

TOP_LEVEL = tuple(path for path in MODULES if "." not in path)

_PACKAGE = __name__.partition(".")[0]


class Package(ModuleType):
    """A module that keeps its attributes when a submodule of the same name is imported.

    `import jaxlens.FactoredMatrix` sets the attribute to the module of that name, which must not hide the class.
    """

    exports: Any = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and (name in self.exports or name in vars(self))):
            super().__setattr__(name, value)


def find_module(name: str) -> ModuleType:
    """The attribute `name` of the package `jaxlens`, if it is a module.

    Raises:
        ImportError: TransformerLens has this name and jaxlens does not. The message says what to use instead.
        AttributeError: There is no such name.
    """
    path = f"{_PACKAGE}.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}") from None


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the table."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE:
            return None
        if name not in MODULES:
            if (why := reason(name)) is not None:
                raise ImportError(f"jaxlens has no {name}: {why}")
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader(f"{package}.{MODULES[name]}"))


class _Loader(importlib.abc.Loader):
    """Loads a module of the table by importing the module that it stands for."""

    def __init__(self, target: str):
        self.target = target

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.target)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has replaced it with the spec of the alias


def install() -> None:
    """Adds the finder to the import system."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
