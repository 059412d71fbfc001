"""gpt-oss."""

from families.common import LLAMA, ROPE, WINDOW, YARN

SIZES = {
    **LLAMA,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": WINDOW,
    "rope_parameters": {**YARN, "truncate": False},
}
CASES = [
    {},
    {"attention_bias": False, "tie_word_embeddings": True, "num_experts_per_tok": 1, "rope_parameters": YARN},
    {
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        "num_key_value_heads": 6,
        "num_experts_per_tok": 5,
        "rms_norm_eps": 0.1,
        "rope_parameters": {**ROPE, "rope_type": "default"},
    },
    {"num_local_experts": 3, "head_dim": 10, "sliding_window": 5, "intermediate_size": 20},
]
REFUSED = [
    ({"swiglu_limit": 5.0}, "swiglu_limit is 5.0; expected 7.0"),
    ({"swiglu_alpha": 1.0}, "swiglu_alpha is 1.0; expected 1.702"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
    ({"experts_per_token": 3}, "experts_per_token is 3; expected 2"),
    ({"initial_context_length": 3}, "initial_context_length is 3; expected 512"),
]
MXFP4 = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
PUBLISHED = {
    "gpt-oss-20b": (20_914_757_184, {
        "model_type": "gpt_oss", "attention_bias": True, "experts_per_token": 4, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096, "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
        "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "num_local_experts": 32, "output_router_logits": False, "quantization_config": MXFP4, "rms_norm_eps": 1e-05,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
                         "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False},
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": False, "vocab_size": 201088,
    }),
    "gpt-oss-120b": (116_829_156_672, {
        "model_type": "gpt_oss", "attention_bias": True, "experts_per_token": 4, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096, "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 18, "max_position_embeddings": 131072,
        "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "num_local_experts": 128, "output_router_logits": False, "quantization_config": MXFP4, "rms_norm_eps": 1e-05,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
                         "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False},
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": False, "vocab_size": 201088,
    }),
}  # fmt: skip
