"""Granite 3 (dense): Llama with scaled embedding, attention scores, block outputs and logits."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, granite_config, mlp_biases
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return granite_config(hf, biases=attention_biases(hf) + mlp_biases(hf))


FAMILY = Family(model_types=("granite",), config=config, rules=llama_rules)
