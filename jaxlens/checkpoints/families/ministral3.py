"""Ministral 3: Mistral with YaRN, and with queries that grow past the original context."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import llama_config
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    rope = hf.inside("rope_parameters")
    rope("max_position_embeddings", None)  # the top-level field of this name is used
    growth = rope.number("llama_4_scaling_beta"), rope.size("original_max_position_embeddings")
    return llama_config(hf, windows=hf.size("sliding_window", None), query_growth=growth)


FAMILY = Family(model_types=("ministral3",), config=config, rules=llama_rules)
