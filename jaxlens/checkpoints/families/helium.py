"""Helium: Llama with adjacent rotary pairs."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config, mlp_biases, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    biases = attention_biases(hf, "QKV") + mlp_biases(hf)
    return llama_config(hf, rotary=rotary_embedding(hf, adjacent_pairs=True), biases=biases)


FAMILY = Family(model_types=("helium",), config=config, rules=llama_rules)
