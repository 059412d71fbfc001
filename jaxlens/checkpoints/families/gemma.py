"""Gemma 1: Llama with unit offsets in norms, and a scaled embedding."""

import math

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    hf.expect("use_bidirectional_attention", False, because="jaxlens implements causal attention only")
    hf.expect("hidden_activation", hf("hidden_act"), because="it must equal hidden_act, which transformers uses")
    return llama_config(
        hf, rmsnorm_uses_offset=True, embed_scale=math.sqrt(hf.size("hidden_size")), biases=attention_biases(hf)
    )


FAMILY = Family(model_types=("gemma",), config=config, rules=llama_rules)
