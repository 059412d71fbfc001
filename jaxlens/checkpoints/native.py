"""jaxlens's own format: TransformerLens's parameter names and axes, one tensor per layer, and the Config itself."""

import dataclasses
import inspect
import math
import reprlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.config import Config
from jaxlens.errors import CheckpointError
from jaxlens.nn.parameters import parameter_axes

MODEL_TYPE = "jaxlens"
VERSION = 1


def config(hf: Reader) -> Config:
    hf.expect("version", VERSION, because="another version of jaxlens wrote this folder")
    if not isinstance(hf("source", None), Mapping | None):
        raise hf.refused("source", "expected an object or null")
    try:
        cfg = Config.from_dict(hf("config"))
    except (TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"config.json: config is not a valid Config: {error}") from error
    floats, hints = {}, typing.get_type_hints(Config)
    for name in cfg.to_dict():
        hint = hints[name]
        if not has_type(value := getattr(cfg, name), hint):
            expected = inspect.formatannotation(hint)
            raise CheckpointError(f"config.json: config.{name} is {reprlib.repr(value)}; expected {expected}")
        if hint in (float, float | None) and value is not None:
            floats[name] = float(value)
    return cfg.replace(**floats)


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value from a file matches a type annotation. Integers must be below 2^31, and floats finite."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in arguments
    if typing.get_origin(hint) is tuple:
        entries = arguments[:1] * len(value) if type(value) is tuple and arguments[-1] is ... else arguments
        return type(value) is tuple and len(value) == len(entries) and all(map(has_type, value, entries))
    if arguments:  # a union
        return any(has_type(value, argument) for argument in arguments)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return type(value) is hint and all(has_type(getattr(value, name), hints[name]) for name in hints)
    if type(value) is int and hint in (int, float):
        return abs(value) < 2**31
    return type(value) is hint and (hint is not float or math.isfinite(value))


def rules(cfg: Config) -> Iterator[Rule]:
    for name, axes in parameter_axes(cfg).items():
        if not name.startswith("blocks."):
            yield Rule(name, name, axes)
    for stack, layers in zip(cfg.stack_names, cfg.stacks, strict=True):
        for name, axes in parameter_axes(cfg).items():
            if name.startswith(prefix := f"blocks.{stack}."):
                in_layer = "blocks.{l}." + name.removeprefix(prefix)
                yield Rule(in_layer, in_layer, axes.removeprefix("l "), layers=layers)


def fields(cfg: Config, source: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of config.json. `source` is the config.json of the checkpoint that the model was loaded from."""
    return {"model_type": MODEL_TYPE, "version": VERSION, "config": cfg.to_dict(), "source": source}


FAMILY = Family(
    model_types=(MODEL_TYPE,), config=config, rules=rules, copies=(), prefixes=("",),
    source=lambda fields: fields.get("source"),
)  # fmt: skip
