"""Gemma 2."""

from families.common import LLAMA, WINDOW

GEMMA = {**LLAMA, "query_pre_attn_scalar": 10, "sliding_window": WINDOW}
SIZES = {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
CASES = [
    {},
    {"attention_bias": True, "tie_word_embeddings": False, "attn_logit_softcapping": None},
    {"final_logit_softcapping": None, "query_pre_attn_scalar": 3, "hidden_activation": "gelu", "rms_norm_eps": 0.1},
    {"layer_types": ["full_attention", "full_attention", "sliding_attention"], "num_key_value_heads": 6},
]
PUBLISHED = {
    "gemma-2-9b": (9_241_705_984, {
        "model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3584,
        "cache_implementation": "hybrid", "intermediate_size": 14336, "num_attention_heads": 16,
        "num_hidden_layers": 42, "num_key_value_heads": 8, "sliding_window_size": 4096, "sliding_window": 4096,
    }),
    "gemma-2-2b": (2_614_341_888, {
        "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "head_dim": 256,
        "intermediate_size": 9216, "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256, "sliding_window": 4096,
    }),
}  # fmt: skip
