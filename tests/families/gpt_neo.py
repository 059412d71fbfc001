"""GPT-Neo."""

from families.common import WINDOW

SIZES = {
    "vocab_size": 61,
    "hidden_size": 30,
    "num_layers": 3,
    "num_heads": 6,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
    "window_size": WINDOW,
}
CASES = [
    {},
    {"attention_types": [[["local"], 3]], "window_size": 1, "tie_word_embeddings": False},
    {"attention_types": [[["global"], 3]], "intermediate_size": 50, "activation_function": "silu"},
    {"num_layers": 2, "attention_types": [[["local", "global"], 1]], "layer_norm_epsilon": 0.1},
]
PUBLISHED = {
    "gpt-neo-125m": (125_198_592, {
        "model_type": "gpt_neo", "attention_layers": ["global", "local"] * 6, "hidden_size": 768,
        "attention_types": [[["global", "local"], 6]], "num_heads": 12, "num_layers": 12, "window_size": 256,
    }),
    "gpt-neo-1.3B": (1_315_575_808, {
        "model_type": "gpt_neo", "attention_layers": ["global", "local"] * 12, "hidden_size": 2048,
        "attention_types": [[["global", "local"], 12]], "num_heads": 16, "num_layers": 24, "window_size": 256,
    }),
}  # fmt: skip
