"""Qwen 1.5, 2 and 2.5: Llama with biases on queries, keys and values, and windows in the later layers on request."""

from jaxlens.config import Config
from jaxlens.convert.common import llama_config, windows
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    hf.expect("use_mrope", False, because="multimodal positions cannot be expressed")
    return llama_config(hf, biases=("b_Q", "b_K", "b_V"), windows=windows(hf), default_prepend_bos=False)


FAMILY = Family(
    model_types=("qwen2",),
    config=config,
    rules=llama_rules,
    unused=(
        *("use_sliding_window", "max_window_layers"),  # transformers has made layer_types of them
        "dual_chunk_attention_config",  # past the 262,144 tokens of a chunk, in another package
    ),
)
