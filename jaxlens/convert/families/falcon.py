"""Falcon: attention and MLP side by side (7B: one key and value, one norm; 40B and 180B: groups of heads, two norms;
11B: groups, one norm), or one after the other and with ALiBi (the RefinedWeb models)."""

from collections.abc import Iterator
from typing import Any

from jaxlens.config import Config
from jaxlens.convert.common import activation, rotary
from jaxlens.convert.layouts import PRE_NORMS, bloom_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule

GROUPS = {"split": ("g", "one", "one"), "each": "part k d h -> (k part) d h"}
"""For every key: its queries, itself, and its value."""


def config(hf: Reader) -> Config:
    hf.expect("apply_residual_connection_post_layernorm", False, because="transformers' Falcon never does so")
    d_model, n_heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    hf.expect("ff_factor", hf.size("ffn_hidden_size") / d_model, because="ffn_hidden_size says so")
    linear = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out") if hf.flag("bias") else ()
    return Config(
        n_layers=hf.size("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=key_value_heads(hf),
        d_head=d_model // n_heads,
        d_mlp=hf.size("ffn_hidden_size"),
        d_vocab=hf.size("vocab_size"),
        n_ctx=hf.size("max_position_embeddings"),
        eps=hf.number("layer_norm_epsilon"),
        act_fn=activation(hf, "activation"),
        biases=("norm", *linear),
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
        **block(hf),
        **positions(hf),
    )


def key_value_heads(hf: Reader) -> int:
    given, one = hf.size("num_kv_heads"), hf.flag("multi_query")  # both are always there, and not always looked at
    if hf.flag("new_decoder_architecture"):
        return given
    return 1 if one else hf.size("num_attention_heads")


def block(hf: Reader) -> dict[str, bool]:
    parallel, n_norms = hf.flag("parallel_attn"), hf("num_ln_in_parallel_attn", None)
    if hf.flag("new_decoder_architecture"):
        hf.expect("parallel_attn", True, because="the new decoder architecture has no other")
        hf.expect("num_ln_in_parallel_attn", 1, 2, because="attention and MLP have one norm or two")
        return {"parallel_attn_mlp": True, "shared_norm": n_norms == 1}
    hf.expect("num_ln_in_parallel_attn", 1, because="only the new decoder architecture has more")
    return {"parallel_attn_mlp": parallel, "shared_norm": parallel}


def positions(hf: Reader) -> dict[str, Any]:
    if hf.flag("alibi"):
        hf("rope_parameters", None)  # transformers fills it in, and turns nothing
        return {"positional_embedding_type": "alibi", "alibi_in_bfloat16": True}
    return {"positional_embedding_type": "rotary", "rotary": rotary(hf)}


def rules(cfg: Config) -> Iterator[Rule]:
    norms = {"input_layernorm": "ln1"} if cfg.shared_norm else PRE_NORMS
    if cfg.parallel_attn_mlp and not cfg.shared_norm:
        norms = {"ln_attn": "ln1", "ln_mlp": "ln2"}
    if cfg.n_key_value_heads == cfg.n_heads:
        yield from bloom_rules(cfg, norms)
    else:
        yield from bloom_rules(
            cfg, norms, "(k part h) d -> part k d h", **GROUPS, g=cfg.n_heads // cfg.n_key_value_heads
        )


FAMILY = Family(
    model_types=("falcon",),
    config=config,
    rules=rules,
    copies=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    prefixes=("transformer.", ""),
    reference="sdpa",  # transformers 5's eager attention adds ALiBi twice: with the mask, and again by itself
)
