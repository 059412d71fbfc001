"""Qwen 3: Llama with QK-norm per head."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, layer_windows, llama_config
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    fields = {"biases": attention_biases(hf), "windows": layer_windows(hf)}
    return llama_config(hf, qk_norm="head", default_prepend_bos=False, **fields)


FAMILY = Family(
    model_types=("qwen3",),
    config=config,
    rules=llama_rules,
    unused=("use_sliding_window", "max_window_layers"),  # transformers uses layer_types
)
