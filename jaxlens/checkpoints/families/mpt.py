"""MPT: ALiBi positions, and no biases, not even in LayerNorms."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import common_config
from jaxlens.checkpoints.rules.tensor_rules import attn_out_rules, fused_qkv_rules, mlp_rules, norm_rules, unembed_rules
from jaxlens.config import Config

LAYER = "transformer.blocks.{l}."
FIXED_FIELDS = {"no_bias": True, "expansion_ratio": 4, "learned_pos_emb": True}
FIXED_ATTENTION_FIELDS = {
    "alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention", "attn_uses_sequence_id": False,
    "prefix_lm": False, "qk_ln": False,
}  # fmt: skip
"""Fields that transformers' MPT does not read. It implements these values; ALiBi replaces learned positions."""


def config(hf: Reader) -> Config:
    attention = hf.inside("attn_config")
    for reader, fields in ((hf, FIXED_FIELDS), (attention, FIXED_ATTENTION_FIELDS)):
        for name, value in fields.items():
            reader.expect(name, value, because="transformers' MPT supports no other value")
    hf.expect("logit_scale", 1.0, because="transformers' MPT does not scale logits")
    hf.expect("norm_type", "low_precision_layernorm", "layernorm", because="transformers' MPT has LayerNorms only")
    scale = attention.positive("softmax_scale", None)
    return common_config(
        hf,
        n_layers="n_layers",
        d_model="d_model",
        n_heads="n_heads",
        n_ctx=hf.size("max_seq_len"),
        eps=hf.number("layer_norm_epsilon"),
        act_fn="gelu",
        biases=(),
        attn_scale=scale and 1 / scale,
        clip_qkv=attention.number("clip_qkv", None) or None,  # 0 means no clipping, as in transformers
        positional_embedding_type="alibi",
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield Rule("transformer.wte.weight", "embed.W_E", "v d")
    yield from norm_rules(cfg, LAYER + "norm_1", "blocks.{l}.ln1")
    yield from fused_qkv_rules(cfg, LAYER + "attn.Wqkv", "(three n h) d -> three n d h")
    yield from attn_out_rules(cfg, LAYER + "attn.out_proj")
    yield from norm_rules(cfg, LAYER + "norm_2", "blocks.{l}.ln2")
    yield from mlp_rules(cfg, LAYER + "ffn.up_proj", LAYER + "ffn.down_proj")
    yield from norm_rules(cfg, "transformer.norm_f", "ln_final")
    yield from unembed_rules(cfg)


FAMILY = Family(
    model_types=("mpt",),
    config=config,
    rules=rules,
    unused=(
        *("attn_impl", "init_config", "init_device", "embedding_fraction", "emb_pdrop"),  # implementation and training
        *("tokenizer_name", "verbose"),
    ),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
    context="max_seq_len",
)
