"""The supported families of checkpoints, one module each. Every module in this folder defines `FAMILY`."""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

from jaxlens.checkpoints import native
from jaxlens.checkpoints.rules import Family
from jaxlens.checkpoints.rules.wrappers import WRAPPERS
from jaxlens.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Described:
    """A family and the docstring of its module: `summary` is the first paragraph, `notes` are the others."""

    family: Family
    summary: str
    notes: str


def described() -> list[Described]:
    """Every family with its description, ordered by the names of the modules."""
    families = []
    for module in _modules().values():
        summary, _, notes = (" ".join(text.split()) for text in inspect.getdoc(module).partition("\n\n"))
        families.append(Described(module.FAMILY, summary, notes))
    return families


def _modules() -> dict[str, ModuleType]:
    """Every module that defines a family: those in this folder, and the native format."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names} | {"native": native}
    return dict(sorted(modules.items()))


def all_families() -> dict[str, Family]:
    """A dict from each supported `model_type` to its family."""
    families: dict[str, Family] = {}
    for name, module in _modules().items():
        family = module.FAMILY
        if repeated := [model_type for model_type in family.model_types if model_type in families]:
            problem = f"the model_types {repeated}, which another module also has"
            raise CheckpointError(f"{name}.py in checkpoints/families has {problem}; remove them from one of the two")
        families |= dict.fromkeys(family.model_types, family)
    return families


def family_of(model_type: Any, field: str = "model_type") -> Family:
    """The family of checkpoints with this `model_type`. Raises a CheckpointError if it is not supported.

    `field` is the name of the config.json field that contains it.
    """
    families = all_families()
    if isinstance(model_type, str) and model_type in families:
        return families[model_type]
    known = sorted({*families, *(WRAPPERS if field == "model_type" else ())})
    similar = " or ".join(difflib.get_close_matches(str(model_type), known, n=3))
    hint = (f"Did you mean {similar}? " if similar else "") + f"Supported: {', '.join(known)}"
    problem = f"config.json: {field} is {model_type!r}, which is not supported"
    raise CheckpointError(f"{problem}. {hint}. To add a family, write a module in jaxlens/checkpoints/families")
