"""Phi 3, 3.5 and 4 (dense): Llama with fused projections and LongRoPE; a part of each head may turn."""

import functools
from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import head_size, llama_config, rotary
from jaxlens.convert.layouts import LAYER, fused_attention_rules, fused_gated_mlp_rules, llama_rules, out_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        hf.expect(name, False, because="transformers' Phi-3 has no biases")
    return llama_config(hf, windows=hf.size("sliding_window", None), rotary=rotary(hf, d_head=head_size(hf)))


def attention_rules(cfg: Config) -> Iterator[Rule]:
    fused, pattern = LAYER + "self_attn.qkv_proj", "(heads h) d -> heads d h"
    yield from fused_attention_rules(cfg, fused, pattern, split=("n", "k", "k"))
    yield from out_rules(cfg, LAYER + "self_attn.o_proj")


FAMILY = Family(
    model_types=("phi3",),
    config=config,
    rules=functools.partial(llama_rules, attention=attention_rules, mlp=fused_gated_mlp_rules),
    unused=("full_attn_mod", "interpolate_factor"),  # nothing in transformers reads them
)
