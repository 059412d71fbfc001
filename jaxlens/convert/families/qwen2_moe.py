"""Qwen 1.5 and 2 with experts: one of them answers every token, as far as a gate lets it; windows in every second of
the first layers on request."""

import functools
from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import every_so_many_layers, llama_config, per_layer, windows
from jaxlens.convert.layouts import (
    LAYER,
    expert_rules,
    gated_mlp_rules,
    llama_rules,
    mixing_layers,
    shared_expert_rules,
)
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    return llama_config(
        hf,
        biases=("b_Q", "b_K", "b_V") if hf.flag("qkv_bias") else (),
        windows=windows_on_request(hf),
        num_experts=hf.size("num_experts"),
        experts_per_token=hf.size("num_experts_per_tok"),
        norm_topk_prob=hf.flag("norm_topk_prob"),
        d_expert=hf.size("moe_intermediate_size"),
        d_shared_expert=hf.size("shared_expert_intermediate_size"),
        shared_expert_gate=True,
        moe_layers=every_so_many_layers(hf),
        default_prepend_bos=False,
    )


def windows_on_request(hf: Reader) -> tuple[int | None, ...]:
    if hf.flag("use_sliding_window"):
        return windows(hf)
    hf("sliding_window", None)  # transformers has made 0 of it
    return per_layer(hf, "layer_types", {"full_attention": None})


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    yield from gated_mlp_rules(cfg)
    yield from expert_rules(cfg)
    yield from shared_expert_rules(cfg)
    theirs, ours = LAYER + "mlp.shared_expert_gate.weight", "blocks.{l}.mlp.W_shared_gate"
    yield Rule(theirs, ours, "one d -> (one d)", layers=mixing_layers(cfg))


FAMILY = Family(
    model_types=("qwen2_moe",),
    config=config,
    rules=functools.partial(llama_rules, mlp=mlp_rules),
    unused=(
        "max_window_layers",  # transformers has made layer_types of it
        *("output_router_logits", "router_aux_loss_coef"),  # of training
    ),
)
