"""Phi 3.5 MoE: Mixtral with LayerNorms, biases, LongRoPE, and SparseMixer routing to two experts per token.

Sequences longer than the original context use `long_factor`, as in the code published with the model. transformers uses
`short_factor` at every length.
"""

import dataclasses
import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import LAYER, expert_rules, llama_rules
from jaxlens.config import Config, LongRope, Rotary


def config(hf: Reader) -> Config:
    hf.expect("num_experts_per_tok", 2, because="a SparseMixer chooses two experts per token")
    return llama_config(
        hf, normalization_type="LN",
        biases=("norm", *attention_biases(hf), *(["b_U"] if hf.flag("lm_head_bias") else [])),
        windows=hf.size("sliding_window", None), num_experts=hf.size("num_local_experts"), experts_per_token=2,
        norm_topk_prob=False, router="sparsemixer", router_tolerance=hf.number("router_jitter_noise"),
        rotary=scaled_rotary(hf),
    )  # fmt: skip


def scaled_rotary(hf: Reader) -> Rotary:
    """The rotary embedding, with the factors on queries and keys from `long_mscale` and `short_mscale`."""
    rope, rotary = hf.inside("rope_parameters"), rotary_embedding(hf)
    if rotary.scaling is None:
        return rotary
    if not isinstance(rotary.scaling, LongRope):
        raise rope.refused("rope_type", "expected default or longrope")
    factors = {"attention_factor": rope.number("long_mscale"), "short_attention_factor": rope.number("short_mscale")}
    return dataclasses.replace(rotary, scaling=dataclasses.replace(rotary.scaling, **factors))


FAMILY = Family(
    model_types=("phimoe",),
    config=config,
    rules=functools.partial(
        llama_rules, mlp=functools.partial(expert_rules, prefix=LAYER + "block_sparse_moe.", names=("w1", "w3", "w2"))
    ),
    unused=("output_router_logits", "router_aux_loss_coef", "input_jitter_noise"),  # training only
)
