"""Qwen 1.5, 2 and 2.5: Llama with biases on queries, keys and values, and optional windows in the later layers."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import layer_windows, llama_config
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    hf.expect("use_mrope", False, because="jaxlens does not implement multimodal positions")
    return llama_config(hf, biases=("b_Q", "b_K", "b_V"), windows=layer_windows(hf), default_prepend_bos=False)


FAMILY = Family(
    model_types=("qwen2",),
    config=config,
    rules=llama_rules,
    unused=(
        *("use_sliding_window", "max_window_layers"),  # transformers uses layer_types
        "dual_chunk_attention_config",  # of another package, for over 262,144 tokens
    ),
)
