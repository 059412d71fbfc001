"""GPT BigCode (StarCoder 1, SantaCoder): GPT-2 whose query heads can share one key and one value."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import gpt_config
from jaxlens.convert.layouts import GPT_LAYER, fused_attention_rules, gpt_rules, mlp_rules, out_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    return gpt_config(
        hf,
        n_key_value_heads=hf.size("num_key_value_heads"),
        attn_scale=None if hf.flag("scale_attn_weights") else 1.0,
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    fused = GPT_LAYER + "attn.c_attn"
    if cfg.n_key_value_heads == 1:
        yield from fused_attention_rules(cfg, fused, "(heads h) d -> heads d h", split=("n", "k", "k"))
    else:
        yield from fused_attention_rules(cfg, fused, "(n three h) d -> three n d h")
    yield from out_rules(cfg, GPT_LAYER + "attn.c_proj")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.c_fc", GPT_LAYER + "mlp.c_proj")


FAMILY = Family(
    model_types=("gpt_bigcode",),
    config=config,
    rules=rules,
    unused=(
        "multi_query",  # num_key_value_heads says the same
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),  # a softmax is computed in float32 here
        *("inference_runner", "validate_runner_input", "pre_allocate_kv_cache", "pad_key_length"),  # how, not what
        *("max_sequence_length", "max_batch_size"),
    ),
    ignored=("*.attn.bias", "*.attn.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
