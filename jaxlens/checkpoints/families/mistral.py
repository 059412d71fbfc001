"""Mistral: Llama with a sliding window in every layer, unless `sliding_window` is null."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import llama_config
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(hf, windows=hf.size("sliding_window", None))


FAMILY = Family(model_types=("mistral",), config=config, rules=llama_rules)
