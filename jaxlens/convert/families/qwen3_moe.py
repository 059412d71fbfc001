"""Qwen 3 with experts: in all layers, in every so many, or in all but some."""

import functools
from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, every_so_many_layers, llama_config
from jaxlens.convert.layouts import expert_rules, gated_mlp_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule

ALWAYS = {"qkv_bias": False, "shared_expert_intermediate_size": 0, "use_qk_norm": True}
"""What the files of Qwen 3 Coder say of it."""


def config(hf: Reader) -> Config:
    for name, only in ALWAYS.items():
        hf.expect(name, only, because="transformers' Qwen 3 with experts knows no other")
    return llama_config(
        hf,
        qk_norm="head",
        biases=attention_biases(hf),
        windows=hf.size("sliding_window", None),
        num_experts=hf.size("num_local_experts"),
        experts_per_token=hf.size("num_experts_per_tok"),
        norm_topk_prob=hf.flag("norm_topk_prob"),
        d_expert=hf.size("moe_intermediate_size"),
        moe_layers=every_so_many_layers(hf),
        default_prepend_bos=False,
    )


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    yield from gated_mlp_rules(cfg)
    yield from expert_rules(cfg)


FAMILY = Family(
    model_types=("qwen3_moe",),
    config=config,
    rules=functools.partial(llama_rules, mlp=mlp_rules),
    unused=(
        *("use_sliding_window", "max_window_layers"),  # sliding_window is null where the first is false
        *("output_router_logits", "router_aux_loss_coef"),  # of training
    ),
)
