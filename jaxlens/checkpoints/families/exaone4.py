"""EXAONE 4: Llama with norms after attention and MLP, QK-norm per head, and windows in some sizes.

In models with windows, the global layers have no positions.
"""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import layer_values, layer_windows, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import POST_NORMS, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    rotary = rotary_embedding(hf)
    in_global_layers = rotary if hf.size("sliding_window", None) is None else None
    return llama_config(
        hf, norm_placement="post", qk_norm="head", windows=layer_windows(hf),
        rotary=layer_values(hf, "layer_types", {"full_attention": in_global_layers, "sliding_attention": rotary}),
    )  # fmt: skip


FAMILY = Family(
    model_types=("exaone4",),
    config=config,
    rules=functools.partial(llama_rules, norms=POST_NORMS),
    unused=("sliding_window_pattern",),  # transformers uses layer_types
)
