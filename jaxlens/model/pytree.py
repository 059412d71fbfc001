"""HookedTransformer as a pytree of JAX and as a module of Flax."""

import weakref
from typing import Any

import jax

from jaxlens.hooks.plan import RegisteredHook
from jaxlens.model.hook_methods import hook_points
from jaxlens.nn.module import FlaxModule
from jaxlens.nn.transformer import Modules


class StaticPart:
    """The attributes of a model that are not arrays, as a part of the key under which jit finds a program.

    What a traced function may read is compared by value: the config, the name, the processing report, the sharding, and
    the tokenizer with its settings at the time of the call. So two loads of a checkpoint share programs, and a program
    is not used with a changed `padding_side`. The source of the weights and the contexts of hook points are not
    compared. A program holds no reference to contexts. Attributes that a user adds are compared by identity.
    """

    def __init__(self, model: Any):
        data = {"modules", "_hooks", "_level"}
        attributes = {name: value for name, value in model._attributes().items() if name not in data}
        self._points = weakref.ref(attributes.pop("_points"))
        self._attributes = attributes
        cfg, tokenizer = attributes["cfg"], attributes["tokenizer"]
        settings = None if tokenizer is None else tokenizer.settings
        added = attributes.keys() - {"cfg", "name", "processing", "tokenizer", "source", "sharding"}
        others = tuple((name, id(attributes[name])) for name in sorted(added))
        notes = cfg.switched_on, cfg.weights_on  # which equality of configs leaves out
        values = (attributes["name"], attributes["processing"], attributes.get("sharding"))
        self._key = (cfg, notes, *values, settings, others)

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


class ModelPytree(FlaxModule):
    """Base class of HookedTransformer. The modules and the hooks of the model are data, and the rest a `StaticPart`."""

    modules: Modules
    _hooks: tuple[RegisteredHook, ...]

    __deepcopy__ = None  # that of any object; Flax's would copy the key of the StaticPart

    def tree_flatten(self):
        return (self.modules, self._hooks), StaticPart(self)

    def tree_flatten_with_keys(self):
        keys = map(jax.tree_util.GetAttrKey, ("modules", "hooks"))
        return list(zip(keys, (self.modules, self._hooks), strict=True)), StaticPart(self)

    @classmethod
    def tree_unflatten(cls, static: StaticPart, children: tuple[Modules, tuple[RegisteredHook, ...]]):
        model = object.__new__(cls)
        vars(model).update(static.attributes(), modules=children[0], _hooks=children[1], _level=0)
        return model

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in super()._attributes().items() if name != "_own_cfg"}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_own_cfg"}

    # --- the same for the graphs of Flax: `nnx.split`, `nnx.jit`

    def _graph_node_flatten(self):
        return [("_hooks", self._hooks), ("modules", self.modules), ("static", StaticPart(self))], type(self)

    def _graph_node_clear(self) -> None:
        """Keeps the attributes, which `_graph_node_init` replaces."""

    def _graph_node_init(self, attributes: Any) -> None:
        data = dict(attributes)
        static = data.pop("static")
        unchanged = bool(vars(self)) and StaticPart(self) == static  # its tokenizer stays the same object
        vars(self).update({} if unchanged else {**static.attributes(), "_level": 0, "_own_cfg": None}, **data)
