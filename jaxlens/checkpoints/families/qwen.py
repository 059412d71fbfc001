"""Qwen 1: Llama in GPT-2's tensor layout, with biases on queries, keys and values.

transformers no longer has a class for it. The published code changes sequences longer than `seq_length` (dynamic NTK
scaling, and attention scaled by log n). jaxlens does not implement this, so `n_ctx` is at most `seq_length`.
"""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import common_config
from jaxlens.checkpoints.rules.tensor_rules import (
    GPT_LAYER,
    attn_out_rules,
    fused_qkv_rules,
    gated_mlp_rules,
    gpt_rules,
)
from jaxlens.config import Config, Rotary


def config(hf: Reader) -> Config:
    d_head = hf.size("hidden_size") // hf.size("num_attention_heads")
    hf.expect("kv_channels", d_head, because="it must equal hidden_size / num_attention_heads")
    hf.expect("rotary_pct", 1, because="Qwen 1 rotates all dimensions of a head")
    hf.expect("scale_attn_weights", True, because="Qwen 1 always scales attention scores")
    output_biases = () if hf.flag("no_bias", True) else ("b_O", "b_in", "b_gate", "b_out")
    return common_config(
        hf,
        d_mlp=hf.size("intermediate_size") // 2,  # the field counts gate and up together
        n_ctx=min(hf.size("seq_length"), hf.size("max_position_embeddings")),
        normalization_type="RMS",
        eps=hf.number("layer_norm_epsilon"),
        act_fn="silu",
        gated_mlp=True,
        biases=("b_Q", "b_K", "b_V", *output_biases),
        positional_embedding_type="rotary",
        rotary=Rotary(float(hf.positive("rotary_emb_base", 10000))),
        default_prepend_bos=False,
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    yield from fused_qkv_rules(cfg, GPT_LAYER + "attn.c_attn", "(three n h) d -> three n d h")
    yield from attn_out_rules(cfg, GPT_LAYER + "attn.c_proj")
    yield from gated_mlp_rules(cfg, GPT_LAYER + "mlp.", ("w2", "w1", "c_proj"))


FAMILY = Family(
    model_types=("qwen",),
    config=config,
    rules=rules,
    unused=(
        *("use_dynamic_ntk", "use_logn_attn"),  # they affect sequences longer than seq_length only
        *("attn_dropout_prob", "emb_dropout_prob"),  # training only
        *("bf16", "fp16", "fp32", "onnx_safe", "softmax_in_fp32"),  # the caller chooses the dtype
        *("use_flash_attn", "use_cache_quantization", "use_cache_kernel"),  # implementations of the same computation
    ),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
