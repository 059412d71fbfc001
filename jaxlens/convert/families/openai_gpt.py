"""GPT (1): GPT-2 with norms after the sums, and none at the end."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import gpt_config
from jaxlens.convert.layouts import GPT_LAYER, gpt_layer_rules, norm_rules, unembed_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}
"""Its own table of activations: its "gelu" is the tanh approximation."""


def config(hf: Reader) -> Config:
    hf.expect("afn", *ACTIVATIONS, because="transformers' GPT knows no other")
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
    unused=("n_ctx", "n_special", "predict_special_tokens"),  # n_positions decides; how it was fine-tuned
    ignored=("*.attn.bias", "*position_ids"),  # masks and numbers
    copies=(("lm_head.weight", "transformer.tokens_embed.weight"),),
    prefixes=("transformer.", ""),
)
