"""gpt-oss: attention sinks, a window in every second layer, and experts with clamped gates.

The published checkpoints store the experts in MXFP4. They are loaded as bfloat16, which represents all MXFP4 values.
"""

import functools
from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import attention_biases, layer_windows, llama_config
from jaxlens.checkpoints.rules.tensor_rules import LAYER, attention_rules, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    for name, value in {"hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_limit": 7.0}.items():
        hf.expect(name, value, because="jaxlens implements the clamped gate of gpt-oss with this value only")
    n_chosen = hf.size("num_experts_per_tok")
    hf.expect("experts_per_token", n_chosen, because="it must equal num_experts_per_tok")
    if hf("initial_context_length", None) is not None:
        original = hf.inside("rope_parameters")("original_max_position_embeddings", None)
        reason = "it must equal rope_parameters.original_max_position_embeddings"
        hf.expect("initial_context_length", original, because=reason)
    cfg = llama_config(
        hf, attn_sinks=True, windows=layer_windows(hf), num_experts=hf.size("num_local_experts"),
        experts_per_token=n_chosen, biases=(*attention_biases(hf), "b_in", "b_gate", "b_out", "b_router"),
    )  # fmt: skip
    return cfg.replace(act_fn="clamped_swiglu")  # the hidden_act of gpt-oss is "silu"


def sink_rules(cfg: Config) -> Iterator[Rule]:
    yield from attention_rules(cfg)
    yield Rule(LAYER + "self_attn.sinks", "blocks.{l}.attn.sinks", "n")


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    """All experts in one tensor, with the columns of gate and up alternating."""
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
    unused=("output_router_logits", "router_aux_loss_coef"),  # training only
)
