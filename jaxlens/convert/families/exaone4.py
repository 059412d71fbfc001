"""EXAONE 4: Llama with norms of what attention and MLP write, and of every head's queries and keys. Where some layers
have a window, the others have no positions."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import llama_config, per_layer, rotary, windows
from jaxlens.convert.layouts import POST_NORMS, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    turn = rotary(hf)
    in_global_layers = turn if hf.size("sliding_window", None) is None else None
    return llama_config(
        hf,
        norm_placement="post",
        qk_norm="head",
        windows=windows(hf),
        rotary=per_layer(hf, "layer_types", {"full_attention": in_global_layers, "sliding_attention": turn}),
    )


FAMILY = Family(
    model_types=("exaone4",),
    config=config,
    rules=functools.partial(llama_rules, norms=POST_NORMS),
    unused=("sliding_window_pattern",),  # transformers has made layer_types of it
)
