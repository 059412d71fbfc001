"""What a model is besides arrays, as a part of the key under which jit finds a program."""

import weakref
from typing import Any

from jaxlens.model.hook_methods import hook_points


class StaticPart:
    """The attributes of a model that are not arrays.

    What a traced function may read is compared by value: the config, the name, the processing report, and the tokenizer
    with its settings at the time of the call. So two loads of a checkpoint share programs, and a program is not used
    with a changed `padding_side`. The source of the weights and the contexts of hook points are not compared. A program
    holds no reference to contexts. Attributes that a user adds are compared by identity.
    """

    def __init__(self, model: Any):
        attributes = dict(vars(model))
        for data in ("modules", "_hooks", "_level"):
            attributes.pop(data, None)
        self._points = weakref.ref(attributes.pop("_points"))
        self._attributes = attributes
        cfg, tokenizer = attributes["cfg"], attributes["tokenizer"]
        settings = None if tokenizer is None else tokenizer.settings
        added = attributes.keys() - {"cfg", "name", "processing", "tokenizer", "source"}
        others = tuple((name, id(attributes[name])) for name in sorted(added))
        notes = cfg.switched_on, cfg.weights_on  # which equality of configs leaves out
        self._key = (cfg, notes, attributes["name"], attributes["processing"], settings, others)

    def attributes(self) -> dict[str, Any]:
        """The attributes of a new model."""
        points = self._points()
        return {**self._attributes, "_points": hook_points(self._attributes["cfg"]) if points is None else points}

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StaticPart) or self._key != other._key:
            return False
        mine, others = self._attributes["tokenizer"], other._attributes["tokenizer"]
        return mine is others or mine.encodes_like(others)
