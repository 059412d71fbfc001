"""Qwen 1. transformers has no class for it, so its cases are in test_qwen.py."""

PUBLISHED = {
    "Qwen-7B-Chat": (7_721_324_544, {
        "model_type": "qwen", "attn_dropout_prob": 0.0, "bf16": False, "emb_dropout_prob": 0.0, "fp16": False,
        "fp32": False, "hidden_size": 4096, "intermediate_size": 22016, "kv_channels": 128, "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 32768, "no_bias": True, "num_attention_heads": 32, "num_hidden_layers": 32,
        "onnx_safe": None, "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": True,
        "seq_length": 8192, "tie_word_embeddings": False, "tokenizer_class": "QWenTokenizer",
        "use_dynamic_ntk": True, "use_flash_attn": "auto", "use_logn_attn": True, "vocab_size": 151936,
    }),
    "Qwen-1_8B": (1_836_828_672, {
        "model_type": "qwen", "hidden_size": 2048, "intermediate_size": 11008, "kv_channels": 128,
        "layer_norm_epsilon": 1e-06, "max_position_embeddings": 8192, "no_bias": True, "num_attention_heads": 16,
        "num_hidden_layers": 24, "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": True,
        "seq_length": 8192, "softmax_in_fp32": False, "tie_word_embeddings": False, "use_cache_kernel": False,
        "use_cache_quantization": False, "use_dynamic_ntk": True, "use_logn_attn": True, "vocab_size": 151936,
    }),
}  # fmt: skip
