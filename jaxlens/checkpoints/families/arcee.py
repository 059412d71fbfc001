"""Arcee (AFM): Llama with an ungated MLP and squared ReLU."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config, mlp_biases
from jaxlens.checkpoints.rules.tensor_rules import llama_rules, ungated_mlp_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(hf, gated_mlp=False, biases=attention_biases(hf) + mlp_biases(hf, ("in", "out")))


FAMILY = Family(model_types=("arcee",), config=config, rules=functools.partial(llama_rules, mlp=ungated_mlp_rules))
