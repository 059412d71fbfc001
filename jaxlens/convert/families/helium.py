"""Helium: Llama whose heads turn in neighbouring pairs."""

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config, mlp_biases, rotary
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    biases = attention_biases(hf, "QKV") + mlp_biases(hf)
    return llama_config(hf, rotary=rotary(hf, adjacent_pairs=True), biases=biases)


FAMILY = Family(
    model_types=("helium",),
    config=config,
    rules=llama_rules,
)
