"""GPT-2 (and DistilGPT-2, DialoGPT, Stanford's Mistral)."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import gpt_config
from jaxlens.convert.layouts import gpt_layer_rules, gpt_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    return gpt_config(
        hf,
        attn_scale=None if hf.flag("scale_attn_weights") else 1.0,
        scale_attn_by_inverse_layer_idx=hf.flag("scale_attn_by_inverse_layer_idx"),
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    yield from gpt_layer_rules(cfg)


FAMILY = Family(
    model_types=("gpt2",),
    config=config,
    rules=rules,
    unused=(
        *("n_ctx", "reorder_and_upcast_attn"),  # n_positions decides; the second only orders the same operations
        *("n_special", "predict_special_tokens"),  # of GPT (1), which the medium model's file took over
    ),
    ignored=("*.attn.bias", "*.attn.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
