"""OLMoE: Llama with experts, QK-norm over all heads together, and clipped queries, keys and values."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config
from jaxlens.checkpoints.rules.tensor_rules import expert_rules, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(
        hf, qk_norm="full", clip_qkv=hf.positive("clip_qkv", None), biases=attention_biases(hf),
        num_experts=hf.size("num_experts"), experts_per_token=hf.size("num_experts_per_tok"),
        norm_topk_prob=hf.flag("norm_topk_prob"),
    )  # fmt: skip


FAMILY = Family(
    model_types=("olmoe",),
    config=config,
    rules=functools.partial(llama_rules, mlp=expert_rules),
    unused=("output_router_logits", "router_aux_loss_coef"),  # training only
)
