"""Command R7B and Command A: Command R with three local layers to one global, which has no positions."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import cohere_config, per_layer, rotary, windows
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family

ALWAYS = {
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_qk_norm": False,
}


def config(hf: Reader) -> Config:
    for name, value in ALWAYS.items():
        hf.expect(name, value, because="transformers' Cohere 2 knows no other")
    turns = {"full_attention": None, "sliding_attention": rotary(hf, adjacent_pairs=True)}
    return cohere_config(hf, windows=windows(hf), rotary=per_layer(hf, "layer_types", turns))


FAMILY = Family(
    model_types=("cohere2",),
    config=config,
    rules=functools.partial(llama_rules, norms={"input_layernorm": "ln1"}),
    unused=(
        *("sliding_window_pattern", "layer_switch", "order_of_interleaved_layers"),  # layer_types says it for each
        "use_parallel_embedding",  # how it was trained
    ),
)
