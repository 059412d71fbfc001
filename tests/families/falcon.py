"""Falcon."""

from families.common import ROPE, rope

GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 2}
SIZES = {
    "vocab_size": 61,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "rope_parameters": {**ROPE, "rope_type": "default"},
}
CASES = [
    {},
    {**GROUPED, "bias": True, "tie_word_embeddings": False, "ffn_hidden_size": 44},
    {**GROUPED, "num_ln_in_parallel_attn": 1, **rope(rope_type="linear", factor=4.0), "activation": "gelu_new"},
    {
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
        "num_attention_heads": 12,
        "hidden_size": 72,
    },
    {"multi_query": False, "num_ln_in_parallel_attn": 1, "layer_norm_epsilon": 0.1},
    {"alibi": True, **GROUPED, "num_attention_heads": 4, "hidden_size": 40},
]
REFUSED = [
    ({**GROUPED, "parallel_attn": False}, "parallel_attn is False; expected True: the new decoder architecture has"),
    ({**GROUPED, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn is 3; expected 1 or 2"),
    ({"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn is 2; expected 1: only the new decoder architecture"),
    ({"ff_factor": 3}, "ff_factor is 3; expected 4.0: it must equal ffn_hidden_size / hidden_size"),
    ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True;"),
]
PUBLISHED = {
    "falcon-7b": (6_921_720_704, {  # 7,217,189,760 with the second copy of the tied embedding in the file
        "model_type": "falcon", "alibi": False, "apply_residual_connection_post_layernorm": False, "bias": False,
        "hidden_size": 4544, "layer_norm_epsilon": 1e-05, "multi_query": True, "new_decoder_architecture": False,
        "num_attention_heads": 71, "num_hidden_layers": 32, "num_kv_heads": 71, "parallel_attn": True,
        "vocab_size": 65024,
    }),
    "falcon-40b": (41_303_293_952, {
        "model_type": "falcon", "alibi": False, "apply_residual_connection_post_layernorm": False, "bias": False,
        "hidden_size": 8192, "layer_norm_epsilon": 1e-05, "new_decoder_architecture": True,
        "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8, "parallel_attn": True,
        "vocab_size": 65024,
    }),
    "falcon-11B": (11_102_822_400, {  # computed by hand; the model card says 11 billion
        "model_type": "falcon", "activation": "gelu", "alibi": False, "bias": False, "ff_factor": 4,
        "ffn_hidden_size": 16384, "hidden_size": 4096, "layer_norm_epsilon": 1e-05, "max_position_embeddings": 8192,
        "multi_query": True, "new_decoder_architecture": True, "num_attention_heads": 32, "num_hidden_layers": 60,
        "num_kv_heads": 8, "num_ln_in_parallel_attn": 1, "parallel_attn": True, "rope_scaling": None,
        "rope_theta": 500042.0, "tie_word_embeddings": False, "vocab_size": 65024,
    }),
    "falcon-rw-1b": (1_311_625_216, {
        "model_type": "falcon", "alibi": True, "apply_residual_connection_post_layernorm": False, "bias": True,
        "hidden_size": 2048, "layer_norm_epsilon": 1e-05, "multi_query": False, "new_decoder_architecture": False,
        "num_attention_heads": 32, "num_hidden_layers": 24, "parallel_attn": False, "vocab_size": 50304,
    }),
}  # fmt: skip
