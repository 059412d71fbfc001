"""Qwen 3 (mixture of experts): Qwen 3 with experts in all layers, or in every n-th layer except listed layers."""

import functools
from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import attention_biases, layers_with_experts, llama_config
from jaxlens.checkpoints.rules.tensor_rules import expert_rules, gated_mlp_rules, llama_rules
from jaxlens.config import Config

FIXED_FIELDS = {"qkv_bias": False, "shared_expert_intermediate_size": 0, "use_qk_norm": True}
"""Fields in the files of Qwen 3 Coder that transformers does not read. It implements these values."""


def config(hf: Reader) -> Config:
    for name, value in FIXED_FIELDS.items():
        hf.expect(name, value, because="transformers' Qwen 3 MoE supports no other value")
    return llama_config(
        hf, qk_norm="head", biases=attention_biases(hf), windows=hf.size("sliding_window", None),
        num_experts=hf.size("num_local_experts"), experts_per_token=hf.size("num_experts_per_tok"),
        norm_topk_prob=hf.flag("norm_topk_prob"), d_expert=hf.size("moe_intermediate_size"),
        moe_layers=layers_with_experts(hf), default_prepend_bos=False,
    )  # fmt: skip


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    yield from gated_mlp_rules(cfg)
    yield from expert_rules(cfg)


FAMILY = Family(
    model_types=("qwen3_moe",),
    config=config,
    rules=functools.partial(llama_rules, mlp=mlp_rules),
    unused=(
        *("use_sliding_window", "max_window_layers"),  # without use_sliding_window, sliding_window is null
        *("output_router_logits", "router_aux_loss_coef"),  # training only
    ),
)
