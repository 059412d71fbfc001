"""Command R7B and Command A."""

from families.common import LLAMA, WINDOW, rope

SIZES = {**LLAMA, "hidden_size": 48, "sliding_window": WINDOW, "sliding_window_pattern": 3}
CASES = [
    {},
    {"sliding_window_pattern": 2, "attention_bias": True, "logit_scale": 0.7},
    {"layer_types": ["full_attention"] * 3, "tie_word_embeddings": False, "layer_norm_eps": 0.1},
    {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "num_key_value_heads": 1,
        "hidden_act": "gelu",
        **rope(rope_type="linear", factor=4.0),
    },
]
REFUSED = [({"use_qk_norm": True}, "use_qk_norm is True; expected False: transformers' Cohere 2 supports no other")]
PUBLISHED = {
    "c4ai-command-r7b-12-2024": (8_028_033_024, {
        "model_type": "cohere2", "attention_bias": False, "cache_implementation": "hybrid", "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "layer_norm_eps": 1e-05,
        "layer_switch": 4, "logit_scale": 0.25, "max_position_embeddings": 8192, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000, "rotary_pct": 1.0,
        "sliding_window": 4096, "sliding_window_pattern": 4, "use_embedding_sharing": True,
        "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": True,
        "use_qk_norm": False, "vocab_size": 256000,
    }),
    "c4ai-command-a-03-2025": (111_057_580_032, {
        "model_type": "cohere2", "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 12288, "intermediate_size": 36864, "layer_norm_eps": 1e-05, "logit_scale": 0.25,
        "max_position_embeddings": 131072, "num_attention_heads": 96, "num_hidden_layers": 64,
        "num_key_value_heads": 8, "rope_theta": 50000, "sliding_window": 4096, "sliding_window_pattern": 4,
        "vocab_size": 256000,
    }),
}  # fmt: skip
