"""GPT BigCode."""

SIZES = {"vocab_size": 61, "n_embd": 30, "n_layer": 3, "n_head": 6, "n_positions": 64}
CASES = [
    {},
    {"multi_query": False, "activation_function": "gelu", "layer_norm_epsilon": 0.1},
    {"scale_attn_weights": False, "n_inner": 20, "tie_word_embeddings": False},
    {"multi_query": False, "n_head": 1, "n_layer": 1, "attention_softmax_in_fp32": False},
]
PUBLISHED = {
    "starcoderbase-1b": (1_137_207_296, {
        "model_type": "gpt_bigcode", "activation_function": "gelu_pytorch_tanh", "attention_softmax_in_fp32": True,
        "inference_runner": 0, "max_batch_size": None, "max_sequence_length": None, "multi_query": True,
        "n_embd": 2048, "n_head": 16, "n_inner": 8192, "n_layer": 24, "n_positions": 8192, "pad_key_length": True,
        "pre_allocate_kv_cache": False, "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
        "validate_runner_input": True, "vocab_size": 49152,
    }),
    "starcoder": (15_517_456_384, {
        "model_type": "gpt_bigcode", "activation_function": "gelu", "multi_query": True, "n_embd": 6144,
        "n_head": 48, "n_inner": 24576, "n_layer": 40, "n_positions": 8192, "vocab_size": 49152,
    }),
}  # fmt: skip
