"""Qwen 3: Llama with a norm on every head's queries and keys."""

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config, windows
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(hf, qk_norm="head", biases=attention_biases(hf), windows=windows(hf), default_prepend_bos=False)


FAMILY = Family(
    model_types=("qwen3",),
    config=config,
    rules=llama_rules,
    unused=("use_sliding_window", "max_window_layers"),  # transformers has made layer_types of them
)
