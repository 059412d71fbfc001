"""The text model inside multimodal Gemma 3."""

from families.gemma2 import GEMMA

VISION = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
SIZES = {"text_config": {**GEMMA, "num_hidden_layers": 4}, "vision_config": VISION, "mm_tokens_per_image": 4}
CASES = [
    {},
    {"text_config": {**SIZES["text_config"], "sliding_window_pattern": 2}, "tie_word_embeddings": True},
    {"text_config": {**SIZES["text_config"], "attention_bias": True, "head_dim": 8, "query_pre_attn_scalar": 3}},
    {
        "text_config": {
            **SIZES["text_config"],
            "num_key_value_heads": 6,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rms_norm_eps": 0.1,
        }
    },
]
REFUSED = [
    (
        {"text_config": {**SIZES["text_config"], "final_logit_softcapping": 3.0}},
        "final_logit_softcapping is 3.0; expected null: transformers' multimodal Gemma 3 does not apply it",
    ),
]
PUBLISHED = {  # without the vision tower (416,866,032) and its projection (1152 × d_model, and a norm)
    "gemma-3-4b-it (text model)": (4_300_079_472 - 416_866_032 - 1152 * 2560 - 1152, {
        "model_type": "gemma3", "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {"model_type": "siglip_vision_model"},
    }),
    "gemma-3-27b-it (text model)": (27_432_406_640 - 416_866_032 - 1152 * 5376 - 1152, {
        "model_type": "gemma3", "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
            "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {"model_type": "siglip_vision_model"},
    }),
}  # fmt: skip
