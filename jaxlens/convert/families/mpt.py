"""MPT: ALiBi, LayerNorms without bias, no bias anywhere."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.layouts import fused_attention_rules, mlp_rules, norm_rules, out_rules, unembed_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule

LAYER = "transformer.blocks.{l}."
ALWAYS = {"no_bias": True, "expansion_ratio": 4, "learned_pos_emb": True}
ALWAYS_IN_ATTENTION = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "prefix_lm": False,
    "qk_ln": False,
}
"""What transformers' MPT is, whatever these fields say. (Positions are not learned, where there is ALiBi.)"""


def config(hf: Reader) -> Config:
    attention = hf.inside("attn_config")
    for reader, only in ((hf, ALWAYS), (attention, ALWAYS_IN_ATTENTION)):
        for name, value in only.items():
            reader.expect(name, value, because="transformers' MPT knows no other")
    hf.expect("logit_scale", because="transformers' MPT does not scale logits")
    hf.expect("norm_type", "low_precision_layernorm", "layernorm", because="transformers' MPT has LayerNorms")
    d_model, n_heads, scale = hf.size("d_model"), hf.size("n_heads"), attention.positive("softmax_scale", None)
    return Config(
        n_layers=hf.size("n_layers"),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_vocab=hf.size("vocab_size"),
        n_ctx=hf.size("max_seq_len"),
        eps=hf.number("layer_norm_epsilon"),
        act_fn="gelu",
        biases=(),
        attn_scale=scale and 1 / scale,
        clip_qkv=attention.number("clip_qkv", None) or None,  # zero counts as left out, as in transformers
        positional_embedding_type="alibi",
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield Rule("transformer.wte.weight", "embed.W_E", "v d")
    yield from norm_rules(cfg, LAYER + "norm_1", "blocks.{l}.ln1")
    yield from fused_attention_rules(cfg, LAYER + "attn.Wqkv", "(three n h) d -> three n d h")
    yield from out_rules(cfg, LAYER + "attn.out_proj")
    yield from norm_rules(cfg, LAYER + "norm_2", "blocks.{l}.ln2")
    yield from mlp_rules(cfg, LAYER + "ffn.up_proj", LAYER + "ffn.down_proj")
    yield from norm_rules(cfg, "transformer.norm_f", "ln_final")
    yield from unembed_rules(cfg)


FAMILY = Family(
    model_types=("mpt",),
    config=config,
    rules=rules,
    unused=(
        *("attn_impl", "init_config", "init_device", "embedding_fraction", "emb_pdrop"),  # of training
        *("tokenizer_name", "verbose"),
    ),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
    context="max_seq_len",
)
