"""jaxlens's own folder: TransformerLens's names and axes, one tensor per layer, the Config as it is."""

from collections.abc import Iterator
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
    try:
        return Config.from_dict(hf("config"))
    except (TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"config.json: config cannot be read: {error}") from error


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
    unused=("source",),
    source=lambda fields: fields.get("source"),
)
