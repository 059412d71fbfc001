"""Phi 3, 3.5 and 4 (dense): Llama with fused projections, LongRoPE, and partly rotated heads in some sizes."""

import functools
from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import head_dim, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import LAYER, attn_out_rules, fused_mlp_rules, fused_qkv_rules, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        hf.expect(name, False, because="transformers' Phi-3 has no biases")
    return llama_config(hf, windows=hf.size("sliding_window", None), rotary=rotary_embedding(hf, d_head=head_dim(hf)))


def attention_rules(cfg: Config) -> Iterator[Rule]:
    fused, pattern = LAYER + "self_attn.qkv_proj", "(heads h) d -> heads d h"
    yield from fused_qkv_rules(cfg, fused, pattern, split=("n", "k", "k"))
    yield from attn_out_rules(cfg, LAYER + "self_attn.o_proj")


FAMILY = Family(
    model_types=("phi3",),
    config=config,
    rules=functools.partial(llama_rules, attention=attention_rules, mlp=fused_mlp_rules),
    unused=("full_attn_mod", "interpolate_factor"),  # transformers does not read them
)
