"""Seed-OSS: Llama with biases on queries, keys and values, and others on request."""

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config, mlp_biases
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    output = ("b_O",) if hf.flag("attention_out_bias") else ()
    return llama_config(hf, biases=attention_biases(hf, "QKV") + output + mlp_biases(hf))


FAMILY = Family(
    model_types=("seed_oss",),
    config=config,
    rules=llama_rules,
)
