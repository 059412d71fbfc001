"""Ministral: Mistral with a window in some layers only."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import layer_windows, llama_config
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(hf, windows=layer_windows(hf))


FAMILY = Family(model_types=("ministral",), config=config, rules=llama_rules)
