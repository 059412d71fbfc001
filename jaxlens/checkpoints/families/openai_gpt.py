"""GPT (1): GPT-2 with norms after the residual additions, and no final norm."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import gpt_config
from jaxlens.checkpoints.rules.tensor_rules import GPT_LAYER, gpt_layer_rules, norm_rules, unembed_rules
from jaxlens.config import Config

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}
"""Activation names of this family. "gelu" is the tanh approximation."""


def config(hf: Reader) -> Config:
    hf.expect("afn", *ACTIVATIONS, because="transformers' GPT supports no other activation")
    return gpt_config(hf, norm_placement="sum", act_fn=ACTIVATIONS[hf("afn")])


def rules(cfg: Config) -> Iterator[Rule]:
    yield Rule("transformer.tokens_embed.weight", "embed.W_E", "v d")
    yield Rule("transformer.positions_embed.weight", "pos_embed.W_pos", "c d")
    for i in (1, 2):
        yield from norm_rules(cfg, f"{GPT_LAYER}ln_{i}", f"blocks.{{l}}.ln{i}_sum")
    yield from gpt_layer_rules(cfg)
    yield from unembed_rules(cfg)


FAMILY = Family(
    model_types=("openai-gpt",),
    config=config,
    rules=rules,
    unused=("n_ctx", "n_special", "predict_special_tokens"),  # n_positions is used; the others are for fine-tuning
    ignored=("*.attn.bias", "*position_ids"),  # causal masks and position ids
    copies=(("lm_head.weight", "transformer.tokens_embed.weight"),),
    input_first=("*.c_attn.weight", "*.c_proj.weight", "*.c_fc.weight"),
    prefixes=("transformer.", ""),
)
