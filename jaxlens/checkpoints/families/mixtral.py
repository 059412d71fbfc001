"""Mixtral: Mistral with a mixture of experts as its MLP."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import llama_config
from jaxlens.checkpoints.rules.tensor_rules import LAYER, expert_rules, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(
        hf, windows=hf.size("sliding_window", None), num_experts=hf.size("num_local_experts"),
        experts_per_token=hf.size("num_experts_per_tok"),
    )  # fmt: skip


FAMILY = Family(
    model_types=("mixtral",),
    config=config,
    rules=functools.partial(
        llama_rules, mlp=functools.partial(expert_rules, prefix=LAYER + "block_sparse_moe.", names=("w1", "w3", "w2"))
    ),
    unused=("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),  # training only
)
