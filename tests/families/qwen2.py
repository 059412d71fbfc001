"""Qwen 2."""

from families.common import LLAMA, WIDE_HEADS, WINDOW, YARN

SIZES = LLAMA
CASES = [
    {},
    {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_key_value_heads": None},
    {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    {
        "use_sliding_window": False,
        "sliding_window": WINDOW,
        "max_window_layers": 0,
        **WIDE_HEADS,
        "rope_parameters": YARN,
    },
]
PUBLISHED = {
    "Qwen2.5-7B-Instruct-1M": (7_615_616_512, {
        "model_type": "qwen2", "dual_chunk_attention_config": {
            "chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144,
        },
        "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 1010000, "max_window_layers": 28,
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rope_theta": 10000000.0,
        "sliding_window": 32768, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064,
    }),
    "Qwen2.5-0.5B": (494_032_768, {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24,
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False,
    }),
    "Qwen2.5-7B": (7_615_616_512, {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28,
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rope_theta": 1000000.0,
        "sliding_window": 131072, "tie_word_embeddings": False, "use_mrope": False, "use_sliding_window": False,
        "vocab_size": 152064,
    }),
}  # fmt: skip
