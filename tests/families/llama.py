"""Llama."""

from families.common import LLAMA, LLAMA3, LONGROPE, WIDE_HEADS, YARN, rope

SIZES = LLAMA
CASES = [
    rope(),
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {"num_key_value_heads": None, "head_dim": None, "mlp_bias": True, "hidden_act": "gelu"},
    {"num_key_value_heads": 1, "attention_bias": True, "hidden_act": "gelu_pytorch_tanh"},
    rope(rope_type="linear", factor=4.0),
    {**rope(rope_type="dynamic", factor=4.0), "max_position_embeddings": 16},
    {**rope(rope_type="dynamic", factor=2.0), "max_position_embeddings": 64},
    {"rope_parameters": LLAMA3},
    {"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
    {**WIDE_HEADS, "rope_parameters": YARN},
    {**WIDE_HEADS, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False}},
    {**WIDE_HEADS, "rope_parameters": {**YARN, "attention_factor": 1.5, "beta_fast": 4.0, "beta_slow": 2.0}},
    {**WIDE_HEADS, "rope_parameters": {**YARN, "factor": None, "original_max_position_embeddings": 16}},
    {"rope_parameters": LONGROPE},
    {"rope_parameters": {**LONGROPE, "factor": 8.0, "original_max_position_embeddings": 50}},
    {"rope_parameters": {**LONGROPE, "attention_factor": 1.25}, "max_position_embeddings": 48},
]
PUBLISHED = {
    "SmolLM2-135M": (134_515_008, {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True,
        "max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30, "vocab_size": 49152,
        "num_key_value_heads": 3, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
        "tie_word_embeddings": True, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    }),
    "Llama-3.2-1B": (1_235_814_400, {
        "model_type": "llama", "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192,
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192,
        },
    }),
}  # fmt: skip
