"""gpt-oss: attention sinks, every other layer with a window, and experts whose gates are clamped.

The experts of the published checkpoints are stored in MXFP4 and are read as bfloat16, which holds every such number.
"""

import functools
from collections.abc import Iterator
from typing import Any

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config, windows
from jaxlens.convert.layouts import LAYER, attention_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    for name, only in {"hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_limit": 7.0}.items():
        hf.expect(name, only, because="the clamped gate of gpt-oss is known with this value only")
    check_quantization(hf)
    chosen = hf.size("num_experts_per_tok")
    hf.expect("experts_per_token", chosen, because="num_experts_per_tok says so")
    if hf("initial_context_length", None) is not None:
        original = hf.inside("rope_parameters")("original_max_position_embeddings", None)
        hf.expect("initial_context_length", original, because="rope_parameters says so")
    cfg = llama_config(
        hf,
        attn_sinks=True,
        windows=windows(hf),
        num_experts=hf.size("num_local_experts"),
        experts_per_token=chosen,
        biases=(*attention_biases(hf), "b_in", "b_gate", "b_out", "b_router"),
    )
    return cfg.replace(act_fn="clamped_swiglu")  # which hidden_act does not say


def check_quantization(hf: Reader) -> None:
    if hf("quantization_config", None) is not None:
        how = hf.inside("quantization_config")
        how.expect("quant_method", "mxfp4", because="no other is read")
        for name in ("modules_to_not_convert", "dequantize"):  # names of tensors say which are stored so
            how(name, None)


def source(fields: dict[str, Any]) -> dict[str, Any]:
    """What is exported is no longer quantized."""
    return {name: value for name, value in fields.items() if name != "quantization_config"}


def sink_rules(cfg: Config) -> Iterator[Rule]:
    yield from attention_rules(cfg)
    yield Rule(LAYER + "self_attn.sinks", "blocks.{l}.attn.sinks", "n")


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    """All experts in one tensor, the columns of their gates and of what those multiply in turns."""
    theirs, ours = LAYER + "mlp.", "blocks.{l}.mlp."
    yield Rule(theirs + "router.weight", ours + "W_router", "e d -> d e")
    yield Rule(theirs + "router.bias", ours + "b_router", "e")
    yield Rule(theirs + "experts.gate_up_proj", (ours + "W_gate", ours + "W_in"), "e d (f two) -> two e d f")
    yield Rule(theirs + "experts.gate_up_proj_bias", (ours + "b_gate", ours + "b_in"), "e (f two) -> two e f")
    yield Rule(theirs + "experts.down_proj", ours + "W_out", "e f d")
    yield Rule(theirs + "experts.down_proj_bias", ours + "b_out", "e d")


FAMILY = Family(
    model_types=("gpt_oss",),
    config=config,
    rules=functools.partial(llama_rules, attention=sink_rules, mlp=mlp_rules),
    unused=("output_router_logits", "router_aux_loss_coef"),  # of training
    source=source,
)
