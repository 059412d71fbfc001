"""GPT-2, and models of the same architecture: DistilGPT-2, DialoGPT, Stanford's Mistral, …"""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import gpt_config
from jaxlens.checkpoints.rules.tensor_rules import gpt_layer_rules, gpt_rules
from jaxlens.config import Config


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
        "n_ctx",  # transformers uses n_positions
        "reorder_and_upcast_attn",  # changes only the order of operations
        *("n_special", "predict_special_tokens"),  # fields of GPT (1) in the file of the medium model
    ),
    ignored=("*.attn.bias", "*.attn.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    input_first=("*.c_attn.weight", "*.c_proj.weight", "*.c_fc.weight"),
    prefixes=("transformer.", ""),
)
