"""jaxlens's own folder: TransformerLens's names and axes, one tensor per layer, the Config as it is."""

import dataclasses
import inspect
import math
import reprlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from jaxlens.config import Config
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule
from jaxlens.errors import CheckpointError
from jaxlens.parameters import parameter_axes

MODEL_TYPE = "jaxlens"
VERSION = 1


def config(hf: Reader) -> Config:
    hf.expect("version", VERSION, because="the folder was written by another version of jaxlens")
    if not isinstance(hf("source", None), Mapping | None):
        raise hf.refused("source", "an object is wanted, or null")
    try:
        cfg = Config.from_dict(hf("config"))
    except (TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"config.json: config cannot be read: {error}") from error
    numbers = {}
    for name, hint in typing.get_type_hints(Config).items():
        if not fits(value := getattr(cfg, name), hint):
            wanted = inspect.formatannotation(hint)
            raise CheckpointError(f"config.json: config.{name} is {reprlib.repr(value)}; {wanted} is wanted")
        if hint in (float, float | None) and value is not None:
            numbers[name] = float(value)
    return cfg.replace(**numbers)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that comes from a file is of the type that a field is declared with, and of a sane size."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in inner
    if typing.get_origin(hint) is tuple:
        each = inner[:1] * len(value) if type(value) is tuple and inner[-1] is ... else inner
        return type(value) is tuple and len(value) == len(each) and all(map(fits, value, each))
    if inner:
        return any(fits(value, one) for one in inner)
    if dataclasses.is_dataclass(hint):
        kinds = typing.get_type_hints(hint)
        return type(value) is hint and all(fits(getattr(value, name), kind) for name, kind in kinds.items())
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
                each = "blocks.{l}." + name.removeprefix(prefix)
                yield Rule(each, each, axes.removeprefix("l "), layers=layers)


def fields(cfg: Config, source: dict[str, Any] | None) -> dict[str, Any]:
    """What config.json holds; `source` is the config.json of the checkpoint that the model came from."""
    return {"model_type": MODEL_TYPE, "version": VERSION, "config": cfg.to_dict(), "source": source}


FAMILY = Family(
    model_types=(MODEL_TYPE,),
    config=config,
    rules=rules,
    copies=(),
    prefixes=("",),
    source=lambda fields: fields.get("source"),
)
