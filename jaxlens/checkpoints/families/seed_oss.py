"""Seed-OSS: Llama with biases on queries, keys and values, and optional biases elsewhere."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config, mlp_biases
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    output = ("b_O",) if hf.flag("attention_out_bias") else ()
    return llama_config(hf, biases=attention_biases(hf, "QKV") + output + mlp_biases(hf))


FAMILY = Family(model_types=("seed_oss",), config=config, rules=llama_rules)
