"""Mistral: Llama with a sliding window in every layer, where `sliding_window` is not null."""

from jaxlens.config import Config
from jaxlens.convert.common import llama_config
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(hf, windows=hf.size("sliding_window", None))


FAMILY = Family(
    model_types=("mistral",),
    config=config,
    rules=llama_rules,
)
