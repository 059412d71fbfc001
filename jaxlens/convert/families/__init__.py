"""One file per family of checkpoints. A file in this folder that defines `FAMILY` is found because it is here."""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from jaxlens.convert.rules import Family
from jaxlens.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Described:
    """A family, and what its file says of it: the first paragraph of its docstring, and the others."""

    family: Family
    summary: str
    notes: str


def described() -> list[Described]:
    """Every family, in the order of their files' names."""
    found = []
    for _, module in _files():
        summary, _, notes = (" ".join(part.split()) for part in inspect.getdoc(module).partition("\n\n"))
        found.append(Described(module.FAMILY, summary, notes))
    return found


def _files() -> Iterator[tuple[str, ModuleType]]:
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        yield name, importlib.import_module(f"{__name__}.{name}")


def all_families() -> dict[str, Family]:
    """Every family, by each `model_type` it serves."""
    found: dict[str, Family] = {}
    for name, module in _files():
        family = module.FAMILY
        if taken := [model_type for model_type in family.model_types if model_type in found]:
            raise CheckpointError(f"two files in convert/families serve {taken}; {name}.py is the second")
        found |= dict.fromkeys(family.model_types, family)
    return found


def family_of(model_type: Any) -> Family:
    """The family that serves a config.json's `model_type`."""
    known = all_families()
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    near = difflib.get_close_matches(str(model_type), known, n=3)
    raise CheckpointError(
        f"config.json: model_type is {model_type!r}, which has no family here"
        + (f"; near it {'are' if near[1:] else 'is'} {', '.join(near)}" if near else "")
        + f". Known: {', '.join(sorted(known))}. A family is one file in jaxlens/convert/families"
    )
