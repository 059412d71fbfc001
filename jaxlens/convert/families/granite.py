"""Granite 3 (dense): Llama with a scale at the embedding, at scores, at what blocks add, and at logits."""

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, granite_config, mlp_biases
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return granite_config(hf, biases=attention_biases(hf) + mlp_biases(hf))


FAMILY = Family(
    model_types=("granite",),
    config=config,
    rules=llama_rules,
)
