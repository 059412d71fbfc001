"""Granite 3 (mixture of experts): Granite with a router, and all experts of a layer in two tensors."""

import functools
from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import attention_biases, granite_config
from jaxlens.checkpoints.rules.tensor_rules import LAYER, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return granite_config(
        hf, biases=attention_biases(hf), num_experts=hf.size("num_local_experts"),
        experts_per_token=hf.size("num_experts_per_tok"),
    )  # fmt: skip


def expert_rules(cfg: Config) -> Iterator[Rule]:
    theirs, ours = LAYER + "block_sparse_moe.", "blocks.{l}.mlp."
    yield Rule(theirs + "router.layer.weight", ours + "W_router", "e d -> d e")
    yield Rule(theirs + "input_linear.weight", (ours + "W_gate", ours + "W_in"), "e (two f) d -> two e d f")
    yield Rule(theirs + "output_linear.weight", ours + "W_out", "e d f -> e f d")


FAMILY = Family(
    model_types=("granitemoe",),
    config=config,
    rules=functools.partial(llama_rules, mlp=expert_rules),
    unused=("output_router_logits", "router_aux_loss_coef"),  # training only
)
