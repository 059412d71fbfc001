"""One file per family of checkpoints. A file in this folder that defines `FAMILY` is found because it is here."""

import difflib
import importlib
import pkgutil
from typing import Any

from jaxlens.convert.rules import Family
from jaxlens.errors import CheckpointError


def all_families() -> dict[str, Family]:
    """Every family, by each `model_type` it serves."""
    found: dict[str, Family] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
        if taken := [model_type for model_type in family.model_types if model_type in found]:
            raise CheckpointError(f"two files in convert/families serve {taken}; {module.name}.py is the second")
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
