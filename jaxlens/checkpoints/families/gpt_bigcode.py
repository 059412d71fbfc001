"""GPT BigCode (StarCoder 1, SantaCoder): GPT-2 whose query heads can all share one key/value head."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import gpt_config
from jaxlens.checkpoints.rules.tensor_rules import GPT_LAYER, attn_out_rules, fused_qkv_rules, gpt_rules, mlp_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return gpt_config(
        hf, n_key_value_heads=hf.size("num_key_value_heads"), attn_scale=None if hf.flag("scale_attn_weights") else 1.0
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    fused = GPT_LAYER + "attn.c_attn"
    if cfg.n_key_value_heads == 1:
        yield from fused_qkv_rules(cfg, fused, "(heads h) d -> heads d h", split=("n", "k", "k"))
    else:
        yield from fused_qkv_rules(cfg, fused, "(n three h) d -> three n d h")
    yield from attn_out_rules(cfg, GPT_LAYER + "attn.c_proj")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.c_fc", GPT_LAYER + "mlp.c_proj")


FAMILY = Family(
    model_types=("gpt_bigcode",),
    config=config,
    rules=rules,
    unused=(
        "multi_query",  # transformers stores it as num_key_value_heads
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),  # jaxlens always computes softmax in float32
        # fields of an inference engine
        *("inference_runner", "validate_runner_input", "pre_allocate_kv_cache", "pad_key_length"),
        *("max_sequence_length", "max_batch_size"),
    ),
    ignored=("*.attn.bias", "*.attn.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
