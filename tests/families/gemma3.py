"""Gemma 3's text part inside a model that also sees."""

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
]
PUBLISHED = {}
