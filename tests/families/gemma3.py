"""Multimodal Gemma 3, whose language model is read. Its cases are in support/wrappers.py."""

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
