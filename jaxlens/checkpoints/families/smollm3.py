"""SmolLM 3: Llama without positions in every fourth layer."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import (
    attention_biases,
    layer_values,
    layer_windows,
    llama_config,
    mlp_biases,
    rotary_embedding,
)
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(
        hf,
        rotary=layer_values(hf, "no_rope_layers", {1: rotary_embedding(hf), 0: None}),  # 1: with positions
        windows=layer_windows(hf),
        biases=attention_biases(hf) + mlp_biases(hf),
    )


FAMILY = Family(
    model_types=("smollm3",),
    config=config,
    rules=llama_rules,
    unused=("no_rope_layer_interval", "use_sliding_window", "max_window_layers"),  # transformers uses the lists above
)
