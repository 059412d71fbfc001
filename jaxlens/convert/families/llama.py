"""Llama 1 to 3.3 and everything of its shape (SmolLM 1 and 2, Yi, TinyLlama, …)."""

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config, mlp_biases
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    hf.expect("rope_interleaved", False, because="a Llama turns the halves of a head, not neighbouring pairs")
    return llama_config(hf, biases=attention_biases(hf) + mlp_biases(hf))


FAMILY = Family(
    model_types=("llama",),
    config=config,
    rules=llama_rules,
    unused=("is_llama_config",),
)
