"""Ministral 3: Mistral with YaRN, whose queries grow past the original context."""

from jaxlens.config import Config
from jaxlens.convert.common import llama_config
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    rope = hf.inside("rope_parameters")
    rope("max_position_embeddings", None)  # repeats the config's own, which decides
    growth = rope.number("llama_4_scaling_beta"), rope.size("original_max_position_embeddings")
    return llama_config(hf, windows=hf.size("sliding_window", None), query_growth=growth)


FAMILY = Family(
    model_types=("ministral3",),
    config=config,
    rules=llama_rules,
)
