"""BLOOM."""

SIZES = {"vocab_size": 61, "hidden_size": 30, "n_layer": 3, "n_head": 6}
CASES = [
    {},
    {"n_head": 5, "tie_word_embeddings": False, "layer_norm_epsilon": 0.1},
    {"n_head": 1, "n_layer": 1, "seq_length": 64},
    {"n_head": 10, "pretraining_tp": 2, "hidden_size": 20},
]
REFUSED = [
    ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True;"),
    ({"slow_but_exact": True}, "slow_but_exact is True; expected False: with it, transformers omits the output"),
]
PUBLISHED = {
    "bloom-560m": (559_214_592, {
        "model_type": "bloom", "apply_residual_connection_post_layernorm": False, "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "n_embed": 1024,
        "n_inner": None, "n_layer": 24, "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 1,
        "seq_length": 2048, "skip_bias_add": True, "skip_bias_add_qkv": False, "vocab_size": 250880,
    }),
    "bloom": (176_247_271_424, {
        "model_type": "bloom", "apply_residual_connection_post_layernorm": False, "attention_softmax_in_fp32": True,
        "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "n_embed": 14336, "n_layer": 70,
        "num_attention_heads": 112, "pretraining_tp": 4, "slow_but_exact": False, "vocab_size": 250880,
    }),
}  # fmt: skip
