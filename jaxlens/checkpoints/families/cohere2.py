"""Command R7B and Command A: Command R with three local layers per global layer; global layers have no positions."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import cohere_config, layer_values, layer_windows, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config

FIXED_FIELDS = {
    "position_embedding_type": "rope_gptj", "rotary_pct": 1, "use_embedding_sharing": True,
    "use_gated_activation": True, "use_parallel_block": True, "use_qk_norm": False,
}  # fmt: skip


def config(hf: Reader) -> Config:
    for name, value in FIXED_FIELDS.items():
        hf.expect(name, value, because="transformers' Cohere 2 supports no other value")
    rotary = {"full_attention": None, "sliding_attention": rotary_embedding(hf, adjacent_pairs=True)}
    return cohere_config(hf, windows=layer_windows(hf), rotary=layer_values(hf, "layer_types", rotary))


FAMILY = Family(
    model_types=("cohere2",),
    config=config,
    rules=functools.partial(llama_rules, norms={"input_layernorm": "ln1"}),
    unused=(
        *("sliding_window_pattern", "layer_switch", "order_of_interleaved_layers"),  # transformers uses layer_types
        "use_parallel_embedding",  # training only
    ),
)
