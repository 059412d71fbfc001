"""GPT-NeoX."""

from families.common import ROPE, rope

SIZES = {
    "vocab_size": 61,
    "hidden_size": 60,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "rope_parameters": {**ROPE, "partial_rotary_factor": 0.4},
}
CASES = [
    {},
    {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_fast"},
    {"tie_word_embeddings": True, **rope(partial_rotary_factor=1.0), "layer_norm_eps": 0.1},
    {**rope(rope_type="dynamic", factor=2.0, partial_rotary_factor=0.6), "max_position_embeddings": 16},
    {**rope(rope_type="linear", factor=4.0, partial_rotary_factor=0.25), "use_parallel_residual": False},
]
REFUSED = [
    ({"rotary_pct": 0.5}, "rotary_pct = 0.5"),
    ({"rope_theta": 20.0}, "rope_theta is 20.0; expected 500.0: it must equal rope_parameters.rope_theta"),
    (rope(partial_rotary_factor=0.5), "rotary dim is 5; expected an even number up to d_head = 10"),
]
PUBLISHED = {
    "pythia-160m": (162_322_944, {
        "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 12, "num_hidden_layers": 12,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True,
        "vocab_size": 50304,
    }),
    "pythia-160m, saved again by transformers 4.57": (162_322_944, {
        "model_type": "gpt_neox", "attention_bias": True, "classifier_dropout": 0.1, "hidden_act": "gelu",
        "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "num_attention_heads": 12, "num_hidden_layers": 12, "partial_rotary_factor": 0.25, "rope_scaling": None,
        "rope_theta": 10000, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "use_parallel_residual": True, "vocab_size": 50304,
    }),
    "gpt-neox-20b": (20_554_567_680, {
        "model_type": "gpt_neox", "attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0,
        "hidden_act": "gelu_fast", "hidden_size": 6144, "intermediate_size": 24576,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 64, "num_hidden_layers": 44,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "vocab_size": 50432,
    }),
}  # fmt: skip
