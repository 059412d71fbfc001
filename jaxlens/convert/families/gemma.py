"""Gemma 1: Llama with unit offsets in its norms and a scaled embedding."""

import math

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    hf.expect("use_bidirectional_attention", False, because="attention here is causal")
    hf.expect("hidden_activation", hf("hidden_act"), because="hidden_act decides")
    return llama_config(
        hf,
        rmsnorm_uses_offset=True,
        embed_scale=math.sqrt(hf.size("hidden_size")),
        biases=attention_biases(hf),
    )


FAMILY = Family(
    model_types=("gemma",),
    config=config,
    rules=llama_rules,
)
