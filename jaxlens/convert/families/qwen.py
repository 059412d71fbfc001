"""Qwen 1: Llama in GPT-2's layout, with biases on queries, keys and values.

transformers has no class for it any more. What its own code adds for sequences longer than `seq_length` (dynamic NTK
scaling, attention that sharpens with log n) is left out: `n_ctx` ends there.
"""

from collections.abc import Iterator

from jaxlens.config import Config, Rotary
from jaxlens.convert.layouts import GPT_LAYER, fused_attention_rules, gated_mlp_rules, gpt_rules, out_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    d_model, n_heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    hf.expect("kv_channels", d_model // n_heads, because="the heads together are as wide as the residual stream")
    hf.expect("rotary_pct", 1, because="whole heads turn here")
    hf.expect("scale_attn_weights", True, because="its attention always scales")
    others = () if hf.flag("no_bias", True) else ("b_O", "b_in", "b_gate", "b_out")
    return Config(
        n_layers=hf.size("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=hf.size("intermediate_size") // 2,  # it counts both halves of what the MLP computes
        d_vocab=hf.size("vocab_size"),
        n_ctx=min(hf.size("seq_length"), hf.size("max_position_embeddings")),
        normalization_type="RMS",
        eps=hf.number("layer_norm_epsilon"),
        act_fn="silu",
        gated_mlp=True,
        biases=("b_Q", "b_K", "b_V", *others),
        positional_embedding_type="rotary",
        rotary=Rotary(float(hf.positive("rotary_emb_base", 10000))),
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
        default_prepend_bos=False,
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    yield from fused_attention_rules(cfg, GPT_LAYER + "attn.c_attn", "(three n h) d -> three n d h")
    yield from out_rules(cfg, GPT_LAYER + "attn.c_proj")
    yield from gated_mlp_rules(cfg, GPT_LAYER + "mlp.", ("w2", "w1", "c_proj"))


FAMILY = Family(
    model_types=("qwen",),
    config=config,
    rules=rules,
    unused=(
        *("use_dynamic_ntk", "use_logn_attn"),  # past seq_length only
        *("attn_dropout_prob", "emb_dropout_prob"),  # of training
        *("bf16", "fp16", "fp32", "onnx_safe", "softmax_in_fp32"),  # number types, which are the caller's choice
        *("use_flash_attn", "use_cache_quantization", "use_cache_kernel"),  # how, not what
    ),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
