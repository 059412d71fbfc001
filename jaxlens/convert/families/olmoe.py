"""OLMoE: Llama with experts, norms of all queries and all keys together, and clipped queries, keys and values."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config
from jaxlens.convert.layouts import expert_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(
        hf,
        qk_norm="full",
        clip_qkv=hf.positive("clip_qkv", None),
        biases=attention_biases(hf),
        num_experts=hf.size("num_experts"),
        experts_per_token=hf.size("num_experts_per_tok"),
        norm_topk_prob=hf.flag("norm_topk_prob"),
    )


FAMILY = Family(
    model_types=("olmoe",),
    config=config,
    rules=functools.partial(llama_rules, mlp=expert_rules),
    unused=("output_router_logits", "router_aux_loss_coef"),  # of training
)
