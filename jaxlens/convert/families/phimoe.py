"""Phi 3.5 MoE: Mixtral with LayerNorms, biases and LongRoPE, whose two experts a SparseMixer chooses.

Past the original context its `long_factor` counts, as in the code it was published with; transformers divides by
`short_factor` at every length.
"""

import dataclasses
import functools

from jaxlens.config import Config, LongRope, Rotary
from jaxlens.convert.common import attention_biases, llama_config, rotary
from jaxlens.convert.layouts import LAYER, expert_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    hf.expect("num_experts_per_tok", 2, because="a SparseMixer chooses two experts")
    return llama_config(
        hf,
        normalization_type="LN",
        biases=("norm", *attention_biases(hf), *(["b_U"] if hf.flag("lm_head_bias") else [])),
        windows=hf.size("sliding_window", None),
        num_experts=hf.size("num_local_experts"),
        experts_per_token=2,
        norm_topk_prob=False,
        router="sparsemixer",
        router_tolerance=hf.number("router_jitter_noise"),
        rotary=scaled_rotary(hf),
    )


def scaled_rotary(hf: Reader) -> Rotary:
    """The factors on rotated queries and keys are fields here, and do not follow from others."""
    rope, turns = hf.inside("rope_parameters"), rotary(hf)
    if turns.scaling is None:
        return turns
    if not isinstance(turns.scaling, LongRope):
        raise rope.refused("rope_type", "PhiMoE has default or longrope")
    factors = {"attention_factor": rope.number("long_mscale"), "short_attention_factor": rope.number("short_mscale")}
    return dataclasses.replace(turns, scaling=dataclasses.replace(turns.scaling, **factors))


FAMILY = Family(
    model_types=("phimoe",),
    config=config,
    rules=functools.partial(
        llama_rules,
        mlp=functools.partial(expert_rules, within=LAYER + "block_sparse_moe.", names=("w1", "w3", "w2")),
    ),
    unused=("output_router_logits", "router_aux_loss_coef", "input_jitter_noise"),  # of training
)
