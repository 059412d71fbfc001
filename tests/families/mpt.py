"""MPT."""

SIZES = {"vocab_size": 61, "d_model": 30, "n_layers": 3, "n_heads": 6, "max_seq_len": 64}
CASES = [
    {},
    {"attn_config": {"clip_qkv": 0.7, "softmax_scale": 0.3}, "n_heads": 5},
    {"n_heads": 10, "tie_word_embeddings": False, "layer_norm_epsilon": 0.1},
    {"n_heads": 1, "n_layers": 1, "attn_config": {"clip_qkv": 0.0, "attn_impl": "triton"}},
]
REFUSED = [
    ({"no_bias": False}, "no_bias is False; expected True: transformers' MPT supports no other value"),
    ({"attn_config": {"alibi": False}}, "attn_config.alibi is False; expected True: transformers' MPT supports"),
    ({"attn_config": {"qk_ln": True}}, "attn_config.qk_ln is True; expected False"),
    ({"attn_config": {"alibi_bias_max": 4}}, "attn_config.alibi_bias_max is 4; expected 8"),
    ({"logit_scale": 0.5}, "logit_scale is 0.5; expected 1.0: transformers' MPT does not scale logits"),
    ({"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'; expected 'low_precision_layernorm' or 'layernorm'"),
]
PUBLISHED = {
    "mpt-7b": (6_649_286_656, {
        "model_type": "mpt",
        "attn_config": {
            "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0,
            "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False,
            "qk_ln": False, "softmax_scale": None,
        },
        "d_model": 4096, "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4,
        "init_config": {"name": "kaiming_normal_", "verbose": 0}, "init_device": "cpu", "learned_pos_emb": True,
        "logit_scale": None, "max_seq_len": 2048, "n_heads": 32, "n_layers": 32, "no_bias": True,
        "norm_type": "low_precision_layernorm", "resid_pdrop": 0, "tokenizer_name": "EleutherAI/gpt-neox-20b",
        "verbose": 0, "vocab_size": 50432,
    }),
    "mpt-30b": (29_957_200_896, {
        "model_type": "mpt", "attn_config": {"alibi": True, "attn_impl": "torch", "clip_qkv": None, "qk_ln": False},
        "d_model": 7168, "expansion_ratio": 4, "learned_pos_emb": True, "max_seq_len": 8192, "n_heads": 64,
        "n_layers": 48, "no_bias": True, "norm_type": "low_precision_layernorm", "vocab_size": 50432,
    }),
}  # fmt: skip
