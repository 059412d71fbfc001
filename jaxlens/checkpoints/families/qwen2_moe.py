"""Qwen 1.5 and 2 (mixture of experts): Qwen 2 with experts, and a shared expert whose output is gated.

Optional windows apply to every second layer among the first `max_window_layers`.
"""

import functools
from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import layer_values, layer_windows, layers_with_experts, llama_config
from jaxlens.checkpoints.rules.tensor_rules import (
    LAYER,
    expert_layers,
    expert_rules,
    gated_mlp_rules,
    llama_rules,
    shared_expert_rules,
)
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(
        hf, biases=("b_Q", "b_K", "b_V") if hf.flag("qkv_bias") else (), windows=optional_windows(hf),
        num_experts=hf.size("num_experts"), experts_per_token=hf.size("num_experts_per_tok"),
        norm_topk_prob=hf.flag("norm_topk_prob"), d_expert=hf.size("moe_intermediate_size"),
        d_shared_expert=hf.size("shared_expert_intermediate_size"), shared_expert_gate=True,
        moe_layers=layers_with_experts(hf), default_prepend_bos=False,
    )  # fmt: skip


def optional_windows(hf: Reader) -> tuple[int | None, ...]:
    if hf.flag("use_sliding_window"):
        return layer_windows(hf)
    hf("sliding_window", None)  # transformers sets it to 0
    return layer_values(hf, "layer_types", {"full_attention": None})


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    yield from gated_mlp_rules(cfg)
    yield from expert_rules(cfg)
    yield from shared_expert_rules(cfg)
    theirs, ours = LAYER + "mlp.shared_expert_gate.weight", "blocks.{l}.mlp.W_shared_gate"
    yield Rule(theirs, ours, "one d -> (one d)", layers=expert_layers(cfg))


FAMILY = Family(
    model_types=("qwen2_moe",),
    config=config,
    rules=functools.partial(llama_rules, mlp=mlp_rules),
    unused=(
        "max_window_layers",  # transformers uses layer_types
        *("output_router_logits", "router_aux_loss_coef"),  # training only
    ),
)
