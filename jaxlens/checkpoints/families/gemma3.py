"""Gemma 3 (text): five local layers per global layer, a different rotary base for each kind, and QK-norm."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import gemma_config, rotary_by_layer_type
from jaxlens.checkpoints.rules.tensor_rules import FOUR_NORMS, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    hf.expect("attn_logit_softcapping", because="transformers' Gemma 3 does not apply it")
    return gemma_config(hf, qk_norm="head", rotary=rotary_by_layer_type(hf))


FAMILY = Family(
    model_types=("gemma3_text",),
    config=config,
    rules=functools.partial(llama_rules, norms=FOUR_NORMS),
    unused=("sliding_window_pattern", "_sliding_window_pattern"),  # transformers uses layer_types
)
