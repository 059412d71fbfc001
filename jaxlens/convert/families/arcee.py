"""Arcee (AFM): Llama whose MLP has no gate and squares its ReLU."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config, mlp_biases
from jaxlens.convert.layouts import llama_rules, up_down_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(hf, gated_mlp=False, biases=attention_biases(hf) + mlp_biases(hf, ("in", "out")))


FAMILY = Family(
    model_types=("arcee",),
    config=config,
    rules=functools.partial(llama_rules, mlp=up_down_rules),
)
