"""Mixtral: Mistral whose MLP is a mixture of experts."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import llama_config
from jaxlens.convert.layouts import LAYER, expert_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(
        hf,
        windows=hf.size("sliding_window", None),
        num_experts=hf.size("num_local_experts"),
        experts_per_token=hf.size("num_experts_per_tok"),
    )


FAMILY = Family(
    model_types=("mixtral",),
    config=config,
    rules=functools.partial(
        llama_rules,
        mlp=functools.partial(expert_rules, within=LAYER + "block_sparse_moe.", names=("w1", "w3", "w2")),
    ),
    unused=("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),  # of training
)
