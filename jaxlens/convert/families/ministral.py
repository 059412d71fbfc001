"""Ministral: Mistral with a window in some layers."""

from jaxlens.config import Config
from jaxlens.convert.common import llama_config, windows
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(hf, windows=windows(hf))


FAMILY = Family(
    model_types=("ministral",),
    config=config,
    rules=llama_rules,
)
