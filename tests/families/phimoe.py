"""Phi 3.5 MoE."""

from families.common import LLAMA, LONGROPE, WINDOW, rope

# transformers never uses long_factor, so cases in which the two factors differ stay within the original context
MSCALES = {"short_mscale": 1.2, "long_mscale": 1.3}
SIZES = {**LLAMA, "num_local_experts": 5}
CASES = [
    {"attention_bias": True, "lm_head_bias": True},
    {
        "sliding_window": WINDOW,
        "tie_word_embeddings": True,
        "router_jitter_noise": 0.3,
        "hidden_act": "gelu",
        **rope(**{**LONGROPE, "original_max_position_embeddings": 48}, **MSCALES),
    },
    {"num_local_experts": 3, "num_key_value_heads": 6, "rms_norm_eps": 0.1, "router_jitter_noise": 0.0},
    {"attention_bias": True, **rope(**{**LONGROPE, "long_factor": LONGROPE["short_factor"]}, **MSCALES)},
]
REFUSED = [
    ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1; expected 2: a SparseMixer chooses two experts"),
    (
        rope(rope_type="linear", factor=2.0, original_max_position_embeddings=16, **MSCALES),
        "rope_parameters.rope_type is 'linear'; expected default or longrope",
    ),
]
PUBLISHED = {
    "Phi-3.5-MoE-instruct": (41_873_153_344, {
        "model_type": "phimoe", "attention_bias": True, "hidden_act": "silu", "hidden_dropout": 0.0,
        "hidden_size": 4096, "input_jitter_noise": 0.01, "intermediate_size": 6400, "lm_head_bias": True,
        "max_position_embeddings": 131072, "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 16,
        "original_max_position_embeddings": 4096, "output_router_logits": False, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1.5] * 64, "long_mscale": 1.243163121016122,
                         "original_max_position_embeddings": 4096, "short_factor": [1.0] * 64,
                         "short_mscale": 1.243163121016122, "type": "longrope"},
        "rope_theta": 10000.0, "router_aux_loss_coef": 0.0, "router_jitter_noise": 0.01, "sliding_window": 131072,
        "tie_word_embeddings": False, "vocab_size": 32064,
    }),
    "Phi-mini-MoE-instruct": (7_647_632_704, {
        "model_type": "phimoe", "attention_bias": True, "head_dim": 128, "hidden_act": "silu", "hidden_dropout": 0.0,
        "hidden_size": 4096, "input_jitter_noise": 0.01, "intermediate_size": 960, "lm_head_bias": True,
        "max_position_embeddings": 4096, "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 16, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "router_aux_loss_coef": 0.0, "router_jitter_noise": 0.01,
        "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    }),
}  # fmt: skip
