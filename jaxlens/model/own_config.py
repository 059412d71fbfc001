"""`model.cfg`: the config of a model, whose fields can be assigned, as in TransformerLens.

A Config never changes, because compiled programs are found by it. So an assignment gives the model another config.

    model.cfg ──> OwnConfig ──(assignment)──> the model gets a Config with the new value
                                              this OwnConfig, if someone kept it, reads the model's fields from now on
"""

import copy
import weakref
from typing import Any

from jaxlens.config import Config
from jaxlens.nn.parameters import parameter_shapes


class OwnConfig(Config):
    """The Config of a model. Assigning a field changes the model.

    Example:
        >>> from jaxlens import HookedTransformer
        >>> model = HookedTransformer(Config(n_layers=1, d_model=4, n_heads=1, d_head=4, d_vocab=5, n_ctx=4))
        >>> model.cfg.use_attn_result = True
        >>> model.cfg.use_attn_result, "result" in str(list(model.run_with_cache([[1, 2]])[1]))
        (True, True)

    Raises:
        ValueError: The value is invalid, or the parameters of the model would have other shapes.
        AttributeError: There is no such field.
    """

    _model = staticmethod(lambda: None)

    @classmethod
    def of(cls, model: Any, cfg: Config) -> "OwnConfig":
        """The config of a model, as an object that knows the model."""
        hash(cfg)  # is cached, and so are the values that equality compares
        own = object.__new__(cls)
        vars(own).update(vars(cfg), _model=weakref.ref(model), _plain=cfg)
        return own

    @property
    def plain(self) -> Config:
        """The same config without the model."""
        return vars(self).get("_plain", self)

    def replace(self, **changes: Any) -> Config:
        """`Config.replace`. The model does not change."""
        return self.plain.replace(**changes)

    def __setattr__(self, name: str, value: Any) -> None:
        model = self._model()
        if model is None:
            super().__setattr__(name, value)  # raises
        assign(model, name, value)
        if vars(model)["cfg"] is not self.plain:
            object.__setattr__(self, "__class__", _Replaced)

    def __copy__(self) -> Config:
        return self.plain

    def __deepcopy__(self, memo: dict) -> Config:
        return self.plain

    def __reduce__(self) -> Any:
        return copy.copy, (self.plain,)


class _Replaced(OwnConfig):
    """An OwnConfig after an assignment. It reads the fields of the model; in keys of programs it stays what it was."""

    def __getattribute__(self, name: str) -> Any:
        model = None if name.startswith("_") else vars(self)["_model"]()
        return object.__getattribute__(self, name) if model is None else getattr(model.cfg, name)


class ConfigOfModel:
    """The attribute `cfg` of HookedTransformer."""

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self
        if (own := model.__dict__.get("_own_cfg")) is not None:
            return own
        if (cfg := model.__dict__.get("cfg")) is None:
            raise AttributeError  # in `__init__`, before the config is set
        own = model.__dict__["_own_cfg"] = OwnConfig.of(model, cfg)
        return own

    def __set__(self, model: Any, cfg: Config) -> None:
        state, mine = vars(model), type(cfg) is OwnConfig and cfg._model() is model
        state["cfg"], state["_own_cfg"] = (
            (cfg.plain, cfg if mine else None) if isinstance(cfg, OwnConfig) else (cfg, None)
        )


def assign(model: Any, name: str, value: Any) -> None:
    """Gives a model a config in which one field has another value."""
    cfg: Config = vars(model)["cfg"]
    new = cfg.with_field(name, value)
    if new.dtype != cfg.dtype:
        model.to(new.dtype)
    elif name == "ungroup_grouped_query_attention":
        model.set_ungroup_grouped_query_attention(value)
    elif parameter_shapes(new) != parameter_shapes(cfg):
        raise ValueError(
            f"{name}={value!r} would change the shapes of the model's parameters; make another model with "
            "HookedTransformer(model.cfg.replace(...))"
        )
    elif new.replace(default_prepend_bos=cfg.default_prepend_bos) == cfg:
        model.cfg = new
    else:
        model.set_params(model.params, new)
    if name == "default_prepend_bos" and model.tokenizer is not None:
        model.tokenizer = copy.copy(model.tokenizer)
        model.tokenizer.default_prepend_bos = new.default_prepend_bos
