"""Falcon: parallel attention and MLP with shared keys and values, or sequential blocks with ALiBi (RefinedWeb).

The 7B model has a single key/value head and one norm per block. The 40B and 180B models have several key/value heads
and two norms, the 11B model has several key/value heads and one norm.
"""

from collections.abc import Iterator
from typing import Any

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import activation, common_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import PRE_NORMS, bloom_rules
from jaxlens.config import Config

GROUPED_LAYOUT = {"split": ("g", "one", "one"), "each": "entry k d h -> (k entry) d h"}
"""The fused tensor has, for each key/value head, its `g` query heads, then its key, then its value."""


def config(hf: Reader) -> Config:
    hf.expect("apply_residual_connection_post_layernorm", False, because="transformers' Falcon supports no other value")
    d_model = hf.size("hidden_size")
    hf.expect("ff_factor", hf.size("ffn_hidden_size") / d_model, because="it must equal ffn_hidden_size / hidden_size")
    linear = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out") if hf.flag("bias") else ()
    return common_config(
        hf, n_key_value_heads=key_value_heads(hf), d_mlp=hf.size("ffn_hidden_size"),
        n_ctx=hf.size("max_position_embeddings"), eps=hf.number("layer_norm_epsilon"),
        act_fn=activation(hf, "activation"), biases=("norm", *linear), **block(hf), **positions(hf),
    )  # fmt: skip


def key_value_heads(hf: Reader) -> int:
    n_key_value_heads, multi_query = hf.size("num_kv_heads"), hf.flag("multi_query")  # marks both as read
    if hf.flag("new_decoder_architecture"):
        return n_key_value_heads
    return 1 if multi_query else hf.size("num_attention_heads")


def block(hf: Reader) -> dict[str, bool]:
    parallel, n_norms = hf.flag("parallel_attn"), hf("num_ln_in_parallel_attn", None)
    if hf.flag("new_decoder_architecture"):
        hf.expect("parallel_attn", True, because="the new decoder architecture has parallel blocks")
        hf.expect("num_ln_in_parallel_attn", 1, 2, because="attention and MLP share a norm or have one each")
        return {"parallel_attn_mlp": True, "shared_norm": n_norms == 1}
    hf.expect("num_ln_in_parallel_attn", 1, because="only the new decoder architecture has two norms")
    return {"parallel_attn_mlp": parallel, "shared_norm": parallel}


def positions(hf: Reader) -> dict[str, Any]:
    if hf.flag("alibi"):
        hf("rope_parameters", None)  # transformers fills it in, but does not use it
        return {"positional_embedding_type": "alibi", "alibi_in_bfloat16": True}
    return {"positional_embedding_type": "rotary", "rotary": rotary_embedding(hf)}


def rules(cfg: Config) -> Iterator[Rule]:
    norms = {"input_layernorm": "ln1"} if cfg.shared_norm else PRE_NORMS
    if cfg.parallel_attn_mlp and not cfg.shared_norm:
        norms = {"ln_attn": "ln1", "ln_mlp": "ln2"}
    if cfg.n_key_value_heads == cfg.n_heads:
        yield from bloom_rules(cfg, norms)
    else:
        yield from bloom_rules(
            cfg, norms, "(k entry h) d -> entry k d h", **GROUPED_LAYOUT, g=cfg.n_heads // cfg.n_key_value_heads
        )


FAMILY = Family(
    model_types=("falcon",),
    config=config,
    rules=rules,
    copies=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    prefixes=("transformer.", ""),
    reference="sdpa",  # transformers 5's eager attention adds ALiBi twice: in the mask and in the scores
)
